"""Varlen attention in Triton: the CUDA implementation of the operators `bertnli::varlen_attention*`.

A program has a tile of one sequence and one key/value head. The tile's rows are the pairs (query, head) of all query
heads that read this key/value head, so shared keys are loaded once and fill the tensor cores even where a sequence has
one query. Up to 128 rows and keys one tile holds the whole sequence: forward is one softmax, and one backward program
computes the scores once and writes all three gradients. A large batch has a launch for each size of tile, 32, 64 and
128, which takes the sequences of its size: the longest pair is often twice as long as most, and a tile twice as wide is
four times the work. Longer sequences loop: forward over blocks of keys with a running maximum, backward in one kernel
for the queries and one for the keys and values.

Widths above 256 bytes' worth of tile are cut into chunks; scores are summed over them and each chunk of an output
has a program of its own (a loop where one tile is the whole sequence).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertnli.kernels.philox import kept

_LOG2E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_RANKED = tl.constexpr(256)  # sequences that a program looks at together for those of its size
_SEEKERS = 4  # programs of a multiprocessor that look for their sequences
_CROWD = 1 << 22  # scores in the tiles of a batch from which on its sequences get tiles of several sizes


# ---- tiles ----


@triton.jit
def _dot(x, y, total, PRECISION: tl.constexpr):
    """total + x y, summed in float32."""
    if _INTERPRETED:  # it multiplies bfloat16's bit patterns; products of two bfloat16 are exact in float32
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def _load(x, offsets, valid, first, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Columns `first` to `first + CHUNK` of the rows at `offsets`, zeros where there are none: [rows, CHUNK]."""
    columns = first + tl.arange(0, CHUNK)
    mask = valid[:, None]
    if WIDTH % CHUNK:
        mask = mask & (columns < WIDTH)[None, :]
    return tl.load(x + offsets[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store(x, offsets, valid, first, value, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    columns = first + tl.arange(0, CHUNK)
    mask = valid[:, None]
    if WIDTH % CHUNK:
        mask = mask & (columns < WIDTH)[None, :]
    tl.store(x + offsets[:, None] + columns[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _products(
    x, x_first, x_offsets, x_valid, y, y_first, y_offsets, y_valid,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Every row of x times every row of y; x_first and y_first are their first chunks, loaded already."""
    total = tl.zeros([x_first.shape[0], y_first.shape[0]], tl.float32)
    total = _dot(x_first, tl.trans(y_first), total, PRECISION)
    for first in tl.static_range(CHUNK, WIDTH, CHUNK):
        a = _load(x, x_offsets, x_valid, first, WIDTH, CHUNK)
        b = _load(y, y_offsets, y_valid, first, WIDTH, CHUNK)
        total = _dot(a, tl.trans(b), total, PRECISION)
    return total


@triton.jit
def _rows(first, kv_head, queries, GROUP: tl.constexpr, M: tl.constexpr):
    """Of the tile's M rows: the query within the sequence, the head, and whether there is one."""
    row = first + tl.arange(0, M)
    query = row // GROUP
    return query, kv_head * GROUP + row % GROUP, query < queries


@triton.jit
def _is_of_size(rows, keys, ABOVE: tl.constexpr, SIZE: tl.constexpr):
    longest = tl.maximum(rows, keys)
    return (longest > ABOVE) & (longest <= SIZE)


@triton.jit
def _of_a_size(cu_q, cu_k, begin, sequences, GROUP: tl.constexpr, ABOVE: tl.constexpr, SIZE: tl.constexpr):
    """Of _RANKED sequences from `begin` on, those with more than ABOVE and at most SIZE rows or keys: each one's number
    among them, from 1, 0 for the others; and how many there are."""
    b = begin + tl.arange(0, _RANKED)
    mask = b < sequences
    queries = tl.load(cu_q + b + 1, mask=mask, other=0) - tl.load(cu_q + b, mask=mask, other=0)
    keys = tl.load(cu_k + b + 1, mask=mask, other=0) - tl.load(cu_k + b, mask=mask, other=0)
    chosen = _is_of_size(queries * GROUP, keys, ABOVE, SIZE).to(tl.int32)
    return tl.cumsum(chosen, 0) * chosen, tl.sum(chosen, 0)


@triton.jit
def _numbered(rank, number):
    """Which of the sequences has this number."""
    return tl.sum(tl.where(rank == number, tl.arange(0, _RANKED), 0), 0)


@triton.jit
def _kept(b, head, query, first_key, seed, N: tl.constexpr, BELOW: tl.constexpr):
    """The documented mask of rows (query, head) and N keys: bool [rows, N]."""
    group = first_key // 4 + tl.arange(0, N // 4)
    return kept(b + head[:, None] * 0, head[:, None], query[:, None], group[None, :], seed, BELOW)


# ---- kernels ----
# Shapes: q [Tq, heads, D], k [T, kv_heads, D], v [T, kv_heads, D_V]; out, dout's like [Tq, heads, D_V], out contiguous;
# weight_sum, lse (of base 2), delta float [Tq, heads]. *_t and *_h are strides of tokens and heads in elements.


@triton.jit
def _forward(
    q, k, v, out, weight_sum, lse, cu_q, cu_k, seed,
    q_t, q_h, k_t, k_h, v_t, v_h, sequences, kv_heads, scale, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ABOVE: tl.constexpr, RANKED: tl.constexpr, WHOLE: tl.constexpr,
    BELOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    if not RANKED:
        b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
        first_row = tl.program_id(1) * M
        rows, keys = (tl.load(cu_q + b + 1) - tl.load(cu_q + b)) * GROUP, tl.load(cu_k + b + 1) - tl.load(cu_k + b)
        here = first_row < rows
        if ABOVE >= 0:
            here = here & _is_of_size(rows, keys, ABOVE, N)
        if here:
            _forward_tile(
                b, kv_head, first_row, q, k, v, out, weight_sum, lse, cu_q, cu_k, seed,
                q_t, q_h, k_t, k_h, v_t, v_h, kv_heads, scale, keep_scale,
                GROUP, D, D_V, CHUNK, CHUNK_V, M, N, WHOLE, BELOW, PRECISION,
            )  # fmt: skip
    else:
        first = tl.program_id(0)  # of this program's tiles among those of the next sequences
        for begin in range(0, sequences, _RANKED):
            rank, count = _of_a_size(cu_q, cu_k, begin, sequences, GROUP, ABOVE, N)
            tiles, programs = count * kv_heads, tl.num_programs(0)
            for i in range(first, tiles, programs):
                _forward_tile(
                    begin + _numbered(rank, i // kv_heads + 1), i % kv_heads, 0,
                    q, k, v, out, weight_sum, lse, cu_q, cu_k, seed,
                    q_t, q_h, k_t, k_h, v_t, v_h, kv_heads, scale, keep_scale,
                    GROUP, D, D_V, CHUNK, CHUNK_V, M, N, WHOLE, BELOW, PRECISION,
                )  # fmt: skip
            first = (first + programs - tiles % programs) % programs


@triton.jit
def _forward_tile(
    b, kv_head, first_row, q, k, v, out, weight_sum, lse, cu_q, cu_k, seed,
    q_t, q_h, k_t, k_h, v_t, v_h, kv_heads, scale, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, BELOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """M rows of one sequence and key/value head, and chunk number program_id(2) of the output's width."""
    first_v = tl.program_id(2) * CHUNK_V
    q_begin, k_begin = tl.load(cu_q + b), tl.load(cu_k + b)
    queries, keys = tl.load(cu_q + b + 1) - q_begin, tl.load(cu_k + b + 1) - k_begin
    query, head, valid = _rows(first_row, kv_head, queries, GROUP, M)
    token = q_begin.to(tl.int64) + query
    q_offsets = token * q_t + head * q_h
    q_first = _load(q, q_offsets, valid, 0, D, CHUNK)

    top = tl.full([M], float("-inf"), tl.float32)  # of the scores so far
    total = tl.zeros([M], tl.float32)  # of 2 ** (score - top)
    after = tl.zeros([M], tl.float32)  # the same of the weights that dropout keeps
    sums = tl.zeros([M, CHUNK_V], tl.float32)
    for first in range(0, N if WHOLE else keys, N):
        key = first + tl.arange(0, N)
        there = key < keys
        k_offsets = (k_begin.to(tl.int64) + key) * k_t + kv_head * k_h
        v_offsets = (k_begin.to(tl.int64) + key) * v_t + kv_head * v_h
        k_first = _load(k, k_offsets, there, 0, D, CHUNK)
        scores = _products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
        scores = tl.where(there[None, :], scores * (scale * _LOG2E), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        reference = tl.where(higher == float("-inf"), 0.0, higher)  # a sequence without keys
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(top - reference)
        total = total * shrink + tl.sum(weights, 1)
        if BELOW > 0:
            weights = tl.where(_kept(b, head, query, first, seed, N, BELOW), weights, 0.0)
            after = after * shrink + tl.sum(weights, 1)
        values = _load(v, v_offsets, there, first_v, D_V, CHUNK_V)
        sums = _dot(weights.to(values.dtype), values, sums * shrink[:, None], PRECISION)
        top = higher

    some = total > 0
    inverse = tl.where(some, keep_scale / tl.where(some, total, 1.0), 0.0)
    heads = kv_heads * GROUP
    row = token * heads + head
    _store(out, row * D_V, valid, first_v, sums * inverse[:, None], D_V, CHUNK_V)
    if first_v == 0:
        tl.store(weight_sum + row, (after if BELOW > 0 else total) * inverse, mask=valid)
        tl.store(lse + row, tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), 0.0), mask=valid)


@triton.jit
def _slopes(
    scores, dweights, lse, there, b, head, query, first, seed, scale, keep_scale,
    N: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    """From scores and dout . v: softmax's weights P, the weights after dropout, and the gradient of the latter times
    the dropout factor, all [M, N]."""
    weights = tl.where(there, tl.exp2(scores * (scale * _LOG2E) - lse[:, None]), 0.0)
    after = weights
    if BELOW > 0:
        mask = _kept(b, head, query, first, seed, N, BELOW)
        after = tl.where(mask, weights * keep_scale, 0.0)
        dweights = tl.where(mask, dweights * keep_scale, 0.0)
    return weights, after, dweights


@triton.jit
def _backward_whole(
    dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed,
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dq_t, dq_h, dk_t, dk_h, dv_t, dv_h, sequences, kv_heads, scale, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ABOVE: tl.constexpr, RANKED: tl.constexpr, BELOW: tl.constexpr,
    HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    if not RANKED:
        b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
        rows, keys = (tl.load(cu_q + b + 1) - tl.load(cu_q + b)) * GROUP, tl.load(cu_k + b + 1) - tl.load(cu_k + b)
        if _is_of_size(rows, keys, ABOVE, M if M > N else N):
            _backward_tile(
                b, kv_head, dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed, o_t, o_h, q_t, q_h, k_t, k_h,
                v_t, v_h, dq_t, dq_h, dk_t, dk_h, dv_t, dv_h, kv_heads, scale, keep_scale,
                GROUP, D, D_V, CHUNK, CHUNK_V, M, N, BELOW, HAS_DSUM, PRECISION,
            )  # fmt: skip
    else:
        first = tl.program_id(0)  # of this program's tiles among those of the next sequences
        for begin in range(0, sequences, _RANKED):
            rank, count = _of_a_size(cu_q, cu_k, begin, sequences, GROUP, ABOVE, N)
            tiles, programs = count * kv_heads, tl.num_programs(0)
            for i in range(first, tiles, programs):
                _backward_tile(
                    begin + _numbered(rank, i // kv_heads + 1), i % kv_heads,
                    dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed, o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h,
                    dq_t, dq_h, dk_t, dk_h, dv_t, dv_h, kv_heads, scale, keep_scale,
                    GROUP, D, D_V, CHUNK, CHUNK_V, M, N, BELOW, HAS_DSUM, PRECISION,
                )  # fmt: skip
            first = (first + programs - tiles % programs) % programs


@triton.jit
def _backward_tile(
    b, kv_head, dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed,
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dq_t, dq_h, dk_t, dk_h, dv_t, dv_h, kv_heads, scale, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BELOW: tl.constexpr, HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of one sequence and key/value head that fit one tile."""
    q_begin, k_begin = tl.load(cu_q + b), tl.load(cu_k + b)
    queries, keys = tl.load(cu_q + b + 1) - q_begin, tl.load(cu_k + b + 1) - k_begin
    query, head, valid = _rows(0, kv_head, queries, GROUP, M)
    token = q_begin.to(tl.int64) + query
    row = token * (kv_heads * GROUP) + head
    key = tl.arange(0, N)
    there = key < keys
    k_token = k_begin.to(tl.int64) + key
    q_offsets, o_offsets = token * q_t + head * q_h, token * o_t + head * o_h
    k_offsets, v_offsets = k_token * k_t + kv_head * k_h, k_token * v_t + kv_head * v_h
    q_first, k_first = _load(q, q_offsets, valid, 0, D, CHUNK), _load(k, k_offsets, there, 0, D, CHUNK)
    o_first, v_first = _load(dout, o_offsets, valid, 0, D_V, CHUNK_V), _load(v, v_offsets, there, 0, D_V, CHUNK_V)

    scores = _products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
    dweights = _products(dout, o_first, o_offsets, valid, v, v_first, v_offsets, there, D_V, CHUNK_V, PRECISION)
    if HAS_DSUM:
        dweights += tl.load(dsum + row, mask=valid, other=0.0)[:, None]
    weights, after, dweights = _slopes(
        scores, dweights, tl.load(lse + row, mask=valid, other=0.0), valid[:, None] & there[None, :],
        b, head, query, 0, seed, scale, keep_scale, N, BELOW,
    )  # fmt: skip
    delta = tl.sum(weights * dweights, 1)
    dscores = (weights * (dweights - delta[:, None]) * scale).to(q_first.dtype)
    after = after.to(q_first.dtype)

    dq_offsets, dk_offsets = token * dq_t + head * dq_h, k_token * dk_t + kv_head * dk_h
    for first in tl.static_range(0, D, CHUNK):
        if first > 0:
            q_first = _load(q, q_offsets, valid, first, D, CHUNK)
            k_first = _load(k, k_offsets, there, first, D, CHUNK)
        _store(
            dq, dq_offsets, valid, first, _dot(dscores, k_first, tl.zeros([M, CHUNK], tl.float32), PRECISION), D, CHUNK
        )
        _store(
            dk,
            dk_offsets,
            there,
            first,
            _dot(tl.trans(dscores), q_first, tl.zeros([N, CHUNK], tl.float32), PRECISION),
            D,
            CHUNK,
        )
    dv_offsets = k_token * dv_t + kv_head * dv_h
    for first in tl.static_range(0, D_V, CHUNK_V):
        if first > 0:
            o_first = _load(dout, o_offsets, valid, first, D_V, CHUNK_V)
        _store(
            dv,
            dv_offsets,
            there,
            first,
            _dot(tl.trans(after), o_first, tl.zeros([N, CHUNK_V], tl.float32), PRECISION),
            D_V,
            CHUNK_V,
        )


@triton.jit
def _backward_queries(
    dout, dsum, q, k, v, out, weight_sum, lse, delta, dq, cu_q, cu_k, seed,
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dq_t, dq_h, kv_heads, scale, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BELOW: tl.constexpr, HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of M rows, and their delta, the weights' mean gradient, for _backward_keys."""
    b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    first_row, first_d = tl.program_id(1) * M, tl.program_id(2) * CHUNK
    q_begin, k_begin = tl.load(cu_q + b), tl.load(cu_k + b)
    queries, keys = tl.load(cu_q + b + 1) - q_begin, tl.load(cu_k + b + 1) - k_begin
    if first_row >= queries * GROUP:
        return
    query, head, valid = _rows(first_row, kv_head, queries, GROUP, M)
    token = q_begin.to(tl.int64) + query
    row = token * (kv_heads * GROUP) + head
    q_offsets, o_offsets = token * q_t + head * q_h, token * o_t + head * o_h
    q_first, o_first = _load(q, q_offsets, valid, 0, D, CHUNK), _load(dout, o_offsets, valid, 0, D_V, CHUNK_V)
    mean = tl.zeros([M], tl.float32)
    for first in tl.static_range(0, D_V, CHUNK_V):
        part = _load(dout, o_offsets, valid, first, D_V, CHUNK_V).to(tl.float32)
        mean += tl.sum(part * _load(out, row * D_V, valid, first, D_V, CHUNK_V).to(tl.float32), 1)
    dsums = tl.zeros([M], tl.float32)
    if HAS_DSUM:
        dsums = tl.load(dsum + row, mask=valid, other=0.0)
        mean += dsums * tl.load(weight_sum + row, mask=valid, other=0.0)
    if first_d == 0:
        tl.store(delta + row, mean, mask=valid)
    row_lse = tl.load(lse + row, mask=valid, other=0.0)

    sums = tl.zeros([M, CHUNK], tl.float32)
    for first in range(0, keys, N):
        key = first + tl.arange(0, N)
        there = key < keys
        k_token = k_begin.to(tl.int64) + key
        k_offsets, v_offsets = k_token * k_t + kv_head * k_h, k_token * v_t + kv_head * v_h
        k_first, v_first = _load(k, k_offsets, there, 0, D, CHUNK), _load(v, v_offsets, there, 0, D_V, CHUNK_V)
        scores = _products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
        dweights = _products(dout, o_first, o_offsets, valid, v, v_first, v_offsets, there, D_V, CHUNK_V, PRECISION)
        weights, _, dweights = _slopes(
            scores, dweights + dsums[:, None], row_lse, valid[:, None] & there[None, :],
            b, head, query, first, seed, scale, keep_scale, N, BELOW,
        )  # fmt: skip
        dscores = (weights * (dweights - mean[:, None]) * scale).to(k_first.dtype)
        if D > CHUNK:
            k_first = _load(k, k_offsets, there, first_d, D, CHUNK)
        sums = _dot(dscores, k_first, sums, PRECISION)
    _store(dq, token * dq_t + head * dq_h, valid, first_d, sums, D, CHUNK)


@triton.jit
def _backward_keys(
    dout, dsum, q, k, v, lse, delta, dk, dv, cu_q, cu_k, seed,
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dk_t, dk_h, dv_t, dv_h, kv_heads, scale, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BELOW: tl.constexpr, HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of N keys; a program has chunk number program_id(2) of both widths."""
    b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    first_key, chunk = tl.program_id(1) * N, tl.program_id(2)
    q_begin, k_begin = tl.load(cu_q + b), tl.load(cu_k + b)
    queries, keys = tl.load(cu_q + b + 1) - q_begin, tl.load(cu_k + b + 1) - k_begin
    if first_key >= keys:
        return
    key = first_key + tl.arange(0, N)
    there = key < keys
    k_token = k_begin.to(tl.int64) + key
    k_offsets, v_offsets = k_token * k_t + kv_head * k_h, k_token * v_t + kv_head * v_h
    k_first, v_first = _load(k, k_offsets, there, 0, D, CHUNK), _load(v, v_offsets, there, 0, D_V, CHUNK_V)

    dk_sums, dv_sums = tl.zeros([N, CHUNK], tl.float32), tl.zeros([N, CHUNK_V], tl.float32)
    for first in range(0, queries * GROUP, M):
        query, head, valid = _rows(first, kv_head, queries, GROUP, M)
        token = q_begin.to(tl.int64) + query
        row = token * (kv_heads * GROUP) + head
        q_offsets, o_offsets = token * q_t + head * q_h, token * o_t + head * o_h
        q_first, o_first = _load(q, q_offsets, valid, 0, D, CHUNK), _load(dout, o_offsets, valid, 0, D_V, CHUNK_V)
        scores = _products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
        dweights = _products(dout, o_first, o_offsets, valid, v, v_first, v_offsets, there, D_V, CHUNK_V, PRECISION)
        if HAS_DSUM:
            dweights += tl.load(dsum + row, mask=valid, other=0.0)[:, None]
        weights, after, dweights = _slopes(
            scores, dweights, tl.load(lse + row, mask=valid, other=0.0), valid[:, None] & there[None, :],
            b, head, query, first_key, seed, scale, keep_scale, N, BELOW,
        )  # fmt: skip
        mean = tl.load(delta + row, mask=valid, other=0.0)
        dscores = (weights * (dweights - mean[:, None]) * scale).to(q_first.dtype)
        after = after.to(q_first.dtype)
        if D > CHUNK:
            q_first = _load(q, q_offsets, valid, chunk * CHUNK, D, CHUNK)
        if D_V > CHUNK_V:
            o_first = _load(dout, o_offsets, valid, chunk * CHUNK_V, D_V, CHUNK_V)
        dk_sums = _dot(tl.trans(dscores), q_first, dk_sums, PRECISION)
        dv_sums = _dot(tl.trans(after), o_first, dv_sums, PRECISION)
    if chunk * CHUNK < D:
        _store(dk, k_token * dk_t + kv_head * dk_h, there, chunk * CHUNK, dk_sums, D, CHUNK)
    if chunk * CHUNK_V < D_V:
        _store(dv, k_token * dv_t + kv_head * dv_h, there, chunk * CHUNK_V, dv_sums, D_V, CHUNK_V)


# ---- launchers ----


class _Plan:
    """Sizes of one call's tiles: what both passes decide from shapes alone, never from values on the device."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, sequences: int, max_q: int, max_k: int) -> None:
        width = max(q.size(2), v.size(2))
        self.group, self.element_size = q.size(1) // k.size(1), q.element_size()
        half = self.element_size == 2  # float32's three products need the registers
        most = 256 if half else 64  # columns of a chunk
        self.chunk, self.chunk_v = (_chunk(n, most) for n in (q.size(2), v.size(2)))
        bytes_of_a_row = max(self.chunk, self.chunk_v) * self.element_size
        longest, budget = (128, _tile_bytes(q.device)) if half else (64, 16 << 10)
        rows, keys = power(max_q * self.group), power(max_k)
        self.whole_keys = keys <= longest and keys * bytes_of_a_row <= budget
        self.whole = self.whole_keys and rows <= longest and rows * bytes_of_a_row <= budget
        max_tokens_read = power(min(longest if width <= 128 else 64, budget // bytes_of_a_row // 2))
        # forward: M rows by N keys; backward: the whole tile, or BM rows by BN keys
        self.m = rows if self.whole else min(rows, max_tokens_read)
        self.n = keys if self.whole_keys else min(64, max_tokens_read)
        self.bm, self.bn = min(rows, 64, max_tokens_read), min(keys, 64, max_tokens_read)
        self.row_blocks = triton.cdiv(max_q * self.group, self.m)
        self.backward_row_blocks = triton.cdiv(max_q * self.group, self.bm)
        self.key_blocks = triton.cdiv(max_k, self.bn)
        # Of each launch: programs, and M, N, ABOVE, RANKED (see the kernels).
        tiles = sequences * k.size(1)
        self.launches = [(tiles, self.m, self.n, -1, False)]
        if self.whole and rows == keys > 32 and tiles * rows * keys > _CROWD:
            # A program of 128 keys has a multiprocessor nearly to itself. Such sequences are few: some programs look
            # for them, where thousands would begin and end for nothing. Smaller ones are faster without that loop.
            few = min(tiles, _SEEKERS * multiprocessors(q.device))
            self.launches = [(tiles, 32, 32, 0, False), (tiles, 64, 64, 32, False), (few, 128, 128, 64, True)]
            self.launches = self.launches[: 2 if rows == 64 else 3]
        # Loops are pipelined where a block is one chunk: every chunk would have buffers of its own.
        self.stages = 1 if width > min(self.chunk, self.chunk_v) else 2

    def warps(self, m: int, n: int, most: int) -> int:
        """Of a program whose tile has m rows and n keys."""
        elements = max(m * n, max(m, n) * max(self.chunk, self.chunk_v))
        return min(most, max(1, elements * self.element_size // 2048))

    def constants(self, q: Tensor, v: Tensor, dropout_p: float) -> dict[str, Any]:
        # Three products in tf32 are as exact as one in float32, whose unrolled loops do not fit the registers.
        highest = torch.get_float32_matmul_precision() == "highest"
        return dict(
            GROUP=self.group, D=q.size(2), D_V=v.size(2), CHUNK=self.chunk, CHUNK_V=self.chunk_v,
            BELOW=below(dropout_p), PRECISION="tf32x3" if highest else "tf32",
        )  # fmt: skip


def power(n: int) -> int:
    """A tile's size that holds n: a power of 2, at least 16."""
    return max(16, int(triton.next_power_of_2(n)))


def _chunk(width: int, most: int) -> int:
    """Columns that a tile takes at a time: the whole width where it fits, else what wastes least."""
    if power(width) <= most:
        return power(width)
    return most if width % most == 0 else min(most, 128)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have of a multiprocessor's memory."""
    if device.type != "cuda":
        return 227 << 10
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def _tile_bytes(device: torch.device) -> int:
    """What one of a kernel's four input tiles may take of the shared memory."""
    return 32 << 10 if shared_memory(device) >= 160 << 10 else 16 << 10


def _checked(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, dropout_p: float,
    scale: float, seed: Tensor | None,
) -> None:  # fmt: skip
    """What can be checked without waiting for the device: shapes and dtypes, not the values of cu_seqlens."""
    for name, x, shape in (("q", q, "[query tokens, heads, d]"), ("k", k, "[tokens, kv_heads, d]"), ("v", v, "k's")):
        check(x.dim() == 3, f"{name} must have shape {shape}; found {list(x.shape)}")
        check(x.dtype == q.dtype, f"{name} must have q's dtype {q.dtype}; found {x.dtype}")
        check(x.device == q.device, f"{name} must lie on q's device {q.device}; found {x.device}")
    check(
        q.dtype in (torch.float32, torch.bfloat16, torch.float16),
        f"varlen_attention on {q.device}: q must be float32, bfloat16 or float16; found {q.dtype}",
    )
    check(k.size(2) == q.size(2), f"k must have q's width {q.size(2)}; found {k.size(2)}")
    check(
        v.shape[:2] == k.shape[:2],
        f"v must have k's tokens and heads {list(k.shape[:2])}; found {list(v.shape)}",
    )
    check(
        k.size(1) > 0 and q.size(1) % k.size(1) == 0,
        f"k's number of heads must divide q's, {q.size(1)}; found {k.size(1)}",
    )
    for name, cu in (("cu_seqlens", cu_k), ("cu_seqlens_q", cu_q)):
        check(cu.dim() == 1 and len(cu) >= 1, f"{name} must have shape [batch + 1]; found {list(cu.shape)}")
        check(cu.dtype == torch.int32, f"{name} must be int32; found {cu.dtype}")
        check(cu.device == q.device, f"{name} must lie on q's device {q.device}; found {cu.device}")
    check(len(cu_q) == len(cu_k), f"cu_seqlens_q must have cu_seqlens's length {len(cu_k)}; found {len(cu_q)}")
    check(min(max_q, max_k) >= 0, f"max_seqlen must not be negative; found {max_q} and {max_k}")
    check(0 < scale < float("inf"), f"scale must be positive and finite; found {scale}")
    check_dropout(dropout_p, seed, q)


def check_dropout(dropout_p: float, seed: Tensor | None, neighbour: Tensor) -> None:
    check(0 <= dropout_p < 1, f"dropout_p must be at least 0 and below 1; found {dropout_p}")
    if dropout_p > 0:
        check(seed is not None, "seed must be given where dropout_p is above 0")
        assert seed is not None
        check(
            seed.shape == (2,) and seed.dtype == torch.int64 and seed.device == neighbour.device,
            f"seed must be an int64 tensor of shape [2] on {neighbour.device}; "
            f"found {seed.dtype} {list(seed.shape)} on {seed.device}",
        )


def below(dropout_p: float) -> int:
    """Words below this number are dropped."""
    return max(1, int(dropout_p * 2**32)) if dropout_p > 0 else 0


def check(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def _dense(x: Tensor) -> Tensor:
    """With a contiguous width; other strides are free."""
    return x if x.size(-1) <= 1 or x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, dropout_p: float,
    scale: float, seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `bertnli::varlen_attention`; its lse is of base 2."""
    _checked(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, scale, seed)
    q, k, v, cu_q, cu_k = _dense(q), _dense(k), _dense(v), cu_q.contiguous(), cu_k.contiguous()
    out = q.new_empty((*q.shape[:2], v.size(2)))
    weight_sum, lse = (q.new_empty(q.shape[:2], dtype=torch.float32) for _ in range(2))
    if len(cu_k) > 1 and q.numel():
        plan = _Plan(q, k, v, len(cu_k) - 1, max_q, max_k)
        constants = plan.constants(q, v, dropout_p) | dict(WHOLE=plan.whole_keys)
        constants["num_stages"] = 1 if plan.whole_keys else plan.stages
        for programs, m, n, above, ranked in plan.launches:
            _forward[(programs, plan.row_blocks, triton.cdiv(v.size(2), plan.chunk_v))](
                q, k, v, out, weight_sum, lse, cu_q, cu_k, cu_k if seed is None else seed.contiguous(),
                *_strides(q, k, v), len(cu_k) - 1, k.size(1), scale, 1 / (1 - dropout_p),
                M=m, N=n, ABOVE=above, RANKED=ranked, num_warps=plan.warps(m, n, 8 if ranked else 4), **constants,
            )  # fmt: skip
    return out, weight_sum, lse


def backward_into(
    dq: Tensor, dk: Tensor, dv: Tensor, dout: Tensor, dweight_sum: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    out: Tensor, weight_sum: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
    dropout_p: float, scale: float, seed: Tensor | None,
) -> None:  # fmt: skip
    """Write the gradients into dq, dk and dv, tensors or views of the inputs' shapes."""
    _checked(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, scale, seed)
    check(
        dout.shape == out.shape and dout.dtype == out.dtype,
        f"the gradient of the output must have the output's dtype and shape {out.dtype} {list(out.shape)}; "
        f"found {dout.dtype} {list(dout.shape)}",
    )
    if len(cu_k) == 1 or not (q.numel() and k.numel()):
        for x in (dq, dk, dv):
            x.zero_()
        return
    q, k, v, dout, cu_q, cu_k = _dense(q), _dense(k), _dense(v), _dense(dout), cu_q.contiguous(), cu_k.contiguous()
    dsum = lse if dweight_sum is None else dweight_sum.float().contiguous()
    batch, kv_heads = len(cu_k) - 1, k.size(1)
    plan = _Plan(q, k, v, batch, max_q, max_k)
    seed = cu_k if seed is None else seed.contiguous()
    numbers = (kv_heads, scale, 1 / (1 - dropout_p))
    constants = plan.constants(q, v, dropout_p) | dict(HAS_DSUM=dweight_sum is not None)
    if plan.whole:
        for programs, m, n, above, ranked in plan.launches:
            _backward_whole[(programs,)](
                dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed,
                *_strides(dout, q, k, v, dq, dk, dv), batch, *numbers,
                M=m, N=n, ABOVE=above, RANKED=ranked, num_warps=plan.warps(m, n, 8), num_stages=1, **constants,
            )  # fmt: skip
        return
    constants |= dict(M=plan.bm, N=plan.bn, num_warps=plan.warps(plan.bm, plan.bn, 8), num_stages=plan.stages)
    delta = torch.empty_like(lse)
    chunks, chunks_v = triton.cdiv(q.size(2), plan.chunk), triton.cdiv(v.size(2), plan.chunk_v)
    _backward_queries[(batch * kv_heads, plan.backward_row_blocks, chunks)](
        dout, dsum, q, k, v, out, weight_sum, lse, delta, dq, cu_q, cu_k, seed,
        *_strides(dout, q, k, v, dq), *numbers, **constants,
    )  # fmt: skip
    _backward_keys[(batch * kv_heads, plan.key_blocks, max(chunks, chunks_v))](
        dout, dsum, q, k, v, lse, delta, dk, dv, cu_q, cu_k, seed,
        *_strides(dout, q, k, v, dk, dv), *numbers, **constants,
    )  # fmt: skip


def backward(
    dout: Tensor, dweight_sum: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `bertnli::varlen_attention_backward`."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    backward_into(dq, dk, dv, dout, dweight_sum, q, k, v, *rest)
    return dq, dk, dv


def packed_forward(
    qkv: Tensor, cu: Tensor, max_seqlen: int, dropout_p: float, scale: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `bertnli::varlen_attention_packed`."""
    check(qkv.dim() == 4 and qkv.size(1) == 3, f"qkv must have shape [tokens, 3, heads, d]; found {list(qkv.shape)}")
    q, k, v = qkv.unbind(1)
    return forward(q, k, v, cu, cu, max_seqlen, max_seqlen, dropout_p, scale, seed)


def packed_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, weight_sum: Tensor, lse: Tensor, cu: Tensor, max_seqlen: int,
    dropout_p: float, scale: float, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """The operator `bertnli::varlen_attention_packed_backward`."""
    dqkv = qkv.new_empty(qkv.shape)
    (dq, dk, dv), (q, k, v) = dqkv.unbind(1), qkv.unbind(1)
    backward_into(
        dq, dk, dv, dout, None, q, k, v, out, weight_sum, lse, cu, cu, max_seqlen, max_seqlen, dropout_p, scale, seed
    )
    return dqkv
