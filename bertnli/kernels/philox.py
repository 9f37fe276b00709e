"""Philox4x32-7, the counter-based generator of every dropout mask, in Triton.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. The CPU kernels use the same counters, so a mask is
the same on CPU and GPU, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """The four words of the counter (c0, c1, c2, c3) under the key (k0, k1); all uint32, the counters of one shape."""
    m0 = tl.full((), _MULTIPLIER_0, tl.uint32)
    m1 = tl.full((), _MULTIPLIER_1, tl.uint32)
    w0 = tl.full((), _WEYL_0, tl.uint32)
    w1 = tl.full((), _WEYL_1, tl.uint32)
    for _ in tl.static_range(7):
        high_0, low_0 = tl.umulhi(c0, c0 * 0 + m0), c0 * m0
        high_1, low_1 = tl.umulhi(c2, c2 * 0 + m1), c2 * m1
        c0 = high_1 ^ c1 ^ k0
        c1 = low_1
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0
        k0 = k0 + w0
        k1 = k1 + w1
    return c0, c1, c2, c3


@triton.jit
def kept(c0, c1, c2, group, seed, BELOW: tl.constexpr):
    """Which elements of a tile stay: bool [rows, 4 * groups].

    c0, c1, c2   [rows, 1] or scalars, the first three words of the counter
    group        [1, groups], the fourth: element 4 * g + w has word w of group g, one Philox for four elements
    seed         int64 [2] in memory
    BELOW        words below this number are dropped; at least 1
    """
    zero = ((c0 + c1 + c2) * 0 + group * 0).to(tl.uint32)  # [rows, groups]
    k0, k1 = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox(
        zero + c0.to(tl.uint32), zero + c1.to(tl.uint32), zero + c2.to(tl.uint32), zero + group.to(tl.uint32), k0, k1
    )
    below = tl.full((), BELOW, tl.uint32)
    # compared before they are interleaved, so that bytes move between threads and not words
    even = tl.interleave((w0 >= below).to(tl.int8), (w2 >= below).to(tl.int8))
    odd = tl.interleave((w1 >= below).to(tl.int8), (w3 >= below).to(tl.int8))
    return tl.interleave(even, odd) != 0
