"""The operators that work row by row, beside torch.compile of PyTorch's expressions and the expressions themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli import ops
from gpu.bench import Bench

DROPOUT = 0.1
VOCAB_SIZE = 30_522
Function = Callable[..., Tensor]


def row_operators(bench: Bench, tokens: int, width: int, ffn: int) -> None:
    """Add a row for each operator, forward and backward: `add_norm` and `embed` at `width`, `bias_act` at `ffn`."""
    for name, (operator, expression, inputs) in _cases(bench.device, tokens, width, ffn).items():
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        dout = torch.randn_like(operator(*leaves))

        def both(function: Function, leaves: list[Tensor] = leaves, dout: Tensor = dout) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(function(*leaves), leaves, dout)

        contestants = {
            "bertnli": both(operator),
            "torch.compile": both(torch.compile(expression, backend=bench.compiler)),
            "eager": both(expression),
        }
        bench.compare("rows", contestants, kernels=True, operator=name, tokens=tokens, width=width)


def _cases(
    device: torch.device, tokens: int, width: int, ffn: int
) -> dict[str, tuple[Function, Function, list[Tensor]]]:
    """Name to bertnli's operator, PyTorch's expression, and the inputs that get gradients."""
    x = torch.randn(tokens, width, device=device)
    y = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    z = torch.randn(tokens, ffn, device=device, dtype=torch.bfloat16)
    vector, ffn_vector = torch.randn(width, device=device), torch.randn(ffn, device=device)
    tables = [torch.randn(n, width, device=device) for n in (VOCAB_SIZE, 2, 512)]
    ids = [torch.randint(0, n, (tokens,), device=device, dtype=torch.int32) for n in (VOCAB_SIZE, 2, 60)]

    def add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, y_bias: Tensor) -> Tensor:
        return F.layer_norm(x + F.dropout(y + y_bias, DROPOUT), (width,), weight, bias)

    def bias_act(z: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(z + bias.to(z.dtype))

    def embed(*tables: Tensor) -> Tensor:
        return sum((F.embedding(i, t) for i, t in zip(ids, tables, strict=True)), start=torch.zeros((), device=device))

    return {
        "add_norm": (
            lambda x, y, weight, bias, y_bias: ops.add_norm(x, y, weight, bias, 1e-5, DROPOUT, y_bias=y_bias),
            add_norm,
            [x, y, vector, vector, vector],
        ),
        "bias_act": (lambda z, bias: ops.bias_act(z, bias, "gelu"), bias_act, [z, ffn_vector]),
        "embed": (lambda *tables: ops.embed(*tables, *ids), embed, tables),
    }
