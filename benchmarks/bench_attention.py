"""Varlen attention on SNLI's lengths against PyTorch's attention: padded to 128, and in groups of equal length.

    pytest benchmarks/bench_attention.py [-k "small and fp32"]

Forward and backward are timed by themselves, with dropout 0.1, and forward without dropout too ("inference"). Outputs
and gradients without dropout must agree. The peers get their best case: the padded one starts from tensors that are
padded already, and the sequences lie sorted by length, so that a group is a slice of the packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common import MODELS, snli_lengths
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bertnli import ops
from bertnli.bench.race import Contestant

BATCH, PADDED = 64, 128
CONTESTANTS = {"bertnli": "ours", "SDPA padded to 128": "sdpa_padded", "SDPA in groups of a length": "sdpa_groups"}


class Problem:
    """Queries, keys and values of one batch, packed and padded."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        heads = MODELS[model]["num_heads"]
        width = MODELS[model]["num_hiddens"] // heads
        self.lens = sorted(snli_lengths(BATCH))
        self.cu_seqlens = torch.tensor([0, *self.lens]).cumsum(0).to(torch.int32)
        generator = torch.Generator().manual_seed(0)
        self.packed = torch.randn(sum(self.lens), 3, heads, width, generator=generator).to(dtype)
        self.dout = torch.randn(sum(self.lens), heads, width, generator=generator).to(dtype)
        self.valid = torch.arange(PADDED) < torch.tensor(self.lens)[:, None]  # (B, L)
        self.padded, self.padded_dout = self.pad(self.packed), self.pad(self.dout)
        self.mask = self.valid[:, None, None, :]
        self.product = 2 * sum(n * n for n in self.lens) * heads * width  # operations of one of the products

    def pad(self, packed: Tensor) -> Tensor:
        padded = packed.new_zeros(len(self.lens), PADDED, *packed.shape[1:])
        padded[self.valid] = packed
        return padded

    def ours(self, qkv: Tensor, p: float) -> Tensor:
        return ops.varlen_attention_packed(qkv, self.cu_seqlens, self.lens[-1], p)

    def sdpa_padded(self, qkv: Tensor, p: float) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v, self.mask, p).transpose(1, 2)

    def sdpa_groups(self, qkv: Tensor, p: float) -> Tensor:
        outs, at = [], 0
        for length, count in zip(*np.unique(self.lens, return_counts=True), strict=True):
            group = qkv[at : at + length * count].unflatten(0, (int(count), int(length)))
            q, k, v = group.permute(2, 0, 3, 1, 4)
            outs.append(scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(0, 1))
            at += length * count
        return torch.cat(outs)

    def work(self, contestant: str, what: str, p: float) -> Callable[[], Tensor]:
        """What is timed: the output, or the gradient of q, k and v."""
        attention: Callable[[Tensor, float], Tensor] = getattr(self, contestant)
        qkv, dout = (self.padded, self.padded_dout) if contestant == "sdpa_padded" else (self.packed, self.dout)
        if what == "backward":
            leaf = qkv.detach().requires_grad_()
            out = attention(leaf, p)
            return lambda: torch.autograd.grad(out, leaf, dout, retain_graph=True)[0]

        def forward() -> Tensor:
            # As in training: what backward needs is kept.
            return attention(qkv.detach().requires_grad_(what == "forward"), p).detach()

        return forward


@pytest.mark.parametrize("what", ["inference", "forward", "backward"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_attention(contest: Any, settings: Any, model: str, precision: str, what: str) -> None:
    if settings.quick and model != "small":
        pytest.skip("left out by --quick")
    problem = Problem(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    p = 0.0 if what == "inference" else 0.1
    contestants = []
    for name, method in CONTESTANTS.items():
        exact, padded = problem.work(method, what, 0.0), method == "sdpa_padded"
        result = (lambda run=exact: run()[problem.valid]) if padded else exact
        contestants.append(Contestant(name, precision, problem.work(method, what, p), result))
    found = contest("attention", contestants, **{"pass": what}, model=model, pairs=BATCH)
    # Two products forward, five backward (one of them again).
    flops = (5 if what == "backward" else 2) * problem.product / found[0]["seconds"] / torch.get_num_threads()
    print(f"{model} {precision} {what}: {flops / 1e9:.1f} GF/s a thread")
