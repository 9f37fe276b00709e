"""Varlen attention on SNLI's lengths against PyTorch's attention: padded to 128, and in groups of equal length.

    pytest benchmarks/bench_attention.py --benchmark-columns=median,iqr,rounds --benchmark-group-by=group

Each test first requires equal outputs and gradients without dropout. Then pytest-benchmark times every contestant by
itself, and "times ours" is the median of ratios of pairs of runs, taken one after the other so that both see the same
machine. The peers get their best case: the padded one starts from tensors that are padded already, and the sequences
lie sorted by length, so that a group is a slice of the packed tokens.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bertnli import ops

BATCH, PADDED = 64, 128
MODELS = {"bert.small": (4, 64), "MiniLM": (12, 32), "bert.base": (12, 64)}  # heads, width of a head


def snli_lengths(count: int) -> list[int]:
    """Tokens of `count` pairs and their three special tokens: SNLI's dev set, or drawn like it where it is absent."""
    folder = Path(os.environ.get("BERTNLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "snli_1.0" / "snli_1.0_dev.txt"
    if not path.exists():
        drawn = np.random.default_rng(0).lognormal(np.log(25.5), 0.32, count)
        return [int(n) for n in np.clip(drawn.round(), 8, 60)]
    with path.open(encoding="utf-8") as file:
        next(file)
        rows = [line.split("\t") for _, line in zip(range(count), file, strict=False)]
    return [3 + sum(word not in "()" for text in row[1:3] for word in text.split()) for row in rows]


class Problem:
    """Queries, keys and values of one batch, packed and padded; `train` adds the backward pass and dropout 0.1."""

    def __init__(self, heads: int, width: int, dtype: torch.dtype, train: bool) -> None:
        self.lens = sorted(snli_lengths(BATCH))
        self.heads, self.train = heads, train
        self.cu_seqlens = torch.tensor([0, *self.lens]).cumsum(0).to(torch.int32)
        generator = torch.Generator().manual_seed(0)
        self.packed = torch.randn(sum(self.lens), 3, heads, width, generator=generator).to(dtype)
        self.dout = torch.randn(sum(self.lens), heads, width, generator=generator).to(dtype)
        self.valid = torch.arange(PADDED) < torch.tensor(self.lens)[:, None]  # (B, L)
        self.padded, self.padded_dout = self.pad(self.packed), self.pad(self.dout)
        self.mask = self.valid[:, None, None, :]
        # two products forward, five backward (one of them again), two operations a multiplication
        self.flops = (14 if train else 4) * sum(n * n for n in self.lens) * heads * width

    def pad(self, packed: Tensor) -> Tensor:
        padded = packed.new_zeros(len(self.lens), PADDED, *packed.shape[1:])
        padded[self.valid] = packed
        return padded

    def ours(self, p: float) -> tuple[Tensor, Tensor | None]:
        return self.run(
            lambda qkv: ops.varlen_attention_packed(qkv, self.cu_seqlens, self.lens[-1], p), self.packed, self.dout
        )

    def sdpa_padded(self, p: float) -> tuple[Tensor, Tensor | None]:
        def attention(qkv: Tensor) -> Tensor:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            return scaled_dot_product_attention(q, k, v, self.mask, p).transpose(1, 2)

        return self.run(attention, self.padded, self.padded_dout)

    def sdpa_groups(self, p: float) -> tuple[Tensor, Tensor | None]:
        def attention(qkv: Tensor) -> Tensor:
            outs, at = [], 0
            for length, count in zip(*np.unique(self.lens, return_counts=True), strict=True):
                group = qkv[at : at + length * count].unflatten(0, (int(count), int(length)))
                q, k, v = group.permute(2, 0, 3, 1, 4)
                outs.append(scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(0, 1))
                at += length * count
            return torch.cat(outs)

        return self.run(attention, self.packed, self.dout)

    def run(self, attention: Callable[[Tensor], Tensor], qkv: Tensor, dout: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.train:
            with torch.no_grad():
                return attention(qkv), None
        qkv = qkv.detach().requires_grad_()
        out = attention(qkv)
        return out.detach(), torch.autograd.grad(out, qkv, dout)[0]


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("contestant", ["ours", "sdpa_padded", "sdpa_groups"])
def test_attention(benchmark: Any, contestant: str, model: str, dtype: torch.dtype, train: bool) -> None:
    problem = Problem(*MODELS[model], dtype, train)
    run: Callable[[float], tuple[Tensor, Tensor | None]] = getattr(problem, contestant)
    p = 0.1 if train else 0.0

    for expected, actual in zip(problem.ours(0.0), run(0.0), strict=True):
        if expected is not None and actual is not None:
            actual = actual[problem.valid] if contestant == "sdpa_padded" else actual
            tolerance = 1e-5 if dtype == torch.float32 else 5e-2
            torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)

    benchmark.group = f"{model} {str(dtype).removeprefix('torch.')} {'training' if train else 'inference'}"
    benchmark.pedantic(run, args=(p,), warmup_rounds=1, rounds=5)
    line = f"\n{benchmark.group}: {contestant}"
    if contestant == "ours":
        flops = problem.flops / benchmark.stats.stats.median
        line += f" {flops / 1e9:.1f} GF/s with {torch.get_num_threads()} threads, {ops.cpu_isa()}"
    else:
        ratio = statistics.median(seconds(lambda: run(p)) / seconds(lambda: problem.ours(p)) for _ in range(5))
        benchmark.extra_info["times_ours"] = ratio
        line += f" takes {ratio:.2f} times ours"
    print(line)
