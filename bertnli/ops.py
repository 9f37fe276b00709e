"""Operators on packed tokens: for each a wrapper, what it does to fake tensors, and its gradient.

The CPU implementations are in csrc/ops; the schemas in csrc/ops/bindings.cpp.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bertnli import _ops  # noqa: F401  (registers torch.ops.bertnli)

_lib = torch.ops.bertnli


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: "plain", "avx2" or "avx512".

    The best that the CPU has, or what the environment variable BERTNLI_ISA asked for when the first operator ran.
    Raises RuntimeError where that names an unknown set, or one that the CPU lacks.
    """
    return cast(str, _lib.cpu_isa())


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
    max_seqlen    int                  no sequence has more keys
    dropout_p     float                the probability, in [0, 1), with which each softmax weight is dropped
    scale         float                the scores are scale * q . k; 1 / sqrt(d) by default
    cu_seqlens_q  int32 [B+1]          where the queries differ from the keys in number; with max_seqlen_q
    seed          int64 [2], q's device  fixes what is dropped; drawn from torch's default generator by default

    Returns [Tq, heads, d_v] of q's dtype, contiguous. Sums are in float32 for bfloat16. A query without keys has
    the output 0. Differentiable, once, in q, k and v.

    Dropout keeps the weight of (sequence, head, query, key) and divides it by 1 - p if and only if

        Philox4x32-10(counter, key)[j % 4] >= max(1, floor(dropout_p * 2**32))
        counter = (sequence, head, query, j // 4)      key = (seed[0] mod 2**32, seed[1] mod 2**32)

    where query and key j count from 0 within the sequence. The mask therefore depends on nothing else: not on the
    kernel, the number of threads, the device, or the other sequences' lengths. (Philox: Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", 2011.)

    Raises RuntimeError that names the argument where a shape, dtype, length or dropout_p does not fit.
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
    if q.device.type not in ("cpu", "meta"):
        cu_q = cu_seqlens if cu_seqlens_q is None else cu_seqlens_q
        return _padded_attention(q, k, v, cu_q, cu_seqlens, dropout_p, _scale(q, scale), _seed(q, dropout_p, seed))
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
        _seed(q, dropout_p, seed),
    )
    return out, weight_sum


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
    if qkv.device.type not in ("cpu", "meta"):
        q, k, v = qkv.unbind(1)
        return varlen_attention(q, k, v, cu_seqlens, max_seqlen, dropout_p, scale, seed=seed)
    return cast(
        Tensor,
        _lib.varlen_attention_packed(
            qkv, cu_seqlens, max_seqlen, dropout_p, _scale(qkv, scale), _seed(qkv, dropout_p, seed)
        )[0],
    )


def _padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    dropout_p: float,
    scale: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`varlen_attention_with_sum` on devices that have no kernel of ours: padded, in PyTorch's own operators.

    The same results and the same dropout masks, at the price of the padding.
    """

    def pad(x: Tensor, cu: Tensor) -> tuple[Tensor, Tensor]:
        lens = cu.diff()
        valid = torch.arange(int(lens.max()) if len(lens) else 0, device=x.device) < lens[:, None]  # (B, L)
        return x.new_zeros((*valid.shape, *x.shape[1:])).masked_scatter(valid[..., None, None], x), valid

    group = q.size(1) // k.size(1)
    (queries, valid_q), (keys, valid_k) = pad(q, cu_q), pad(k, cu_k)
    keys, values = (x.repeat_interleave(group, 2) for x in (keys, pad(v, cu_k)[0]))  # (B, Lk, heads, d)
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys).to(_row_dtype(q)) * scale
    unseen = ~valid_k[:, None, None, :]
    weights = torch.softmax(scores.masked_fill(unseen, torch.finfo(scores.dtype).min), -1).masked_fill(unseen, 0)
    if dropout_p > 0:
        assert seed is not None
        weights = weights * (_dropout_words(weights, seed) >= max(1, int(dropout_p * 2**32))) / (1 - dropout_p)
    out = torch.einsum("bhqk,bkhd->bqhd", weights.to(v.dtype), values)
    return out[valid_q], weights.sum(-1).transpose(1, 2)[valid_q]


def _dropout_words(like: Tensor, seed: Tensor) -> Tensor:
    """The Philox words, int64 below 2**32, of every (sequence, head, query, key) of `like` [B, h, Lq, Lk]."""
    low = 0xFFFFFFFF
    shape = (*like.shape[:3], -(-like.size(3) // 4))
    counter = [
        torch.arange(n, device=like.device).view([-1 if i == axis else 1 for i in range(4)]).expand(shape)
        for axis, n in enumerate(shape)
    ]
    key = [seed[0] & low, seed[1] & low]
    for _ in range(10):
        # Products of 32-bit numbers wrap in int64, but their 64 bits are right.
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32 & low) ^ counter[1] ^ key[0],
            second & low,
            (first >> 32 & low) ^ counter[3] ^ key[1],
            first & low,
        ]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return torch.stack(counter, -1).flatten(3)[..., : like.size(3)]


def _scale(q: Tensor, scale: float | None) -> float:
    return max(1, q.size(-1)) ** -0.5 if scale is None else scale


def _seed(q: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor | None:
    if dropout_p > 0 and seed is None:
        return torch.randint(0, 2**32, (2,), dtype=torch.int64, device=q.device)
    return seed


def _row_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = q.shape[:2]
    return (
        q.new_empty((*rows, v.size(2))),
        q.new_empty(rows, dtype=_row_dtype(q)),
        q.new_empty(rows, dtype=_row_dtype(q)),
    )


def _fake_backward(
    dout: Tensor, dweight_sum: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fake_packed(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, _three, heads, width = qkv.shape
    return (
        qkv.new_empty((tokens, heads, width)),
        qkv.new_empty((tokens, heads), dtype=_row_dtype(qkv)),
        qkv.new_empty((tokens, heads), dtype=_row_dtype(qkv)),
    )


def _fake_packed_backward(dout: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


torch.library.register_fake("bertnli::varlen_attention", _fake)
torch.library.register_fake("bertnli::varlen_attention_backward", _fake_backward)
torch.library.register_fake("bertnli::varlen_attention_packed", _fake_packed)
torch.library.register_fake("bertnli::varlen_attention_packed_backward", _fake_packed_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens, *ctx.numbers, seed = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens, seed)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dweight_sum: Tensor | None, _dlse: None) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(tensors[3])
    return *_lib.varlen_attention_backward(dout, dweight_sum, *tensors, *ctx.numbers, seed), *[None] * 7


torch.library.register_autograd("bertnli::varlen_attention", _backward, setup_context=_save)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    qkv, cu_seqlens, *ctx.numbers, seed = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, seed)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward_packed(ctx: Any, dout: Tensor | None, _dweight_sum: None, _dlse: None) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    if dout is None:
        return (None,) * 6
    return _lib.varlen_attention_packed_backward(dout, *tensors, *ctx.numbers, seed), *[None] * 5


torch.library.register_autograd("bertnli::varlen_attention_packed", _backward_packed, setup_context=_save_packed)
