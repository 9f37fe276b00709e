"""Varlen attention on SNLI's lengths against PyTorch's attention: padded to 128, and in groups of equal length.

    pytest benchmarks/bench_attention.py --benchmark-columns=median,iqr,rounds --benchmark-group-by=group -s
    OMP_NUM_THREADS=1 pytest benchmarks/bench_attention.py -k "bert.small and float32"

Forward and backward are timed by themselves, with dropout 0.1, and forward without dropout too ("inference"). Each test
first requires equal outputs and gradients without dropout. Then pytest-benchmark times every contestant by itself, and
"times ours" is the median of ratios of pairs of runs, taken one after the other so that both see the same machine, each
after a run of its own: else a run would give back to the system what the peer before it has freed. The peers get their
best case: the padded one starts from tensors that are padded already, and the sequences lie sorted by length, so that
a group is a slice of the packed tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common import snli_lengths
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bertnli import ops

BATCH, PADDED = 64, 128
MODELS = {"bert.small": (4, 64), "MiniLM": (12, 32), "bert.base": (12, 64)}  # heads, width of a head


class Problem:
    """Queries, keys and values of one batch, packed and padded."""

    def __init__(self, heads: int, width: int, dtype: torch.dtype) -> None:
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


def seconds(function: Callable[[], Any]) -> float:
    """Of a second run."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("what", ["inference", "forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("contestant", ["ours", "sdpa_padded", "sdpa_groups"])
def test_attention(benchmark: Any, contestant: str, model: str, dtype: torch.dtype, what: str) -> None:
    problem = Problem(*MODELS[model], dtype)
    actual = problem.work(contestant, what, 0.0)()
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(
        actual[problem.valid] if contestant == "sdpa_padded" else actual,
        problem.work("ours", what, 0.0)(),
        atol=tolerance,
        rtol=tolerance,
    )

    p = 0.0 if what == "inference" else 0.1
    work, ours = problem.work(contestant, what, p), problem.work("ours", what, p)
    rounds = 25 if contestant == "ours" else 5
    benchmark.group = f"{model} {str(dtype).removeprefix('torch.')} {what}"
    benchmark.pedantic(work, warmup_rounds=1, rounds=rounds)
    line = f"\n{benchmark.group}: {contestant} {benchmark.stats.stats.median * 1e3:.2f} ms"
    if contestant == "ours":
        # two products forward, five backward (one of them again)
        flops = (5 if what == "backward" else 2) * problem.product / benchmark.stats.stats.median
        threads = torch.get_num_threads()
        line += f", {flops / threads / 1e9:.1f} GF/s for each of {threads} threads, {ops.cpu_isa()}"
    else:
        ratio = statistics.median(seconds(work) / seconds(ours) for _ in range(15))
        benchmark.extra_info["times_ours"] = ratio
        line += f", {ratio:.2f} times ours"
    print(line)
