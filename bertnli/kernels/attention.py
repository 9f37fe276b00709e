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

from typing import Any

import torch
import triton
from torch import Tensor

from bertnli.kernels.attention_backward import backward_keys_kernel, backward_queries_kernel, backward_whole_kernel
from bertnli.kernels.attention_forward import forward_kernel
from bertnli.kernels.launch import (
    TYPES,
    below,
    check,
    check_dropout,
    check_saved,
    multiprocessors,
    power,
    shared_memory,
)

_SEEKERS = 4  # programs of a multiprocessor that look for their sequences
_CROWD = 1 << 22  # scores in the tiles of a batch from which on its sequences get tiles of several sizes


# ---- tiles ----


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


def _chunk(width: int, most: int) -> int:
    """Columns that a tile takes at a time: the whole width where it fits, else what wastes least."""
    if power(width) <= most:
        return power(width)
    return most if width % most == 0 else min(most, 128)


def _tile_bytes(device: torch.device) -> int:
    """What one of a kernel's four input tiles may take of the shared memory."""
    return 32 << 10 if shared_memory(device) >= 160 << 10 else 16 << 10


# ---- checks ----


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
        q.dtype in TYPES,
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


def _dense(x: Tensor) -> Tensor:
    """With a contiguous width; other strides are free."""
    return x if x.size(-1) <= 1 or x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


# ---- the operators ----


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
            forward_kernel[(programs, plan.row_blocks, triton.cdiv(v.size(2), plan.chunk_v))](
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
    check_saved(out, "out", (*q.shape[:2], v.size(2)), q, q.dtype)
    for name, saved in (("weight_sum", weight_sum), ("lse", lse), ("the gradient of weight_sum", dweight_sum)):
        if saved is not None:
            check_saved(saved, name, tuple(q.shape[:2]), q)
    if len(cu_k) == 1 or not (q.numel() and k.numel()):
        for x in (dq, dk, dv):
            x.zero_()
        return
    q, k, v, dout, cu_q, cu_k = _dense(q), _dense(k), _dense(v), _dense(dout), cu_q.contiguous(), cu_k.contiguous()
    out, weight_sum, lse = out.contiguous(), weight_sum.contiguous(), lse.contiguous()
    dsum = lse if dweight_sum is None else dweight_sum.contiguous()
    batch, kv_heads = len(cu_k) - 1, k.size(1)
    plan = _Plan(q, k, v, batch, max_q, max_k)
    seed = cu_k if seed is None else seed.contiguous()
    numbers = (kv_heads, scale, 1 / (1 - dropout_p))
    constants = plan.constants(q, v, dropout_p) | dict(HAS_DSUM=dweight_sum is not None)
    if plan.whole:
        for programs, m, n, above, ranked in plan.launches:
            backward_whole_kernel[(programs,)](
                dout, dsum, q, k, v, lse, dq, dk, dv, cu_q, cu_k, seed,
                *_strides(dout, q, k, v, dq, dk, dv), batch, *numbers,
                M=m, N=n, ABOVE=above, RANKED=ranked, num_warps=plan.warps(m, n, 8), num_stages=1, **constants,
            )  # fmt: skip
        return
    constants |= dict(M=plan.bm, N=plan.bn, num_warps=plan.warps(plan.bm, plan.bn, 8), num_stages=plan.stages)
    delta = torch.empty_like(lse)
    chunks, chunks_v = triton.cdiv(q.size(2), plan.chunk), triton.cdiv(v.size(2), plan.chunk_v)
    backward_queries_kernel[(batch * kv_heads, plan.backward_row_blocks, chunks)](
        dout, dsum, q, k, v, out, weight_sum, lse, delta, dq, cu_q, cu_k, seed,
        *_strides(dout, q, k, v, dq), *numbers, **constants,
    )  # fmt: skip
    backward_keys_kernel[(batch * kv_heads, plan.key_blocks, max(chunks, chunks_v))](
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
