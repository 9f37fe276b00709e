"""Inputs of the operators, and their definitions in PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def with_gradients(function: Callable[..., Any], inputs: list[Tensor], dout: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def cumulative(lens: list[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).to(torch.int32)


def attention_by_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lens: list[int],
    lens: list[int],
    scale: float | None = None,
    masks: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, a sequence at a time; masks: for each sequence [heads, queries, keys], 0 or 1 / (1 - p)."""
    group = q.size(1) // k.size(1)
    scale = q.size(2) ** -0.5 if scale is None else scale
    outs, sums = [], []
    parts = zip(q.split(q_lens), k.split(lens), v.split(lens), strict=True)
    for b, (qb, kb, vb) in enumerate(parts):
        kb, vb = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (kb, vb))  # (heads, keys, width)
        weights = torch.softmax(qb.transpose(0, 1) @ kb.transpose(1, 2) * scale, -1)
        if masks is not None:
            weights = weights * masks[b]
        outs.append((weights @ vb).transpose(0, 1))
        sums.append(weights.sum(-1).transpose(0, 1))
    return torch.cat(outs), torch.cat(sums)


def attention_by_sdpa(q: Tensor, k: Tensor, v: Tensor, q_lens: list[int], lens: list[int]) -> Tensor:
    """PyTorch's own attention, a sequence at a time."""
    group = q.size(1) // k.size(1)
    outs = []
    for qb, kb, vb in zip(q.split(q_lens), k.split(lens), v.split(lens), strict=True):
        kb, vb = (x.repeat_interleave(group, 1).transpose(0, 1)[None] for x in (kb, vb))
        outs.append(scaled_dot_product_attention(qb.transpose(0, 1)[None], kb, vb)[0].transpose(0, 1))
    return torch.cat(outs)


def add_norm_inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    x, y, dout = (random(rows, width, dtype=dtype, seed=i) for i in range(3))
    y_bias, weight, bias = (random(width, dtype=dtype, seed=i) for i in range(3, 6))
    return [x, y, weight, bias, y_bias], dout


def plain_add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, y_bias: Tensor, mask: Any = 1) -> Tensor:
    return F.layer_norm(x + (y + y_bias) * mask, (x.size(1),), weight, bias, 1e-5)


def plain_bias_act(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    if kind == "relu":
        return lambda x, bias: F.relu(x + bias)
    return lambda x, bias: F.gelu(x + bias, approximate="tanh" if kind == "gelu_tanh" else "none")


def embed_inputs(width: int, dtype: torch.dtype, tokens: int = 300) -> tuple[list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(width)
    tables = [random(n, width, dtype=dtype, seed=i) for i, n in enumerate((50, 2, 40))]
    ids = [torch.randint(0, n, (tokens,), generator=generator, dtype=torch.int32) for n in (50, 2, 40)]
    ids[0][::2] = 7  # one token often
    return tables, ids, random(tokens, width, dtype=dtype, seed=9)


def plain_embed(ids: list[Tensor]) -> Callable[..., Tensor]:
    def run(*tables: Tensor) -> Tensor:
        return sum((F.embedding(i, t) for i, t in zip(ids, tables, strict=True)), start=torch.zeros(()).to(tables[0]))

    return run
