"""What the kernels of attention share: loads and stores of tiles, products, the order of sequences by size."""

from __future__ import annotations

import triton
import triton.language as tl

from bertnli.kernels.philox import kept

LOG2E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
RANKED_TOGETHER = tl.constexpr(256)  # sequences that a program looks at together for those of its size


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """total + x y, summed in float32."""
    if _INTERPRETED:  # it multiplies bfloat16's bit patterns; products of two bfloat16 are exact in float32
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def load(x, offsets, valid, first, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Columns `first` to `first + CHUNK` of the rows at `offsets`, zeros where there are none: [rows, CHUNK]."""
    columns = first + tl.arange(0, CHUNK)
    mask = valid[:, None]
    if WIDTH % CHUNK:
        mask = mask & (columns < WIDTH)[None, :]
    return tl.load(x + offsets[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store(x, offsets, valid, first, value, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    columns = first + tl.arange(0, CHUNK)
    mask = valid[:, None]
    if WIDTH % CHUNK:
        mask = mask & (columns < WIDTH)[None, :]
    tl.store(x + offsets[:, None] + columns[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def products(
    x, x_first, x_offsets, x_valid, y, y_first, y_offsets, y_valid,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Every row of x times every row of y; x_first and y_first are their first chunks, loaded already."""
    total = tl.zeros([x_first.shape[0], y_first.shape[0]], tl.float32)
    total = dot(x_first, tl.trans(y_first), total, PRECISION)
    for first in tl.static_range(CHUNK, WIDTH, CHUNK):
        a = load(x, x_offsets, x_valid, first, WIDTH, CHUNK)
        b = load(y, y_offsets, y_valid, first, WIDTH, CHUNK)
        total = dot(a, tl.trans(b), total, PRECISION)
    return total


@triton.jit
def rows_of_tile(first, kv_head, queries, GROUP: tl.constexpr, M: tl.constexpr):
    """Of the tile's M rows: the query within the sequence, the head, and whether there is one."""
    row = first + tl.arange(0, M)
    query = row // GROUP
    return query, kv_head * GROUP + row % GROUP, query < queries


@triton.jit
def is_of_size(rows, keys, ABOVE: tl.constexpr, SIZE: tl.constexpr):
    longest = tl.maximum(rows, keys)
    return (longest > ABOVE) & (longest <= SIZE)


@triton.jit
def of_a_size(cu_q, cu_k, begin, sequences, GROUP: tl.constexpr, ABOVE: tl.constexpr, SIZE: tl.constexpr):
    """Of RANKED_TOGETHER sequences from `begin`, those with more than ABOVE and at most SIZE rows or keys: each one's
    number among them, from 1, 0 for the others; and how many there are."""
    b = begin + tl.arange(0, RANKED_TOGETHER)
    mask = b < sequences
    queries = tl.load(cu_q + b + 1, mask=mask, other=0) - tl.load(cu_q + b, mask=mask, other=0)
    keys = tl.load(cu_k + b + 1, mask=mask, other=0) - tl.load(cu_k + b, mask=mask, other=0)
    chosen = is_of_size(queries * GROUP, keys, ABOVE, SIZE).to(tl.int32)
    return tl.cumsum(chosen, 0) * chosen, tl.sum(chosen, 0)


@triton.jit
def numbered(rank, number):
    """Which of the sequences has this number."""
    return tl.sum(tl.where(rank == number, tl.arange(0, RANKED_TOGETHER), 0), 0)


@triton.jit
def kept_weights(b, head, query, first_key, seed, N: tl.constexpr, BELOW: tl.constexpr):
    """The documented mask of rows (query, head) and N keys: bool [rows, N]."""
    group = first_key // 4 + tl.arange(0, N // 4)
    return kept(b + head[:, None] * 0, head[:, None], query[:, None], group[None, :], seed, BELOW)


@triton.jit
def slopes(
    scores, dweights, lse, there, b, head, query, first, seed, scale, keep_scale,
    N: tl.constexpr, BELOW: tl.constexpr,
):  # fmt: skip
    """From scores and dout . v: softmax's weights P, the weights after dropout, and the gradient of the latter times
    the dropout factor, all [M, N]."""
    weights = tl.where(there, tl.exp2(scores * (scale * LOG2E) - lse[:, None]), 0.0)
    after = weights
    if BELOW > 0:
        mask = kept_weights(b, head, query, first, seed, N, BELOW)
        after = tl.where(mask, weights * keep_scale, 0.0)
        dweights = tl.where(mask, dweights * keep_scale, 0.0)
    return weights, after, dweights
