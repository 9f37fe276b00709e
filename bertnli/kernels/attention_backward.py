"""The backward kernels of attention. bertnli/kernels/attention.py says how the work is cut into tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from bertnli.kernels.attention_tiles import (
    RANKED_TOGETHER,
    dot,
    is_of_size,
    load,
    numbered,
    of_a_size,
    products,
    rows_of_tile,
    slopes,
    store,
)


@triton.jit
def backward_whole_kernel(
    dout,  # [Tq, heads, D_V], strides o_t and o_h
    dsum,  # float32 [Tq, heads], gradient of weight_sum; not read without HAS_DSUM
    q,  # [Tq, heads, D], strides q_t and q_h
    k,  # [T, kv_heads, D], strides k_t and k_h
    v,  # [T, kv_heads, D_V], strides v_t and v_h
    lse,  # float32 [Tq, heads], log2 of the sum of a row's 2 ** score
    dq,  # [Tq, heads, D], strides dq_t and dq_h
    dk,  # [T, kv_heads, D], strides dk_t and dk_h
    dv,  # [T, kv_heads, D_V], strides dv_t and dv_h
    cu_q,  # int32 [sequences + 1]
    cu_k,  # int32 [sequences + 1]
    seed,  # int64 [2]; not read where BELOW is 0
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dq_t, dq_h, dk_t, dk_h, dv_t, dv_h, sequences, kv_heads, scale,
    keep_scale, GROUP: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ABOVE: tl.constexpr, RANKED: tl.constexpr, BELOW: tl.constexpr,
    HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients, where a tile holds a whole sequence: the programs are those of forward_kernel."""
    if not RANKED:
        b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
        rows, keys = (tl.load(cu_q + b + 1) - tl.load(cu_q + b)) * GROUP, tl.load(cu_k + b + 1) - tl.load(cu_k + b)
        if is_of_size(rows, keys, ABOVE, M if M > N else N):
            _backward_tile(
                b, kv_head, dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed, o_t, o_h, q_t, q_h, k_t, k_h,
                v_t, v_h, dq_t, dq_h, dk_t, dk_h, dv_t, dv_h, kv_heads, scale, keep_scale,
                GROUP, D, D_V, CHUNK, CHUNK_V, M, N, BELOW, HAS_DSUM, PRECISION,
            )  # fmt: skip
    else:
        first = tl.program_id(0)  # of this program's tiles among those of the next sequences
        for begin in range(0, sequences, RANKED_TOGETHER):
            rank, count = of_a_size(cu_q, cu_k, begin, sequences, GROUP, ABOVE, N)
            tiles, programs = count * kv_heads, tl.num_programs(0)
            for i in range(first, tiles, programs):
                _backward_tile(
                    begin + numbered(rank, i // kv_heads + 1), i % kv_heads,
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
    query, head, valid = rows_of_tile(0, kv_head, queries, GROUP, M)
    token = q_begin.to(tl.int64) + query
    row = token * (kv_heads * GROUP) + head
    key = tl.arange(0, N)
    there = key < keys
    k_token = k_begin.to(tl.int64) + key
    q_offsets, o_offsets = token * q_t + head * q_h, token * o_t + head * o_h
    k_offsets, v_offsets = k_token * k_t + kv_head * k_h, k_token * v_t + kv_head * v_h
    q_first, k_first = load(q, q_offsets, valid, 0, D, CHUNK), load(k, k_offsets, there, 0, D, CHUNK)
    o_first, v_first = (
        load(dout, o_offsets, valid, 0, D_V, CHUNK_V),
        load(v, v_offsets, there, 0, D_V, CHUNK_V),
    )

    scores = products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
    dweights = products(dout, o_first, o_offsets, valid, v, v_first, v_offsets, there, D_V, CHUNK_V, PRECISION)
    if HAS_DSUM:
        dweights += tl.load(dsum + row, mask=valid, other=0.0)[:, None]
    weights, after, dweights = slopes(
        scores, dweights, tl.load(lse + row, mask=valid, other=0.0), valid[:, None] & there[None, :],
        b, head, query, 0, seed, scale, keep_scale, N, BELOW,
    )  # fmt: skip
    delta = tl.sum(weights * dweights, 1)
    dscores = (weights * (dweights - delta[:, None]) * scale).to(q_first.dtype)
    after = after.to(q_first.dtype)

    dq_offsets, dk_offsets = token * dq_t + head * dq_h, k_token * dk_t + kv_head * dk_h
    for first in tl.static_range(0, D, CHUNK):
        if first > 0:
            q_first = load(q, q_offsets, valid, first, D, CHUNK)
            k_first = load(k, k_offsets, there, first, D, CHUNK)
        store(
            dq, dq_offsets, valid, first, dot(dscores, k_first, tl.zeros([M, CHUNK], tl.float32), PRECISION), D, CHUNK
        )
        store(
            dk,
            dk_offsets,
            there,
            first,
            dot(tl.trans(dscores), q_first, tl.zeros([N, CHUNK], tl.float32), PRECISION),
            D,
            CHUNK,
        )
    dv_offsets = k_token * dv_t + kv_head * dv_h
    for first in tl.static_range(0, D_V, CHUNK_V):
        if first > 0:
            o_first = load(dout, o_offsets, valid, first, D_V, CHUNK_V)
        store(
            dv,
            dv_offsets,
            there,
            first,
            dot(tl.trans(after), o_first, tl.zeros([N, CHUNK_V], tl.float32), PRECISION),
            D_V,
            CHUNK_V,
        )


@triton.jit
def backward_queries_kernel(
    dout,  # [Tq, heads, D_V], strides o_t and o_h
    dsum,  # float32 [Tq, heads], gradient of weight_sum; not read without HAS_DSUM
    q,  # [Tq, heads, D], strides q_t and q_h
    k,  # [T, kv_heads, D], strides k_t and k_h
    v,  # [T, kv_heads, D_V], strides v_t and v_h
    out,  # [Tq, heads, D_V], contiguous
    weight_sum,  # float32 [Tq, heads]
    lse,  # float32 [Tq, heads], log2 of the sum of a row's 2 ** score
    delta,  # float32 [Tq, heads], each row's sum of weight times its gradient
    dq,  # [Tq, heads, D], strides dq_t and dq_h
    cu_q,  # int32 [sequences + 1]
    cu_k,  # int32 [sequences + 1]
    seed,  # int64 [2]; not read where BELOW is 0
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dq_t, dq_h, kv_heads, scale, keep_scale, GROUP: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BELOW: tl.constexpr, HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of M rows, and their delta, the weights' mean gradient, for backward_keys_kernel."""
    b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    first_row, first_d = tl.program_id(1) * M, tl.program_id(2) * CHUNK
    q_begin, k_begin = tl.load(cu_q + b), tl.load(cu_k + b)
    queries, keys = tl.load(cu_q + b + 1) - q_begin, tl.load(cu_k + b + 1) - k_begin
    if first_row >= queries * GROUP:
        return
    query, head, valid = rows_of_tile(first_row, kv_head, queries, GROUP, M)
    token = q_begin.to(tl.int64) + query
    row = token * (kv_heads * GROUP) + head
    q_offsets, o_offsets = token * q_t + head * q_h, token * o_t + head * o_h
    q_first, o_first = load(q, q_offsets, valid, 0, D, CHUNK), load(dout, o_offsets, valid, 0, D_V, CHUNK_V)
    mean = tl.zeros([M], tl.float32)
    for first in tl.static_range(0, D_V, CHUNK_V):
        part = load(dout, o_offsets, valid, first, D_V, CHUNK_V).to(tl.float32)
        mean += tl.sum(part * load(out, row * D_V, valid, first, D_V, CHUNK_V).to(tl.float32), 1)
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
        k_first, v_first = load(k, k_offsets, there, 0, D, CHUNK), load(v, v_offsets, there, 0, D_V, CHUNK_V)
        scores = products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
        dweights = products(dout, o_first, o_offsets, valid, v, v_first, v_offsets, there, D_V, CHUNK_V, PRECISION)
        weights, _, dweights = slopes(
            scores, dweights + dsums[:, None], row_lse, valid[:, None] & there[None, :],
            b, head, query, first, seed, scale, keep_scale, N, BELOW,
        )  # fmt: skip
        dscores = (weights * (dweights - mean[:, None]) * scale).to(k_first.dtype)
        if D > CHUNK:
            k_first = load(k, k_offsets, there, first_d, D, CHUNK)
        sums = dot(dscores, k_first, sums, PRECISION)
    store(dq, token * dq_t + head * dq_h, valid, first_d, sums, D, CHUNK)


@triton.jit
def backward_keys_kernel(
    dout,  # [Tq, heads, D_V], strides o_t and o_h
    dsum,  # float32 [Tq, heads], gradient of weight_sum; not read without HAS_DSUM
    q,  # [Tq, heads, D], strides q_t and q_h
    k,  # [T, kv_heads, D], strides k_t and k_h
    v,  # [T, kv_heads, D_V], strides v_t and v_h
    lse,  # float32 [Tq, heads], log2 of the sum of a row's 2 ** score
    delta,  # float32 [Tq, heads], each row's sum of weight times its gradient
    dk,  # [T, kv_heads, D], strides dk_t and dk_h
    dv,  # [T, kv_heads, D_V], strides dv_t and dv_h
    cu_q,  # int32 [sequences + 1]
    cu_k,  # int32 [sequences + 1]
    seed,  # int64 [2]; not read where BELOW is 0
    o_t, o_h, q_t, q_h, k_t, k_h, v_t, v_h, dk_t, dk_h, dv_t, dv_h, kv_heads, scale, keep_scale, GROUP: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, CHUNK: tl.constexpr, CHUNK_V: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BELOW: tl.constexpr, HAS_DSUM: tl.constexpr, PRECISION: tl.constexpr,
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
    k_first, v_first = load(k, k_offsets, there, 0, D, CHUNK), load(v, v_offsets, there, 0, D_V, CHUNK_V)

    dk_sums, dv_sums = tl.zeros([N, CHUNK], tl.float32), tl.zeros([N, CHUNK_V], tl.float32)
    for first in range(0, queries * GROUP, M):
        query, head, valid = rows_of_tile(first, kv_head, queries, GROUP, M)
        token = q_begin.to(tl.int64) + query
        row = token * (kv_heads * GROUP) + head
        q_offsets, o_offsets = token * q_t + head * q_h, token * o_t + head * o_h
        q_first, o_first = (
            load(q, q_offsets, valid, 0, D, CHUNK),
            load(dout, o_offsets, valid, 0, D_V, CHUNK_V),
        )
        scores = products(q, q_first, q_offsets, valid, k, k_first, k_offsets, there, D, CHUNK, PRECISION)
        dweights = products(dout, o_first, o_offsets, valid, v, v_first, v_offsets, there, D_V, CHUNK_V, PRECISION)
        if HAS_DSUM:
            dweights += tl.load(dsum + row, mask=valid, other=0.0)[:, None]
        weights, after, dweights = slopes(
            scores, dweights, tl.load(lse + row, mask=valid, other=0.0), valid[:, None] & there[None, :],
            b, head, query, first_key, seed, scale, keep_scale, N, BELOW,
        )  # fmt: skip
        mean = tl.load(delta + row, mask=valid, other=0.0)
        dscores = (weights * (dweights - mean[:, None]) * scale).to(q_first.dtype)
        after = after.to(q_first.dtype)
        if D > CHUNK:
            q_first = load(q, q_offsets, valid, chunk * CHUNK, D, CHUNK)
        if D_V > CHUNK_V:
            o_first = load(dout, o_offsets, valid, chunk * CHUNK_V, D_V, CHUNK_V)
        dk_sums = dot(tl.trans(dscores), q_first, dk_sums, PRECISION)
        dv_sums = dot(tl.trans(after), o_first, dv_sums, PRECISION)
    if chunk * CHUNK < D:
        store(dk, k_token * dk_t + kv_head * dk_h, there, chunk * CHUNK, dk_sums, D, CHUNK)
    if chunk * CHUNK_V < D_V:
        store(dv, k_token * dv_t + kv_head * dv_h, there, chunk * CHUNK_V, dv_sums, D_V, CHUNK_V)
