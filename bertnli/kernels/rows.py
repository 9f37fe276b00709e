"""The operators that go row by row, in Triton: dropout + residual + LayerNorm, bias + activation, embedding sums.

All are bound by memory: each reads its inputs once and writes its outputs once. Sums over rows (the gradients of
vectors) are taken by a fixed number of programs, each over its own rows in order, and added up by a kernel of their
own, so equal inputs give equal gradients. Only the embedding tables' are summed by atomic additions.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertnli.kernels.attention import below, check, check_dropout, multiprocessors, power, shared_memory
from bertnli.kernels.philox import kept

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


# ---- dropout + residual + LayerNorm ----


@triton.jit
def _kept(row, seed, W: tl.constexpr, BELOW: tl.constexpr):
    """The documented mask of whole rows: bool [rows, W]."""
    minus_one = row[:, None] * 0 - 1  # no attention head has this number, so no mask is used twice
    return kept(row[:, None], minus_one, minus_one * 0, tl.arange(0, W // 4)[None, :], seed, BELOW)


@triton.jit
def _normalized(z, mask, weight, bias, columns, there, width, eps):
    """LayerNorm of the rows z (zeros beyond the width), their means and inverse standard deviations."""
    mean = tl.sum(z, 1) / width
    centred = tl.where(mask, z - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    scale = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    return centred * rstd[:, None] * scale[None, :] + shift[None, :], mean, rstd


@triton.jit
def _norm_slope(z, d, mask, scale, mean, rstd, row, valid, width):
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
        keep = _kept(row, seed, W, BELOW)
        added = tl.where(keep, added * keep_scale, 0.0)
    return tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + added, keep, offsets, mask


@triton.jit
def _add_norm(
    x, y, y_bias, weight, bias, out, mean, rstd, seed, rows, width, eps, keep_scale,
    R: tl.constexpr, W: tl.constexpr, HAS_BIAS: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    columns = tl.arange(0, W)
    valid, there = row < rows, columns < width
    z, _, offsets, mask = _residual(
        x, y, y_bias, seed, row, valid, columns, there, width, keep_scale, W, HAS_BIAS, BELOW
    )
    result, z_mean, z_rstd = _normalized(z, mask, weight, bias, columns, there, width, eps)
    tl.store(mean + row, z_mean, mask=valid)
    tl.store(rstd + row, z_rstd, mask=valid)
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_norm_backward(
    dout, x, y, y_bias, weight, mean, rstd, dx, dy, sums, seed, rows, width, keep_scale,
    R: tl.constexpr, W: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr, BELOW: tl.constexpr,
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
        dz, normal = _norm_slope(z, d, mask, scale, mean, rstd, row, valid, width)
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
        r, w, warps = _tile(width)
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
    _check_like(dout, x)
    rows, width = x.shape
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    tile = _backward_tile(x.device, width)
    programs = _programs(x.device, triton.cdiv(rows, tile["R"])) if rows else 0
    sums = x.new_empty((programs, 3, width), dtype=torch.float32)
    if rows:
        _add_norm_backward[(programs,)](
            dout.contiguous(), x, y, weight if y_bias is None else y_bias.contiguous(), weight.contiguous(),
            mean.contiguous(), rstd.contiguous(), dx, dy, sums, mean if seed is None else seed.contiguous(),
            rows, width, 1 / (1 - dropout_p), **tile, **constants,
        )  # fmt: skip
    dy_bias = x.new_empty(0, dtype=torch.float32) if y_bias is None else torch.empty_like(y_bias)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    _add_up(sums, dweight, dbias, *([] if y_bias is None else [dy_bias]))
    return dx, dy, dy_bias, dweight, dbias


def _checked_add_norm(
    x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    _check_type("add_norm", x, "x")
    check(
        x.dim() == 2 and x.size(1) > 0,
        f"x must have shape [tokens, width], the width not 0; found {list(x.shape)}",
    )
    check(y.shape == x.shape, f"y must have x's shape {list(x.shape)}; found {list(y.shape)}")
    check(y.device == x.device, f"y must lie on x's device {x.device}; found {y.device}")
    check(
        y.dtype == x.dtype or (x.dtype == torch.float32 and y.dtype in _TYPES),
        f"y must have x's dtype {x.dtype} (or be of half precision where x is float32); found {y.dtype}",
    )
    for name, vector in (("y_bias", y_bias), ("weight", weight), ("bias", bias)):
        _check_vector(vector, name, x)
    check_dropout(dropout_p, seed, x)
    return x.contiguous(), y.contiguous(), dict(HAS_BIAS=y_bias is not None, BELOW=below(dropout_p))


# ---- bias + activation ----


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
    x, bias, out, rows, width, R: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr
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
    dout, x, bias, dx, sums, rows, width, R: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr
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
    _check_like(dout, x)
    x, (rows, width) = x.contiguous(), x.shape
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    r, w, warps = 8, min(128, power(width)), 2
    blocks = triton.cdiv(width, w)
    programs = _programs(x.device, triton.cdiv(rows, r), 8, blocks) if x.numel() else 0
    sums = x.new_empty((programs, 1, width), dtype=torch.float32)
    if programs:
        _bias_act_backward[(programs, blocks)](
            dout.contiguous(), x, bias.contiguous(), dx, sums, rows, width, R=r, W=w, KIND=kind, num_warps=warps
        )
    _add_up(sums, dbias)
    return dx, dbias


def _check_bias_act(x: Tensor, bias: Tensor, kind: str) -> None:
    _check_type("bias_act", x, "x")
    check(x.dim() == 2, f"x must have shape [tokens, width]; found {list(x.shape)}")
    _check_vector(bias, "bias", x)
    check(kind in ("relu", "gelu", "gelu_tanh"), f"kind must be 'relu', 'gelu' or 'gelu_tanh'; found {kind!r}")


# ---- embedding ----


@triton.jit
def _embedded(
    token, segment, position, ids, segments, positions, row, valid, columns, width, vocabulary, kinds, places
):  # fmt: skip
    """The sum of three rows of the tables for each of a tile's tokens, float, zeros beyond the width.

    An id outside its table gives a row of NaN: asking would wait for the device.
    """
    i, s, p = tl.load(ids + row, mask=valid), tl.load(segments + row, mask=valid), tl.load(positions + row, mask=valid)
    inside = (i >= 0) & (i < vocabulary) & (s >= 0) & (s < kinds) & (p >= 0) & (p < places)
    mask = (valid & inside)[:, None] & (columns < width)[None, :]
    total = tl.load(token + i.to(tl.int64)[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    total += tl.load(segment + s[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    total += tl.load(position + p[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    outside = (valid & (inside == 0))[:, None] & (columns < width)[None, :]
    return tl.where(outside, float("nan"), total)


@triton.jit
def _embed(
    token, segment, position, ids, segments, positions, out, tokens, width, vocabulary, kinds, places,
    R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    valid = row < tokens
    z = _embedded(
        token, segment, position, ids, segments, positions, row, valid, columns, width, vocabulary, kinds, places
    )
    offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + offsets, z.to(out.dtype.element_ty), mask=valid[:, None] & (columns < width)[None, :])


@triton.jit
def _embed_norm(
    token, segment, position, ids, segments, positions, weight, bias, out, mean, rstd, seed,
    tokens, width, vocabulary, kinds, places, eps, keep_scale, R: tl.constexpr, W: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    valid, there = row < tokens, columns < width
    mask = valid[:, None] & there[None, :]
    z = _embedded(
        token, segment, position, ids, segments, positions, row, valid, columns, width, vocabulary, kinds, places
    )
    result, z_mean, z_rstd = _normalized(z, mask, weight, bias, columns, there, width, eps)
    if BELOW > 0:
        result = tl.where(_kept(row, seed, W, BELOW), result * keep_scale, 0.0)
    tl.store(mean + row, z_mean, mask=valid)
    tl.store(rstd + row, z_rstd, mask=valid)
    offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _embed_norm_backward(
    dout, token, segment, position, ids, segments, positions, weight, mean, rstd, dz, sums, seed,
    tokens, width, vocabulary, kinds, places, keep_scale,
    R: tl.constexpr, W: tl.constexpr, STAGES: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    """As _add_norm_backward, with dropout after the norm; sums float [programs, 2, width], dweight and dbias."""
    columns = tl.arange(0, W)
    there = columns < width
    scale = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros([W], tl.float32), tl.zeros([W], tl.float32)
    for first in tl.range(tl.program_id(0) * R, tokens, tl.num_programs(0) * R, num_stages=STAGES):
        row = first + tl.arange(0, R)
        valid = row < tokens
        mask = valid[:, None] & there[None, :]
        z = _embedded(
            token, segment, position, ids, segments, positions, row, valid, columns, width, vocabulary, kinds, places
        )
        offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
        d = tl.load(dout + offsets, mask=mask, other=0.0).to(tl.float32)
        if BELOW > 0:
            d = tl.where(_kept(row, seed, W, BELOW), d * keep_scale, 0.0)
        d_z, normal = _norm_slope(z, d, mask, scale, mean, rstd, row, valid, width)
        tl.store(dz + offsets, d_z, mask=mask)
        dweight += tl.sum(d * normal, 0)
        dbias += tl.sum(d, 0)
    to = sums + tl.program_id(0) * 2 * width + columns
    tl.store(to, dweight, mask=there)
    tl.store(to + width, dbias, mask=there)


def _checked_tables(tables: list[Tensor], ids: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """All six tensors contiguous, and what a kernel wants to know of their sizes."""
    token_table, tokens = tables[0], len(ids[0])
    _check_type("embed", token_table, "token_table")
    for name, table in zip(("token_table", "segment_table", "position_table"), tables, strict=True):
        check(
            table.dim() == 2 and table.size(1) == token_table.size(-1),
            f"{name} must have shape [rows, {token_table.size(-1)}]; found {list(table.shape)}",
        )
        check(
            table.dtype == token_table.dtype and table.device == token_table.device,
            f"{name} must have token_table's dtype and device; found {table.dtype} on {table.device}",
        )
    for name, some in zip(("input_ids", "segment_ids", "positions"), ids, strict=True):
        check(some.shape == (tokens,), f"{name} must have shape [{tokens}]; found {list(some.shape)}")
        check(some.dtype == torch.int32, f"{name} must be int32; found {some.dtype}")
        check(some.device == token_table.device, f"{name} must lie on the tables' device; found {some.device}")
    sizes = [tokens, token_table.size(1), *(len(table) for table in tables)]
    return [x.contiguous() for x in (*tables, *ids)], sizes


def embed(
    token_table: Tensor, segment_table: Tensor, position_table: Tensor, input_ids: Tensor, segment_ids: Tensor,
    positions: Tensor, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """The operator `bertnli::embed`. An id outside its table gives a row of NaN, since raising would wait."""
    inputs, sizes = _checked_tables([token_table, segment_table, position_table], [input_ids, segment_ids, positions])
    tokens, width = sizes[:2]
    out = token_table.new_empty((tokens, width))
    if out.numel():
        r, w, warps = _tile(width)
        _embed[(triton.cdiv(tokens, r),)](*inputs, out, *sizes, R=r, W=w, num_warps=warps)
    return out


@triton.jit
def _scatter(
    dout, ids, segments, positions, token, segment, position, tokens, width, vocabulary, kinds, places,
    R: tl.constexpr, W: tl.constexpr, FEW: tl.constexpr, TOKEN: tl.constexpr, SEGMENT: tl.constexpr,
    POSITION: tl.constexpr,
):  # fmt: skip
    """Add the rows of `dout` to those of up to three tables, float; of the segments' where they are FEW, sums of the
    tile's rows, since all tokens want the same two or three."""
    row, columns = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * W + tl.arange(0, W)
    valid, there = row < tokens, columns < width
    mask = valid[:, None] & there[None, :]
    d = tl.load(dout + row.to(tl.int64)[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if TOKEN:
        i = tl.load(ids + row, mask=valid, other=0).to(tl.int64)
        to = token + i[:, None] * width + columns[None, :]
        tl.atomic_add(to, d, mask=mask & ((i >= 0) & (i < vocabulary))[:, None], sem="relaxed")
    if POSITION:
        i = tl.load(positions + row, mask=valid, other=0).to(tl.int64)
        to = position + i[:, None] * width + columns[None, :]
        tl.atomic_add(to, d, mask=mask & ((i >= 0) & (i < places))[:, None], sem="relaxed")
    if SEGMENT:
        i = tl.load(segments + row, mask=valid, other=0).to(tl.int64)
        if FEW > 0:
            for kind in tl.static_range(FEW):
                total = tl.sum(tl.where((i == kind)[:, None], d, 0.0), 0)
                tl.atomic_add(segment + kind * width + columns, total, mask=there, sem="relaxed")
        else:
            to = segment + i[:, None] * width + columns[None, :]
            tl.atomic_add(to, d, mask=mask & ((i >= 0) & (i < kinds))[:, None], sem="relaxed")


def embed_backward(
    dout: Tensor, input_ids: Tensor, segment_ids: Tensor, positions: Tensor, *rows_and_wanted: int
) -> tuple[Tensor, ...]:
    """The operator `bertnli::embed_backward`: by atomic additions, whose order and so whose last bits vary from run to
    run; after `torch.use_deterministic_algorithms(True)` by PyTorch's kernel, which sorts the ids and takes five times
    as long."""
    rows, wanted, (tokens, width) = rows_and_wanted[:3], rows_and_wanted[3:], dout.shape
    dout, ids = dout.contiguous(), [x.contiguous() for x in (input_ids, segment_ids, positions)]
    if torch.are_deterministic_algorithms_enabled():
        return tuple(
            torch.ops.aten.embedding_dense_backward(dout, i, n, -1, False) if want else dout.new_empty((0, width))
            for i, n, want in zip(ids, rows, wanted, strict=True)
        )
    sums = [
        dout.new_zeros((n if want else 0, width), dtype=torch.float32) for n, want in zip(rows, wanted, strict=True)
    ]
    if dout.numel() and any(wanted):
        w = min(128, power(width))
        _scatter[(triton.cdiv(tokens, 16), triton.cdiv(width, w))](
            dout, *ids, *sums, tokens, width, *rows, R=16, W=w, FEW=rows[1] if rows[1] <= 3 else 0,
            TOKEN=bool(wanted[0]), SEGMENT=bool(wanted[1]), POSITION=bool(wanted[2]), num_warps=4,
        )  # fmt: skip
    return tuple(x.to(dout.dtype) for x in sums)


def embed_norm(
    token_table: Tensor, segment_table: Tensor, position_table: Tensor, input_ids: Tensor, segment_ids: Tensor,
    positions: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float, seed: Tensor | None,
    dtype: torch.dtype, sparse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `bertnli::embed_norm`; ids outside their tables as in `embed`."""
    inputs, sizes = _checked_tables([token_table, segment_table, position_table], [input_ids, segment_ids, positions])
    tokens, width = sizes[:2]
    check(width > 0, "the tables' width must not be 0")
    check(
        dtype == token_table.dtype or (token_table.dtype == torch.float32 and dtype in _TYPES),
        f"dtype must be the tables', {token_table.dtype} (or of half precision where that is float32); found {dtype}",
    )
    for name, vector in (("weight", weight), ("bias", bias)):
        _check_vector(vector, name, token_table)
    check_dropout(dropout_p, seed, token_table)
    out = token_table.new_empty((tokens, width), dtype=dtype)
    mean, rstd = (out.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    if tokens:
        r, w, warps = _tile(width)
        _embed_norm[(triton.cdiv(tokens, r),)](
            *inputs, weight.contiguous(), bias.contiguous(), out, mean, rstd,
            mean if seed is None else seed.contiguous(), *sizes, eps, 1 / (1 - dropout_p),
            R=r, W=w, BELOW=below(dropout_p), num_warps=warps,
        )  # fmt: skip
    return out, mean, rstd


def embed_norm_backward(
    dout: Tensor, token_table: Tensor, segment_table: Tensor, position_table: Tensor, input_ids: Tensor,
    segment_ids: Tensor, positions: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
    dropout_p: float, seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `bertnli::embed_norm_backward`."""
    inputs, sizes = _checked_tables([token_table, segment_table, position_table], [input_ids, segment_ids, positions])
    tokens, width = sizes[:2]
    check(
        dout.shape == (tokens, width),
        f"the gradient of the output must have shape [{tokens}, {width}]; found {list(dout.shape)}",
    )
    check_dropout(dropout_p, seed, token_table)
    dz = token_table.new_empty((tokens, width), dtype=torch.float32)
    tile = _backward_tile(dz.device, width)
    programs = _programs(dz.device, triton.cdiv(tokens, tile["R"])) if tokens else 0
    sums = dz.new_empty((programs, 2, width))
    if tokens:
        _embed_norm_backward[(programs,)](
            dout.contiguous(), *inputs, weight.contiguous(), mean.contiguous(), rstd.contiguous(), dz, sums,
            mean if seed is None else seed.contiguous(), *sizes, 1 / (1 - dropout_p),
            BELOW=below(dropout_p), **tile,
        )  # fmt: skip
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    _add_up(sums, dweight, dbias)
    return dz, dweight, dbias


# ---- shared ----


@triton.jit
def _column_sums(sums, first, second, third, rows, vectors, width, R: tl.constexpr, W: tl.constexpr):
    """The sums over sums [rows, vectors, width] of vector number program_id(1)."""
    columns, vector = tl.program_id(0) * W + tl.arange(0, W), tl.program_id(1)
    there = columns < width
    total = tl.zeros([R, W], tl.float32)
    for begin in range(0, rows, R):
        row = begin + tl.arange(0, R)
        offsets = (row * vectors + vector)[:, None] * width + columns[None, :]
        total += tl.load(sums + offsets, mask=(row < rows)[:, None] & there[None, :], other=0.0)
    result = tl.sum(total, 0)
    if vector == 0:
        tl.store(first + columns, result.to(first.dtype.element_ty), mask=there)
    elif vector == 1:
        tl.store(second + columns, result.to(second.dtype.element_ty), mask=there)
    else:
        tl.store(third + columns, result.to(third.dtype.element_ty), mask=there)


def _add_up(sums: Tensor, *vectors: Tensor) -> None:
    """Write the sums of `sums`, float [programs, n, width], over the programs into one to three vectors; zeros where
    there are no programs."""
    programs, stride, width = sums.shape
    if width:
        _column_sums[(triton.cdiv(width, 32), len(vectors))](
            sums, *(*vectors, vectors[0], vectors[0])[:3], programs, stride, width, R=32, W=32, num_warps=4
        )


# Sizes of tiles, measured on an H100 with 12,833 tokens of widths 256 to 3,072. The backward kernels wait for memory
# and for sums over a row: the fewer warps share a row the better, with the next rows' loads under way (num_stages).


def _tile(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps: the whole width, and 2,048 elements or a row."""
    w = power(width)
    r = max(1, 2048 // w)
    return r, w, min(16, max(1, r * w // 512))


def _backward_tile(device: torch.device, width: int) -> dict[str, int]:
    """As `_tile`, for a program that goes over many rows, sums within each and has three tiles in each stage."""
    w = power(width)
    r = max(1, min(4, 2048 // w))
    stages = 3 if 3 * 3 * r * w * 4 <= shared_memory(device) * 3 // 4 else 1
    return dict(R=r, W=w, STAGES=stages, num_warps=min(16, max(1, r * w // 1024)))


def _programs(device: torch.device, most: int, each: int = 4, beside: int = 1) -> int:
    """How many programs share the rows: `each` for a multiprocessor, times `beside` others."""
    return min(most, max(1, multiprocessors(device) * each // beside))


def _check_type(op: str, x: Tensor, name: str) -> None:
    check(x.dtype in _TYPES, f"{op} on {x.device}: {name} must be float32, bfloat16 or float16; found {x.dtype}")


def _check_vector(vector: Tensor | None, name: str, x: Tensor) -> None:
    if vector is not None:
        check(vector.shape == x.shape[1:], f"{name} must have shape [{x.size(1)}]; found {list(vector.shape)}")
        check(vector.device == x.device, f"{name} must lie on x's device {x.device}; found {vector.device}")
        check(vector.is_floating_point(), f"{name} must be of floating point; found {vector.dtype}")


def _check_like(dout: Tensor, x: Tensor) -> None:
    check(
        dout.shape == x.shape and dout.dtype == x.dtype,
        f"the gradient of the output must have the output's dtype and shape {x.dtype} {list(x.shape)}; "
        f"found {dout.dtype} {list(dout.shape)}",
    )
