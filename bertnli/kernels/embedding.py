"""Embedding sums in Triton: the CUDA implementation of `bertnli::embed` and `bertnli::embed_norm`.

The tables' gradients are summed by atomic additions; all other sums have an order, see bertnli/kernels/norm.py.
"""

from __future__ import annotations

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
    check_saved,
    check_type,
    check_vector,
    count_programs,
    power,
    tile,
)
from bertnli.kernels.norm import kept_rows, norm_slope, normalized

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
    token,  # [vocabulary, width]
    segment,  # [kinds, width]
    position,  # [places, width]
    ids,  # int32 [tokens]
    segments,  # int32 [tokens]
    positions,  # int32 [tokens]
    out,  # [tokens, width]
    tokens, width, vocabulary, kinds, places, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    valid = row < tokens
    z = _embedded(
        token, segment, position, ids, segments, positions, row, valid, columns, width, vocabulary, kinds, places
    )
    offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + offsets, z.to(out.dtype.element_ty), mask=valid[:, None] & (columns < width)[None, :])


@triton.jit
def _scatter(
    dout,  # [tokens, width]
    ids,  # int32 [tokens]
    segments,  # int32 [tokens]
    positions,  # int32 [tokens]
    token,  # float32 [vocabulary, width], added to
    segment,  # float32 [kinds, width], added to
    position,  # float32 [places, width], added to
    tokens, width, vocabulary, kinds, places, R: tl.constexpr, W: tl.constexpr, FEW: tl.constexpr,
    TOKEN: tl.constexpr, SEGMENT: tl.constexpr, POSITION: tl.constexpr,
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


def embed(
    token_table: Tensor, segment_table: Tensor, position_table: Tensor, input_ids: Tensor, segment_ids: Tensor,
    positions: Tensor, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """The operator `bertnli::embed`. An id outside its table gives a row of NaN, since raising would wait."""
    inputs, sizes = _checked_tables([token_table, segment_table, position_table], [input_ids, segment_ids, positions])
    tokens, width = sizes[:2]
    out = token_table.new_empty((tokens, width))
    if out.numel():
        r, w, warps = tile(width)
        _embed[(triton.cdiv(tokens, r),)](*inputs, out, *sizes, R=r, W=w, num_warps=warps)
    return out


def embed_backward(
    dout: Tensor, input_ids: Tensor, segment_ids: Tensor, positions: Tensor, *rows_and_wanted: int
) -> tuple[Tensor, ...]:
    """The operator `bertnli::embed_backward`: by atomic additions, whose order and so whose last bits vary from run to
    run; after `torch.use_deterministic_algorithms(True)` by PyTorch's kernel, which sorts the ids and takes five times
    as long."""
    check_type("embed", dout, "the gradient of the output")
    check(dout.dim() == 2, f"the gradient of the output must have shape [tokens, width]; found {list(dout.shape)}")
    rows, wanted, (tokens, width) = rows_and_wanted[:3], rows_and_wanted[3:], dout.shape
    for name, x in (("input_ids", input_ids), ("segment_ids", segment_ids), ("positions", positions)):
        check_saved(x, name, (tokens,), dout, torch.int32)
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


# ---- embedding + LayerNorm + dropout ----


@triton.jit
def _embed_norm(
    token,  # [vocabulary, width]
    segment,  # [kinds, width]
    position,  # [places, width]
    ids,  # int32 [tokens]
    segments,  # int32 [tokens]
    positions,  # int32 [tokens]
    weight,  # [width]
    bias,  # [width]
    out,  # [tokens, width]
    mean,  # float32 [tokens]
    rstd,  # float32 [tokens]
    seed,  # int64 [2]; not read where BELOW is 0
    tokens, width, vocabulary, kinds, places, eps, keep_scale, R: tl.constexpr, W: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    valid, there = row < tokens, columns < width
    mask = valid[:, None] & there[None, :]
    z = _embedded(
        token, segment, position, ids, segments, positions, row, valid, columns, width, vocabulary, kinds, places
    )
    result, z_mean, z_rstd = normalized(z, mask, weight, bias, columns, there, width, eps)
    if BELOW > 0:
        result = tl.where(kept_rows(row, seed, W, BELOW), result * keep_scale, 0.0)
    tl.store(mean + row, z_mean, mask=valid)
    tl.store(rstd + row, z_rstd, mask=valid)
    offsets = row.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _embed_norm_backward(
    dout,  # [tokens, width]
    token,  # [vocabulary, width]
    segment,  # [kinds, width]
    position,  # [places, width]
    ids,  # int32 [tokens]
    segments,  # int32 [tokens]
    positions,  # int32 [tokens]
    weight,  # [width]
    mean,  # float32 [tokens]
    rstd,  # float32 [tokens]
    dz,  # float32 [tokens, width]
    sums,  # float32 [programs, 2, width]: each program's dweight and dbias
    seed,  # int64 [2]; not read where BELOW is 0
    tokens, width, vocabulary, kinds, places, keep_scale, R: tl.constexpr, W: tl.constexpr, STAGES: tl.constexpr,
    BELOW: tl.constexpr,
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
            d = tl.where(kept_rows(row, seed, W, BELOW), d * keep_scale, 0.0)
        d_z, normal = norm_slope(z, d, mask, scale, mean, rstd, row, valid, width)
        tl.store(dz + offsets, d_z, mask=mask)
        dweight += tl.sum(d * normal, 0)
        dbias += tl.sum(d, 0)
    to = sums + tl.program_id(0) * 2 * width + columns
    tl.store(to, dweight, mask=there)
    tl.store(to + width, dbias, mask=there)


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
        dtype == token_table.dtype or (token_table.dtype == torch.float32 and dtype in TYPES),
        f"dtype must be the tables', {token_table.dtype} (or of half precision where that is float32); found {dtype}",
    )
    for name, vector in (("weight", weight), ("bias", bias)):
        check_vector(vector, name, token_table)
    check_dropout(dropout_p, seed, token_table)
    out = token_table.new_empty((tokens, width), dtype=dtype)
    mean, rstd = (out.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    if tokens:
        r, w, warps = tile(width)
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
    for name, saved in (("mean", mean), ("rstd", rstd)):
        check_saved(saved, name, (tokens,), token_table)
    for name, vector in (("weight", weight), ("bias", bias)):
        check_vector(vector, name, token_table)
    check_dropout(dropout_p, seed, token_table)
    dz = token_table.new_empty((tokens, width), dtype=torch.float32)
    sizes_of_tile = backward_tile(dz.device, width)
    programs = count_programs(dz.device, triton.cdiv(tokens, sizes_of_tile["R"])) if tokens else 0
    sums = dz.new_empty((programs, 2, width))
    if tokens:
        _embed_norm_backward[(programs,)](
            dout.contiguous(), *inputs, weight.contiguous(), mean.contiguous(), rstd.contiguous(), dz, sums,
            mean if seed is None else seed.contiguous(), *sizes, 1 / (1 - dropout_p),
            BELOW=below(dropout_p), **sizes_of_tile,
        )  # fmt: skip
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    add_up(sums, dweight, dbias)
    return dz, dweight, dbias


# ---- checks ----


def _checked_tables(tables: list[Tensor], ids: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """All six tensors contiguous, and what a kernel wants to know of their sizes."""
    token_table, tokens = tables[0], len(ids[0])
    check_type("embed", token_table, "token_table")
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
