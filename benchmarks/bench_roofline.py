"""How near each stage comes to what the machine can do.

    pytest benchmarks/bench_roofline.py [--quick]

ceilings    operations a second of a product of 1,536 x 1,536 matrices by the faster of PyTorch's and bertnli's GEMM,
            and bytes a second of copying an array that no cache holds (bytes read and bytes written)
stages      each with the operations and bytes that its work needs at the least: `share` is the time that the ceilings
            would take over the time taken. Operations: of products only. Bytes: text read and ids written; for a step
            the parameters, their gradients and the optimizer's state once each
parts       the time of the parts of a batch's inference, each run by itself: attention, the operators of rows
            (embedding, LayerNorm, activation) and, as the rest of the whole, the products
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from common import MODELS, seconds, snli
from training_problem import encoded, model_of, tokenizer

from bertnli import ops, score
from bertnli.bench import training
from bertnli.bench.measure import BATCHES
from bertnli.bench.race import Contestant, Race, records

SIDE, COPIED = 1536, 1 << 28  # floats of a side, bytes


@cache
def ceilings(threads: int) -> dict[str, float]:
    """Operations and bytes a second."""
    torch.set_num_threads(threads)
    x, w, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    source, target = torch.ones(2, COPIED // 4)
    runs: list[Callable[[], Any]] = [lambda: torch.mm(x, w.t(), out=out), lambda: torch.ops.bertnli.linear(x, w, None)]
    product = min(seconds(run) for run in runs for _ in range(9))
    copy = min(seconds(lambda: target.copy_(source)) for _ in range(9))
    return {"operations_a_second": 2 * SIDE**3 / product, "bytes_a_second": 2 * COPIED / copy}


def products(model: str, lengths: Sequence[int]) -> float:
    """Operations of the products of a forward pass for the first token of each sequence (docs/speed.md)."""
    h, f, layers = (MODELS[model][name] for name in ("num_hiddens", "ffn_num_hiddens", "num_layers"))
    tokens, rows = sum(lengths), len(lengths)
    attention = 4 * h * sum(n * n for n in lengths)
    whole = tokens * (8 * h * h + 4 * h * f) + attention
    last = rows * (8 * h * h + 4 * h * f) + 4 * tokens * h * MODELS[model]["num_heads"]
    return float((layers - 1) * whole + last)


def measured(
    contest: Any,
    benchmark: Any,
    settings: Any,
    work: str,
    own: Contestant,
    operations: float,
    moved: float,
    **sizes: Any,
) -> None:
    """The record of a stage, with its floor by the ceilings."""
    limits = ceilings(settings.threads)
    benchmark.pedantic(Race([own]).turn, (own,), rounds=settings.rounds)
    taken = statistics.median(own.rounds)
    floor = max(operations / limits["operations_a_second"], moved / limits["bytes_a_second"])
    own.figures = {"share": floor / taken, "operations": operations, "bytes": moved, **own.figures, **limits}
    contest.add(records("roofline", work, [own], {}, sizes, settings.threads))


def test_text(contest: Any, benchmark: Any, settings: Any) -> None:
    data = snli("train")
    assert data.second is not None
    first, second = list(data.first), list(data.second)
    call = partial(tokenizer().encode_pairs, first, second)
    moved = sum(map(len, first)) + sum(map(len, second)) + 4 * len(call().ids)
    own = Contestant("bertnli", "exact", call)
    measured(contest, benchmark, settings, "pairs of strings to ids", own, 0, moved, pairs=len(first))


@pytest.mark.parametrize("model", BATCHES)
def test_inference(contest: Any, benchmark: Any, settings: Any, model: str) -> None:
    if settings.quick and model == "base":
        pytest.skip("left out by --quick")
    data, head = encoded()[: BATCHES[model]], model_of(model)
    lengths = data.lengths.tolist()
    own = Contestant("bertnli", "fp32", partial(score, head, data))
    own.figures = {f"seconds_of_{name}": s for name, s in parts(model, head, data.batch(range(len(data)))).items()}
    weights = 4 * sum(p.numel() for p in head.encoder.blks.parameters())
    measured(
        contest, benchmark, settings, "encoded pairs to scores", own, products(model, lengths), weights,
        model=model, pairs=len(data),
    )  # fmt: skip


@torch.no_grad()
def parts(model: str, head: Any, batch: Any) -> dict[str, float]:
    """Seconds of attention and of the operators of rows, in all layers but the last."""
    h, f, layers, heads = (
        MODELS[model][n] for n in ("num_hiddens", "ffn_num_hiddens", "num_layers", "num_heads")
    )  # fmt: skip
    tokens, encoder = len(batch.input_ids), head.encoder
    x, y, wide = torch.randn(tokens, h), torch.randn(tokens, h), torch.randn(tokens, f)
    qkv, ones = torch.randn(tokens, 3, heads, h // heads), torch.ones(f)
    runs: dict[str, list[Callable[[], Any]]] = {
        "attention": [lambda: ops.varlen_attention_packed(qkv, batch.cu_seqlens, batch.max_seqlen)],
        "rows": [lambda: ops.add_norm(x, y, ones[:h], ones[:h])] * 2 + [lambda: ops.bias_act(wide, ones, "gelu")],
    }
    found = {
        name: (layers - 1) * sum(min(seconds(run) for _ in range(5)) for run in each) for name, each in runs.items()
    }
    found["rows"] += min(seconds(lambda: encoder.embed(batch)) for _ in range(5))
    return found


@pytest.mark.parametrize("model", BATCHES)
def test_training(contest: Any, benchmark: Any, settings: Any, model: str) -> None:
    if settings.quick and model != "small":
        pytest.skip("left out by --quick")
    data = encoded()
    batches = training.shuffled(data, BATCHES[model], 4)
    loop = training.BertnliLoop(model_of(model), data)
    operations = 3 * sum(products(model, data.lengths[index].tolist()) for index in batches) / len(batches)
    moved = 16 * sum(p.numel() for p in loop.model.parameters())
    try:
        own = training.contestant("bertnli", loop, batches)
        measured(
            contest, benchmark, settings, "training step", own, operations, moved, model=model, pairs=BATCHES[model]
        )
    finally:
        loop.end()
