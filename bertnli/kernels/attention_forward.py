"""The forward kernels of attention. bertnli/kernels/attention.py says how the work is cut into tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from bertnli.kernels.attention_tiles import (
    LOG2E,
    RANKED_TOGETHER,
    dot,
    is_of_size,
    kept_weights,
    load,
    numbered,
    of_a_size,
    products,
    rows_of_tile,
    store,
)


@triton.jit
def forward_kernel(
    q,  # [Tq, heads, D], strides q_t and q_h
    k,  # [T, kv_heads, D], strides k_t and k_h
    v,  # [T, kv_heads, D_V], strides v_t and v_h
    out,  # [Tq, heads, D_V], contiguous
    weight_sum,  # float32 [Tq, heads]
    lse,  # float32 [Tq, heads], log2 of the sum of a row's 2 ** score
    cu_q,  # int32 [sequences + 1]
    cu_k,  # int32 [sequences + 1]
    seed,  # int64 [2]; not read where BELOW is 0
    q_t, q_h, k_t, k_h, v_t, v_h, sequences, kv_heads, scale, keep_scale, GROUP: tl.constexpr, D: tl.constexpr,
    D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    ABOVE: tl.constexpr, RANKED: tl.constexpr, WHOLE: tl.constexpr, BELOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile for each program, or where RANKED each program's share of the tiles of one size."""
    if not RANKED:
        b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
        first_row = tl.program_id(1) * M
        rows, keys = (tl.load(cu_q + b + 1) - tl.load(cu_q + b)) * GROUP, tl.load(cu_k + b + 1) - tl.load(cu_k + b)
        here = first_row < rows
        if ABOVE >= 0:
            here = here & is_of_size(rows, keys, ABOVE, N)
        if here:
            _forward_tile(
                b, kv_head, first_row, q, k, v, out, weight_sum, lse, cu_q, cu_k, seed,
                q_t, q_h, k_t, k_h, v_t, v_h, kv_heads, scale, keep_scale,
                GROUP, D, D_V, CHUNK, CHUNK_V, M, N, WHOLE, BELOW, PRECISION,
            )  # fmt: skip
    else:
        first = tl.program_id(0)  # of this program's tiles among those of the next sequences
        for begin in range(0, sequences, RANKED_TOGETHER):
            rank, count = of_a_size(cu_q, cu_k, begin, sequences, GROUP, ABOVE, N)
            tiles, programs = count * kv_heads, tl.num_programs(0)
            for i in range(first, tiles, programs):
                _forward_tile(
                    begin + numbered(rank, i // kv_heads + 1), i % kv_heads, 0,
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
    query, head, valid = rows_of_tile(first_row, kv_head, queries, GROUP, M)
    token = q_begin.to(tl.int64) + query
    q_offsets = token * q_t + head * q_h
    q_first = load(q, q_offsets, valid, 0, D, CHUNK)

    top = tl.full([M], float("-inf"), tl.float32)  # of the scores so far
    total = tl.zeros([M], tl.float32)  # of 2 ** (score - top)
    after = tl.zeros([M], tl.float32)  # the same of the weights that dropout keeps
    sums = tl.zeros([M, CHUNK_V], tl.float32)
    for first in range(0, N if WHOLE else keys, N):
        key = first + tl.arange(0, N)
        there = key < keys
        k_offsets = (k_begin.to(tl.int64) + key) * k_t + kv_head * k_h
        v_offsets = (k_begin.to(tl.int64) + key) * v_t + kv_head * v_h
        k_first = load(k, k_offsets, there, 0, D, CHUNK)
        scores = products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
        scores = tl.where(there[None, :], scores * (scale * LOG2E), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        reference = tl.where(higher == float("-inf"), 0.0, higher)  # a sequence without keys
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(top - reference)
        total = total * shrink + tl.sum(weights, 1)
        if BELOW > 0:
            weights = tl.where(kept_weights(b, head, query, first, seed, N, BELOW), weights, 0.0)
            after = after * shrink + tl.sum(weights, 1)
        values = load(v, v_offsets, there, first_v, D_V, CHUNK_V)
        sums = dot(weights.to(values.dtype), values, sums * shrink[:, None], PRECISION)
        top = higher

    some = total > 0
    inverse = tl.where(some, keep_scale / tl.where(some, total, 1.0), 0.0)
    heads = kv_heads * GROUP
    row = token * heads + head
    store(out, row * D_V, valid, first_v, sums * inverse[:, None], D_V, CHUNK_V)
    if first_v == 0:
        tl.store(weight_sum + row, (after if BELOW > 0 else total) * inverse, mask=valid)
        tl.store(lse + row, tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), 0.0), mask=valid)
