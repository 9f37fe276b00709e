"""Inputs of the operators, and their definitions in PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bertnli import ops
from helpers.isa import ISAS

WIDTHS = [1, 3, 16, 37, 64, 384]

DTYPES = [
    *((isa, dtype) for isa in ISAS for dtype in (torch.float32, torch.bfloat16)),
    ("plain", torch.float64),
]


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


def plain_add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, y_bias: Tensor, *, mask: Any = 1) -> Tensor:
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


def assert_as_exact_as_pytorch(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], dout: Tensor
) -> None:
    """Our error against float64 is at most twice that of PyTorch in the same dtype, outputs and gradients."""
    exact = with_gradients(theirs, [x.double() for x in inputs], dout.double())
    results = zip(with_gradients(ours, inputs, dout), with_gradients(theirs, inputs, dout), exact, strict=True)
    for i, (a, b, reference) in enumerate(results):
        assert a.shape == reference.shape
        assert a.dtype == b.dtype
        # PyTorch's float64 is the reference itself; one unit of bfloat16 is more than a difference of rounding
        units = {torch.float32: 4, torch.bfloat16: 0.5, torch.float64: 1000}[a.dtype]
        floor = torch.finfo(a.dtype).eps * units * float(reference.abs().max())
        if a.dtype == torch.float64:
            floor = max(floor, 1e-12)  # where the true value is 0, as the gradient of a row of one column
        error, their_error = (float((x.double() - reference).abs().max()) for x in (a, b))
        assert error <= 2 * their_error + floor, f"result {i}: {error} against {their_error} of PyTorch"


def cases(dtype: torch.dtype, rows: int, width: int) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    inputs, _ = add_norm_inputs(rows, width, dtype)
    tables, ids, _ = embed_inputs(width, dtype, rows)
    seed = torch.tensor([5, 6])
    return {
        "add_norm": (lambda x, y, w, b, v: ops.add_norm(x, y, w, b, 1e-5, 0.3, y_bias=v, seed=seed), inputs),
        "no_dropout": (lambda x, y, w, b: ops.add_norm(x, y, w, b), inputs[:4]),
        "linear": (torch.ops.bertnli.linear, [inputs[0], random(width, width, dtype=dtype), inputs[3]]),
        "relu": (lambda x, b: ops.bias_act(x, b, "relu"), [inputs[0], inputs[3]]),
        "gelu": (lambda x, b: ops.bias_act(x, b, "gelu"), [inputs[0], inputs[3]]),
        "gelu_tanh": (lambda x, b: ops.bias_act(x, b, "gelu_tanh"), [inputs[0], inputs[3]]),
        "embed": (lambda *t: ops.embed(*t, *ids), tables),
        "take": (lambda table: ops.take(table, ids[0]), tables[:1]),
        "embed_norm": (
            lambda t, s, p, w, b: ops.embed_norm(t, s, p, ids[0], ids[1], ids[2], w, b, 1e-5, 0.3, seed=seed),
            [*tables, *inputs[2:4]],
        ),
    }


CASES = list(cases(torch.float32, 1, 1))
