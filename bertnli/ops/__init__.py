"""Operators on packed tokens: for each a wrapper, and what it does to fake tensors.

The CPU implementations are in csrc/ops, with the schemas in csrc/ops/bindings.cpp and the gradients, for every device,
in csrc/ops/autograd.cpp; those for CUDA, in Triton, are in bertnli/kernels. On other devices, for float64 on CUDA and
without Triton, PyTorch's own operations run.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli import _ops  # registers torch.ops.bertnli
from bertnli.text.batch import pad

_lib = torch.ops.bertnli

_HAS_TRITON = torch.version.cuda is not None and find_spec("triton") is not None
if _HAS_TRITON:
    from bertnli import kernels  # noqa: F401  (registers the operators for CUDA)


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: "plain", "avx2", "avx512", "avx512_bf16" or "amx".

    The best that the CPU has, or what the environment variable BERTNLI_ISA asked for when the first operator ran.
    Raises RuntimeError where that names an unknown set, or one that the CPU lacks.
    """
    return cast(str, _lib.cpu_isa())


def cpu_multiplies_bf16() -> bool:
    """Whether PyTorch multiplies bfloat16 matrices by instructions of this CPU. Where it does not, as on x86 without
    AVX-512, its plain loops take some fifteen times as long as products of float32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # what PyTorch itself asks
    return supported is not None and bool(supported())


def cpu_threads() -> int:
    """How many threads share the CPU kernels' work: `torch.get_num_threads()`, or 1 in a build without OpenMP."""
    return cast(int, _lib.cpu_threads())


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
    float16 too, and the values of cu_seqlens are not checked, since that would wait for the device.
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
    if not has_kernel(qkv) or _flash_serves(qkv, qkv, qkv, max_seqlen, dropout_p):
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
    group = q.size(1) // k.size(1)
    longest_q, longest_k = (int(cu.diff().max()) if len(cu) > 1 else 0 for cu in (cu_q, cu_k))
    (queries, valid_q), (keys, valid_k) = pad(q, cu_q, longest_q), pad(k, cu_k, longest_k)
    keys, values = (x.repeat_interleave(group, 2) for x in (keys, pad(v, cu_k, longest_k)[0]))  # (B, Lk, heads, d)
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
    for _ in range(7):
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


def add_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    *,
    y_bias: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """LayerNorm(x + dropout(y + y_bias)), one pass forward and one backward.

    x          [T, H]    float32, bfloat16 or float64 (slow)
    y          [T, H]    x's dtype; bfloat16 may meet a float32 x, as under autocast
    weight     [H]       LayerNorm's, any floating-point dtype
    bias       [H]
    y_bias     [H]       the bias of the linear layer that made y, left to be added here
    dropout_p  float     the probability, in [0, 1), with which each element of y is dropped
    seed       int64 [2]   fixes what is dropped; drawn from torch's default generator by default

    Returns [T, H] of x's dtype. Sums are in float32 for bfloat16. Differentiable, once, in every tensor but the seed;
    what is dropped is computed again in the backward pass, and no sum depends on the number of threads.

    Dropout keeps the element (t, c) and divides it by 1 - p if and only if

        Philox4x32-7(counter, key)[c % 4] >= max(1, floor(dropout_p * 2**32))
        counter = (t, 2**32 - 1, 0, c // 4)      key = (seed[0] mod 2**32, seed[1] mod 2**32)

    Raises RuntimeError that names the argument where a shape, dtype or dropout_p does not fit; ValueError for a seed
    where PyTorch's own operations run.
    """
    if not has_kernel(x):
        if seed is not None:
            raise ValueError(f"add_norm takes no seed for {x.dtype} on {x.device}")
        return F.layer_norm(
            x + F.dropout(y if y_bias is None else y + y_bias, dropout_p), (x.size(-1),), weight, bias, eps
        )
    out = _lib.add_norm(x, y, y_bias, weight, bias, eps, dropout_p, _seed(x, dropout_p, seed))[0]
    return cast(Tensor, out)


def own_products(dtype: torch.dtype) -> bool:
    """Whether `linear` multiplies such matrices by our own kernels on this CPU, since they are faster.

    On AMD's CPUs with AVX-512 the library that PyTorch calls multiplies float32 by vectors of half their width, and
    compiles products of bfloat16 anew for every number of rows.
    """
    if dtype == torch.float32:
        return torch._C.has_mkl and _ops.cpu_multiplies_better(bf16=False)
    return dtype == torch.bfloat16 and _ops.cpu_multiplies_better(bf16=True)


# What torch.compiler.assume_constant_result does; but that imports torch.compile, which takes a second.
own_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: `torch.nn.functional.linear`, by kernels of our own where `own_products`.

    x [T, in], weight [out, in] of x's dtype, bias [out] of any floating-point dtype. Differentiable in all three. In
    our kernels sums are in float32, and neither the product nor its gradients depend on the number of threads. Raises
    RuntimeError where a shape or dtype does not fit.
    """
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dim() == 2
        and own_products(x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not torch.overrides.has_torch_function((x, weight))
    ):
        return cast(Tensor, _lib.linear(x, weight, bias))
    return F.linear(x, weight, bias if bias is None else bias.to(weight.dtype))


def bias_act(x: Tensor, bias: Tensor, kind: str) -> Tensor:
    """The activation of x + bias, [T, F]: "relu", "gelu" (exact) or "gelu_tanh" (its approximation by tanh).

    x [T, F], float32, bfloat16 or float64 (slow), the product of a linear layer whose `bias` [F] is left to be added
    here. Differentiable, once, in both. Raises RuntimeError that names the argument which does not fit.
    """
    if not has_kernel(x):
        if kind not in ("relu", "gelu", "gelu_tanh"):
            raise RuntimeError(f"kind must be 'relu', 'gelu' or 'gelu_tanh'; found {kind!r}")
        x = x + bias.to(x.dtype)
        return F.relu(x) if kind == "relu" else F.gelu(x, approximate="none" if kind == "gelu" else "tanh")
    return cast(Tensor, _lib.bias_act(x, bias, kind))


def embed(
    token_table: Tensor,
    segment_table: Tensor,
    position_table: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    positions: Tensor,
    *,
    sparse: bool = False,
) -> Tensor:
    """Row input_ids[t] of the token table + row segment_ids[t] of the segments' + row positions[t] of the positions'.

    token_table     [V, H]   float32, bfloat16 or float64
    segment_table   [S, H]   the same dtype
    position_table  [P, H]   the same dtype
    input_ids, segment_ids, positions   int32 [T]
    sparse          on the CPU, the token table's gradient is sparse, with one row for each distinct id

    Returns [T, H]. The tables' gradients are dense but for `sparse`.

    Raises IndexError for an id or a position outside its table (on CUDA, where that would wait for the device, the row
    is NaN), RuntimeError that names the argument where a shape or dtype does not fit.
    """
    if not has_kernel(token_table):
        return (
            F.embedding(input_ids, token_table)
            + F.embedding(segment_ids, segment_table)
            + F.embedding(positions, position_table)
        )
    tables = token_table, segment_table, position_table
    return cast(Tensor, _lib.embed(*tables, input_ids, segment_ids, positions, sparse))


def take(table: Tensor, ids: Tensor, *, sparse: bool = False) -> Tensor:
    """table[ids] [n, H] of a table [V, H] and int32 ids [n]; the gradient is `embed`'s, and so is what is raised."""
    nothing, zeros = table.new_zeros(1, table.size(1)), torch.zeros_like(ids)
    return embed(table, nothing, nothing, ids, zeros, zeros, sparse=sparse)


def embed_norm(
    token_table: Tensor,
    segment_table: Tensor,
    position_table: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    positions: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    *,
    dtype: torch.dtype | None = None,
    sparse: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """dropout(LayerNorm(`embed(...)`)), [T, H], one pass forward and two backward.

    weight, bias   [H]   LayerNorm's, any floating-point dtype
    dtype          of the result: the tables' (by default), or bfloat16 where that is float32

    The other arguments are those of `embed`, and `dropout_p` and `seed` those of `add_norm`, whose masks it uses.
    Differentiable, once, in the tables, weight and bias. Raises as these do.
    """
    dtype = token_table.dtype if dtype is None else dtype
    tables, ids = (token_table, segment_table, position_table), (input_ids, segment_ids, positions)
    if not has_kernel(token_table):
        if seed is not None:
            raise ValueError(f"embed_norm takes no seed for {token_table.dtype} on {token_table.device}")
        x = F.layer_norm(embed(*tables, *ids), (token_table.size(1),), weight, bias, eps)
        return F.dropout(x, dropout_p).to(dtype)
    seed = _seed(token_table, dropout_p, seed)
    return cast(Tensor, _lib.embed_norm(*tables, *ids, weight, bias, eps, dropout_p, seed, dtype, sparse)[0])


def has_kernel(x: Tensor) -> bool:
    """Whether our operators run where x lies; the wrappers have PyTorch's own for other devices."""
    return x.device.type in ("cpu", "meta") or (
        _HAS_TRITON and x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    )


def _flash_serves(q: Tensor, k: Tensor, v: Tensor, max_seqlen: int, dropout_p: float) -> bool:
    """Whether `torch.nn.attention.varlen` serves this call better than our kernels: no dropout, half precision, and
    sequences beyond the 128 tokens that one of our tiles takes whole."""
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


def _fake_add_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[:1]
    return x.new_empty(x.shape), x.new_empty(rows, dtype=_row_dtype(x)), x.new_empty(rows, dtype=_row_dtype(x))


def _fake_add_norm_backward(
    dout: Tensor, x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    dy_bias = x.new_empty(0, dtype=_row_dtype(x)) if y_bias is None else torch.empty_like(y_bias)
    return x.new_empty(x.shape), y.new_empty(y.shape), dy_bias, torch.empty_like(weight), torch.empty_like(bias)


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.size(0), weight.size(0)))


def _fake_linear_backward(dout: Tensor, x: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    dx = dout.new_empty(0 if weight is None else (dout.size(0), weight.size(1)))
    return dx, dout.new_empty(0 if x is None else (dout.size(1), x.size(1)))


def _fake_bias_act(x: Tensor, bias: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape)


def _fake_bias_act_backward(dout: Tensor, x: Tensor, bias: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(bias)


def _fake_embed(token_table: Tensor, segment_table: Tensor, position_table: Tensor, ids: Tensor, *_: Any) -> Tensor:
    return token_table.new_empty((ids.size(0), token_table.size(1)))


def _fake_embed_norm(
    token_table: Tensor, segment_table: Tensor, position_table: Tensor, ids: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = ids.shape[:1], _row_dtype(token_table)
    out = token_table.new_empty((*rows, token_table.size(1)), dtype=rest[-2])
    return out, out.new_empty(rows, dtype=dtype), out.new_empty(rows, dtype=dtype)


def _fake_embed_norm_backward(dout: Tensor, token_table: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = rest[5:7]
    return dout.new_empty(dout.shape, dtype=_row_dtype(token_table)), torch.empty_like(weight), torch.empty_like(bias)


def _fake_embed_backward(
    dout: Tensor, ids: Tensor, segment_ids: Tensor, positions: Tensor, *rows_and_wanted: int
) -> tuple[Tensor, ...]:
    rows, wanted = rows_and_wanted[:3], rows_and_wanted[3:]
    return tuple(dout.new_empty((n if want else 0, dout.size(1))) for n, want in zip(rows, wanted, strict=True))


torch.library.register_fake("bertnli::add_norm", _fake_add_norm)
torch.library.register_fake("bertnli::add_norm_backward", _fake_add_norm_backward)
torch.library.register_fake("bertnli::linear", _fake_linear)
torch.library.register_fake("bertnli::linear_backward", _fake_linear_backward)
torch.library.register_fake("bertnli::bias_act", _fake_bias_act)
torch.library.register_fake("bertnli::bias_act_backward", _fake_bias_act_backward)
torch.library.register_fake("bertnli::embed", _fake_embed)
torch.library.register_fake("bertnli::embed_backward", _fake_embed_backward)
torch.library.register_fake("bertnli::embed_norm", _fake_embed_norm)
torch.library.register_fake("bertnli::embed_norm_backward", _fake_embed_norm_backward)
