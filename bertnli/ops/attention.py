"""Attention within sequences that lie end to end: `bertnli::varlen_attention` and its packed form."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.ops.devices import check_no_seed, computed_dtype, has_kernel, seed_or_drawn
from bertnli.text.batch import pad

_lib = torch.ops.bertnli


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    scale: float | None = None,
    *,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """Softmax attention within each of B sequences that lie end to end, without padding.

    q             [Tq, heads, d]       float32, bfloat16 or float64 (slow); the width contiguous, other strides free
    k             [T, kv_heads, d]     kv_heads divides heads: query head h reads head h // (heads // kv_heads)
    v             [T, kv_heads, d_v]
    cu_seqlens    int32 [B+1]          sequence b has the keys cu_seqlens[b] to cu_seqlens[b+1]
    max_seqlen    int                  no sequence has more keys (what a longer one gives on CUDA is undefined)
    dropout_p     float                the probability, in [0, 1), with which each softmax weight is dropped
    scale         float                the scores are scale * q . k; 1 / sqrt(d) by default
    cu_seqlens_q  int32 [B+1]          where the queries differ from the keys in number; with max_seqlen_q
    seed          int64 [2], q's device  fixes what is dropped; drawn from torch's default generator by default

    Returns [Tq, heads, d_v] of q's dtype, contiguous. Sums are in float32 for bfloat16. A query without keys has
    the output 0. Differentiable, once, in q, k and v.

    Dropout keeps the weight of (sequence, head, query, key) and divides it by 1 - p if and only if

        Philox4x32-7(counter, key)[j % 4] >= max(1, floor(dropout_p * 2**32))
        counter = (sequence, head, query, j // 4)      key = (seed[0] mod 2**32, seed[1] mod 2**32)

    where query and key j count from 0 within the sequence. The mask therefore depends on nothing else: not on the
    kernel, the number of threads, the device, or the other sequences' lengths. (Philox: Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", 2011.)

    Raises RuntimeError that names the argument where a shape, dtype, length or dropout_p does not fit. On CUDA q may be
    float16 too, and the values of cu_seqlens are not checked, since that would wait for the device. ValueError for a
    seed where PyTorch's own operations run.
    """
    return varlen_attention_with_sum(
        q,
        k,
        v,
        cu_seqlens,
        max_seqlen,
        dropout_p,
        scale,
        cu_seqlens_q=cu_seqlens_q,
        max_seqlen_q=max_seqlen_q,
        seed=seed,
    )[0]


def varlen_attention_with_sum(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    scale: float | None = None,
    *,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`varlen_attention` and the sum of each query's weights after dropout, float32 (float64) [Tq, heads].

    The sum is 1 without dropout (0 for a query without keys). A value projection's bias, applied after attention
    instead of before, must be multiplied by it. Both results are differentiable.
    """
    if (cu_seqlens_q is None) != (max_seqlen_q is None):
        raise ValueError("cu_seqlens_q and max_seqlen_q must be given together")
    if cu_seqlens_q is None and _flash_serves(q, k, v, max_seqlen, dropout_p):
        from torch.nn.attention.varlen import varlen_attn  # here, since it brings half of torch.compile

        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=_scale(q, scale))
        return cast(Tensor, out), q.new_ones(q.shape[:2], dtype=torch.float32)
    if not has_kernel(q):
        check_no_seed("varlen_attention", q, seed)
        cu_q = cu_seqlens if cu_seqlens_q is None else cu_seqlens_q
        return _padded_attention(q, k, v, cu_q, cu_seqlens, dropout_p, _scale(q, scale))
    out, weight_sum, _ = _lib.varlen_attention(
        q,
        k,
        v,
        cu_seqlens if cu_seqlens_q is None else cu_seqlens_q,
        cu_seqlens,
        max_seqlen if max_seqlen_q is None else max_seqlen_q,
        max_seqlen,
        dropout_p,
        _scale(q, scale),
        seed_or_drawn(q, dropout_p, seed),
    )
    return out, weight_sum


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = q.shape[:2]
    return (
        q.new_empty((*rows, v.size(2))),
        q.new_empty(rows, dtype=computed_dtype(q)),
        q.new_empty(rows, dtype=computed_dtype(q)),
    )


torch.library.register_fake("bertnli::varlen_attention", _fake)


def _fake_backward(
    dout: Tensor, dweight_sum: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


torch.library.register_fake("bertnli::varlen_attention_backward", _fake_backward)


def varlen_attention_packed(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    scale: float | None = None,
    *,
    seed: Tensor | None = None,
) -> Tensor:
    """`varlen_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2], ...)` whose gradient is one tensor, written once.

    qkv [T, 3, heads, d]; returns [T, heads, d].
    """
    if not has_kernel(qkv) or _flash_serves(qkv, qkv, qkv, max_seqlen, dropout_p):
        q, k, v = qkv.unbind(1)
        return varlen_attention(q, k, v, cu_seqlens, max_seqlen, dropout_p, scale, seed=seed)
    return cast(
        Tensor,
        _lib.varlen_attention_packed(
            qkv, cu_seqlens, max_seqlen, dropout_p, _scale(qkv, scale), seed_or_drawn(qkv, dropout_p, seed)
        )[0],
    )


def _fake_packed(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, _three, heads, width = qkv.shape
    return (
        qkv.new_empty((tokens, heads, width)),
        qkv.new_empty((tokens, heads), dtype=computed_dtype(qkv)),
        qkv.new_empty((tokens, heads), dtype=computed_dtype(qkv)),
    )


torch.library.register_fake("bertnli::varlen_attention_packed", _fake_packed)


def _fake_packed_backward(dout: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


torch.library.register_fake("bertnli::varlen_attention_packed_backward", _fake_packed_backward)


def _padded_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, dropout_p: float, scale: float
) -> tuple[Tensor, Tensor]:
    """`varlen_attention_with_sum` where bertnli has no kernel: padded, in PyTorch's own operators, dropout too."""
    group = q.size(1) // k.size(1)
    longest_q, longest_k = (int(cu.diff().max()) if len(cu) > 1 else 0 for cu in (cu_q, cu_k))
    (queries, valid_q), (keys, valid_k) = pad(q, cu_q, longest_q), pad(k, cu_k, longest_k)
    keys, values = (x.repeat_interleave(group, 2) for x in (keys, pad(v, cu_k, longest_k)[0]))  # [B, Lk, heads, d]
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys).to(computed_dtype(q)) * scale
    unseen = ~valid_k[:, None, None, :]
    weights = torch.softmax(scores.masked_fill(unseen, torch.finfo(scores.dtype).min), -1).masked_fill(unseen, 0)
    weights = F.dropout(weights, dropout_p)
    out = torch.einsum("bhqk,bkhd->bqhd", weights.to(v.dtype), values)
    return out[valid_q], weights.sum(-1).transpose(1, 2)[valid_q]


def _flash_serves(q: Tensor, k: Tensor, v: Tensor, max_seqlen: int, dropout_p: float) -> bool:
    """Whether `torch.nn.attention.varlen` is faster than the Triton kernels: no dropout, half precision, and sequences
    beyond the 128 tokens that one tile of those holds."""
    return (
        q.device.type == "cuda"
        and dropout_p == 0
        and max_seqlen > 128
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.size(-2) == k.size(-2)
        and q.size(-1) == v.size(-1) <= 256
        and q.size(-1) % 8 == 0
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _scale(q: Tensor, scale: float | None) -> float:
    return max(1, q.size(-1)) ** -0.5 if scale is None else scale
