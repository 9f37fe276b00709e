"""Bias + activation in Triton: the CUDA implementation of `bertnli::bias_act`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertnli.kernels.launch import add_up, check, check_like, check_type, check_vector, count_programs, power
from bertnli.ops.activation import check_activation


@triton.jit
def _integral(x, GELU: tl.constexpr):
    """The normal distribution's integral up to x, or tanh's approximation of it, and the derivative of either."""
    if GELU == "gelu":
        integral = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        slope = tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        odds = tl.exp(tl.minimum(-1.5957691216057308 * x * (1 + 0.044715 * x * x), 80.0))
        integral = 1 / (1 + odds)  # 1 - integral would cancel
        slope = integral * (integral * odds) * (1 + 0.134145 * x * x) * 1.5957691216057308
    return integral, slope


@triton.jit
def _bias_act(
    x,  # [rows, width]
    bias,  # [width]
    out,  # [rows, width]
    rows, width, R: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    columns = tl.program_id(1) * W + tl.arange(0, W)
    there = columns < width
    offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
    mask = (row < rows)[:, None] & there[None, :]
    z = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    z += tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)[None, :]
    if KIND == "relu":
        z = tl.where(z < 0, 0.0, z)  # a NaN stays
    else:
        integral, _ = _integral(z, KIND)
        z = z * integral
    tl.store(out + offsets, z.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _bias_act_backward(
    dout,  # [rows, width]
    x,  # [rows, width]
    bias,  # [width]
    dx,  # [rows, width]
    sums,  # float32 [programs, 1, width]: each program's dbias
    rows, width, R: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """sums float [programs, width] gets each program's sums of dx over its rows."""
    columns = tl.program_id(1) * W + tl.arange(0, W)
    there = columns < width
    shift = tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    dbias = tl.zeros([W], tl.float32)
    for first in tl.range(tl.program_id(0) * R, rows, tl.num_programs(0) * R, num_stages=3):
        row = first + tl.arange(0, R)
        offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
        mask = (row < rows)[:, None] & there[None, :]
        z = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + shift[None, :]
        d = tl.load(dout + offsets, mask=mask, other=0.0).to(tl.float32)
        if KIND == "relu":
            d = tl.where(z > 0, d, 0.0)
        else:
            integral, slope = _integral(z, KIND)
            d = d * (integral + z * slope)
        tl.store(dx + offsets, d.to(dx.dtype.element_ty), mask=mask)
        dbias += tl.sum(d, 0)
    tl.store(sums + tl.program_id(0) * width + columns, dbias, mask=there)


def bias_act(x: Tensor, bias: Tensor, kind: str) -> Tensor:
    """The operator `bertnli::bias_act`."""
    _check_bias_act(x, bias, kind)
    x, (rows, width) = x.contiguous(), x.shape
    out = torch.empty_like(x)
    if x.numel():
        r, w, warps = 2, min(512, power(width)), 2
        _bias_act[(triton.cdiv(rows, r), triton.cdiv(width, w))](
            x, bias.contiguous(), out, rows, width, R=r, W=w, KIND=kind, num_warps=warps
        )
    return out


def bias_act_backward(dout: Tensor, x: Tensor, bias: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The operator `bertnli::bias_act_backward`."""
    _check_bias_act(x, bias, kind)
    check_like(dout, x)
    x, (rows, width) = x.contiguous(), x.shape
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    r, w, warps = 8, min(128, power(width)), 2
    blocks = triton.cdiv(width, w)
    programs = count_programs(x.device, triton.cdiv(rows, r), 8, blocks) if x.numel() else 0
    sums = x.new_empty((programs, 1, width), dtype=torch.float32)
    if programs:
        _bias_act_backward[(programs, blocks)](
            dout.contiguous(), x, bias.contiguous(), dx, sums, rows, width, R=r, W=w, KIND=kind, num_warps=warps
        )
    add_up(sums, dbias)
    return dx, dbias


def _check_bias_act(x: Tensor, bias: Tensor, kind: str) -> None:
    check_type("bias_act", x, "x")
    check(x.dim() == 2, f"x must have shape [tokens, width]; found {list(x.shape)}")
    check_vector(bias, "bias", x)
    check_activation(kind)
