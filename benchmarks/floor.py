"""The time of the matrix products that a training step needs, as a contestant.

All layers but the last for all tokens (in the shape `d2l` the first layer's query, key and value for distinct tokens,
segments and positions only), the last layer for the sequences' first tokens, without its keys and values; once forward
and twice backward, each by the faster of PyTorch's and bertnli's GEMM.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import MODELS, seconds
from torch import Tensor

from bertnli import EncodedTexts, ops
from bertnli.bench.race import Contestant


class Floor(Contestant):
    """The floor of steps on `batches`, which `reference` takes too."""

    def __init__(self, shape: str, data: EncodedTexts, batches: Sequence[Tensor], reference: Contestant) -> None:
        super().__init__("floor", reference.precision, lambda: None, reference.result)
        self._sizes, self._d2l = MODELS["small" if shape == "d2l" else shape], shape == "d2l"
        self._data, self._turn = data, itertools.cycle(batches)

    def seconds(self, count: int) -> list[float]:
        return [self._products(next(self._turn)) for _ in range(count)]

    def _products(self, index: Tensor) -> float:
        sizes, batch = self._sizes, self._data.batch(index)
        h, f, layers = sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_layers"]
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        tokens = projected = len(batch.input_ids)
        if self._d2l:
            projected = len(torch.unique(batch.input_ids)) + 2 + batch.max_seqlen
        total = 0.0
        torch.ops.bertnli.keep_memory(True)  # as in a step
        for rows, inputs, outputs, times in [
            (projected, h, 3 * h, 1),
            (tokens, h, 3 * h, layers - 2),
            *((tokens, i, o, layers - 1) for i, o in ((h, h), (h, f), (f, h))),
            # Of the last layer: query, absorbed query, context to value, output, FFN.
            *((len(index), i, o, 1) for i, o in ((h, h), (h, h), (h, h), (h, h), (h, f), (f, h))),
        ]:
            if times:
                x, w, y = (torch.randn(s).to(dtype) for s in ((rows, inputs), (outputs, inputs), (rows, outputs)))
                total += times * sum(min(seconds(run) for run in runs for _ in range(3)) for runs in products(x, w, y))
        torch.ops.bertnli.keep_memory(False)
        return total


def products(x: Tensor, w: Tensor, y: Tensor) -> list[list[Callable[[], Any]]]:
    """x w^T, y w and y^T x, each by PyTorch's GEMM and, where training uses it, by bertnli's."""
    out = [torch.empty_like(t) for t in (y, x, w)]
    linear, backward = torch.ops.bertnli.linear, torch.ops.bertnli.linear_backward
    runs: list[list[Callable[[], Any]]] = [
        [lambda: torch.mm(x, w.t(), out=out[0]), lambda: linear(x, w, None)],
        [lambda: torch.mm(y, w, out=out[1]), lambda: backward(y, None, w)],
        [lambda: torch.mm(y.t(), x, out=out[2]), lambda: backward(y, x, None)],
    ]
    return runs if ops.own_products(x.dtype) else [pair[:1] for pair in runs]
