"""Dropout + residual + LayerNorm in Triton: the CUDA implementation of `bertnli::add_norm`.

It is bound by memory, as all kernels that go row by row: each reads its inputs once and writes its outputs once. Sums
over rows (the gradients of vectors) are taken by a fixed number of programs, each over its own rows in order, and added
up by a kernel of their own, so equal inputs give equal gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertnli.kernels.launch import (
    TYPES,
    add_up,
    backward_tile,
    below,
    check,
    check_dropout,
    check_like,
    check_saved,
    check_type,
    check_vector,
    count_programs,
    tile,
)
from bertnli.kernels.philox import kept


@triton.jit
def kept_rows(row, seed, W: tl.constexpr, BELOW: tl.constexpr):
    """The documented mask of whole rows: bool [rows, W]."""
    minus_one = row[:, None] * 0 - 1  # no attention head has this number, so no mask is used twice
    return kept(row[:, None], minus_one, minus_one * 0, tl.arange(0, W // 4)[None, :], seed, BELOW)


@triton.jit
def normalized(z, mask, weight, bias, columns, there, width, eps):
    """LayerNorm of the rows z (zeros beyond the width), their means and inverse standard deviations."""
    mean = tl.sum(z, 1) / width
    centred = tl.where(mask, z - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    scale = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    return centred * rstd[:, None] * scale[None, :] + shift[None, :], mean, rstd


@triton.jit
def norm_slope(z, d, mask, scale, mean, rstd, row, valid, width):
    """dz and n = (z - mean) rstd; with g = d scale: dz = rstd (g - mean(g) - n mean(g n))."""
    z_mean, z_rstd = tl.load(mean + row, mask=valid, other=0.0), tl.load(rstd + row, mask=valid, other=0.0)
    normal = tl.where(mask, (z - z_mean[:, None]) * z_rstd[:, None], 0.0)
    g = d * scale[None, :]
    g_mean, gn_mean = tl.sum(g, 1) / width, tl.sum(g * normal, 1) / width
    return tl.where(mask, (g - g_mean[:, None] - normal * gn_mean[:, None]) * z_rstd[:, None], 0.0), normal


@triton.jit
def _residual(
    x, y, y_bias, seed, row, valid, columns, there, width, keep_scale,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    """x + dropout(y + y_bias) of a tile of rows, float, and what dropout keeps."""
    offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
    mask = valid[:, None] & there[None, :]
    added = tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        added += tl.load(y_bias + columns, mask=there, other=0.0).to(tl.float32)[None, :]
    keep = mask
    if BELOW > 0:
        keep = kept_rows(row, seed, W, BELOW)
        added = tl.where(keep, added * keep_scale, 0.0)
    return tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + added, keep, offsets, mask


@triton.jit
def _add_norm(
    x,  # [rows, width]
    y,  # [rows, width]
    y_bias,  # [width]; not read without HAS_BIAS
    weight,  # [width]
    bias,  # [width]
    out,  # [rows, width]
    mean,  # float32 [rows]
    rstd,  # float32 [rows]
    seed,  # int64 [2]; not read where BELOW is 0
    rows, width, eps, keep_scale, R: tl.constexpr, W: tl.constexpr, HAS_BIAS: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    columns = tl.arange(0, W)
    valid, there = row < rows, columns < width
    z, _, offsets, mask = _residual(
        x, y, y_bias, seed, row, valid, columns, there, width, keep_scale, W, HAS_BIAS, BELOW
    )
    result, z_mean, z_rstd = normalized(z, mask, weight, bias, columns, there, width, eps)
    tl.store(mean + row, z_mean, mask=valid)
    tl.store(rstd + row, z_rstd, mask=valid)
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_norm_backward(
    dout,  # [rows, width]
    x,  # [rows, width]
    y,  # [rows, width]
    y_bias,  # [width]; not read without HAS_BIAS
    weight,  # [width]
    mean,  # float32 [rows]
    rstd,  # float32 [rows]
    dx,  # [rows, width]
    dy,  # [rows, width]
    sums,  # float32 [programs, 3, width]: each program's dweight, dbias and dy_bias
    seed,  # int64 [2]; not read where BELOW is 0
    rows, width, keep_scale, R: tl.constexpr, W: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr,
    BELOW: tl.constexpr,
):  # fmt: skip
    """dx = dz, dy = mask dz.

    sums float [programs, 3, width] gets each program's sums over its rows for dweight, dbias and dy_bias.
    """
    columns = tl.arange(0, W)
    there = columns < width
    scale = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    dweight, dbias, dy_bias = tl.zeros([W], tl.float32), tl.zeros([W], tl.float32), tl.zeros([W], tl.float32)
    for first in tl.range(tl.program_id(0) * R, rows, tl.num_programs(0) * R, num_stages=STAGES):
        row = first + tl.arange(0, R)
        valid = row < rows
        z, keep, offsets, mask = _residual(
            x, y, y_bias, seed, row, valid, columns, there, width, keep_scale, W, HAS_BIAS, BELOW
        )
        d = tl.load(dout + offsets, mask=mask, other=0.0).to(tl.float32)
        dz, normal = norm_slope(z, d, mask, scale, mean, rstd, row, valid, width)
        tl.store(dx + offsets, dz.to(dx.dtype.element_ty), mask=mask)
        if BELOW > 0:
            dz = tl.where(keep, dz * keep_scale, 0.0)
        tl.store(dy + offsets, dz.to(dy.dtype.element_ty), mask=mask)
        dweight += tl.sum(d * normal, 0)
        dbias += tl.sum(d, 0)
        if HAS_BIAS:
            dy_bias += tl.sum(dz, 0)
    to = sums + tl.program_id(0) * 3 * width + columns
    tl.store(to, dweight, mask=there)
    tl.store(to + width, dbias, mask=there)
    tl.store(to + 2 * width, dy_bias, mask=there)


def add_norm(
    x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `bertnli::add_norm`."""
    x, y, constants = _checked_add_norm(x, y, y_bias, weight, bias, dropout_p, seed)
    rows, width = x.shape
    out = torch.empty_like(x)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if rows:
        r, w, warps = tile(width)
        _add_norm[(triton.cdiv(rows, r),)](
            x, y, weight if y_bias is None else y_bias.contiguous(), weight.contiguous(), bias.contiguous(), out, mean,
            rstd, mean if seed is None else seed.contiguous(), rows, width, eps, 1 / (1 - dropout_p),
            R=r, W=w, num_warps=warps, **constants,
        )  # fmt: skip
    return out, mean, rstd


def add_norm_backward(
    dout: Tensor, x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor,
    rstd: Tensor, dropout_p: float, seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `bertnli::add_norm_backward`."""
    x, y, constants = _checked_add_norm(x, y, y_bias, weight, bias, dropout_p, seed)
    check_like(dout, x)
    rows, width = x.shape
    check_saved(mean, "mean", (rows,), x)
    check_saved(rstd, "rstd", (rows,), x)
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    sizes = backward_tile(x.device, width)
    programs = count_programs(x.device, triton.cdiv(rows, sizes["R"])) if rows else 0
    sums = x.new_empty((programs, 3, width), dtype=torch.float32)
    if rows:
        _add_norm_backward[(programs,)](
            dout.contiguous(), x, y, weight if y_bias is None else y_bias.contiguous(), weight.contiguous(),
            mean.contiguous(), rstd.contiguous(), dx, dy, sums, mean if seed is None else seed.contiguous(),
            rows, width, 1 / (1 - dropout_p), **sizes, **constants,
        )  # fmt: skip
    dy_bias = x.new_empty(0, dtype=torch.float32) if y_bias is None else torch.empty_like(y_bias)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    add_up(sums, dweight, dbias, *([] if y_bias is None else [dy_bias]))
    return dx, dy, dy_bias, dweight, dbias


def _checked_add_norm(
    x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    check_type("add_norm", x, "x")
    check(
        x.dim() == 2 and x.size(1) > 0,
        f"x must have shape [tokens, width], the width not 0; found {list(x.shape)}",
    )
    check(y.shape == x.shape, f"y must have x's shape {list(x.shape)}; found {list(y.shape)}")
    check(y.device == x.device, f"y must lie on x's device {x.device}; found {y.device}")
    check(
        y.dtype == x.dtype or (x.dtype == torch.float32 and y.dtype in TYPES),
        f"y must have x's dtype {x.dtype} (or be of half precision where x is float32); found {y.dtype}",
    )
    for name, vector in (("y_bias", y_bias), ("weight", weight), ("bias", bias)):
        check_vector(vector, name, x)
    check_dropout(dropout_p, seed, x)
    return x.contiguous(), y.contiguous(), dict(HAS_BIAS=y_bias is not None, BELOW=below(dropout_p))
