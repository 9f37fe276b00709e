"""A training step on CPUs beside `transformers` and D2L's padded modules, in one process.

    python benchmarks/bench_encoder.py [--shapes small minilm] [--batch 32] [--precision fp32 bf16] [--rounds 9]
    python benchmarks/bench_encoder.py --memory        peak memory of a step instead of its time

Every contestant has the same weights and the same pairs of SNLI (generated pairs where it is absent). Their logits are
checked to agree first. Contestants alternate on the same batches. Each is timed right after an untimed step of its own:
a contestant's first step returns the memory that the one before it has freed, which takes up to 0.1 s. A ratio is the
median over rounds of (a contestant's time / bertnli's time). Dropout 0.1 and the optimizer's step are included.

    bertnli                    the step of `fit`, with bertnli's AdamW
    bertnli, torch AdamW       bertnli's model under PyTorch's fused AdamW; bf16 by autocast
    hf buckets                 transformers, SDPA; the batch sorted by length, eight sequences at a time, each group
                               padded to its longest; fused AdamW; bf16 by autocast
    hf buckets, default AdamW  the same under `torch.optim.AdamW(parameters)`
    hf longest                 transformers, the batch padded to its longest sequence; fused AdamW
    hf 128                     transformers, padded to 128; fused AdamW
    d2l 128                    D2L's modules in float32, padded to 128; D2L's Adam

The shape `d2l` is bert.small in D2L's variant (no LayerNorm on the embeddings), which transformers cannot run.

The floor is the time of the matrix products that a step needs, measured in every round right after bertnli's step:
all layers but the last for all tokens (in the shape `d2l` the first layer's query, key and value for distinct tokens,
segments and positions only), the last layer for the sequences' first tokens, without its keys and values; once forward
and twice backward, each by the faster of PyTorch's and bertnli's GEMM. `share` is the median of (floor / bertnli).

`--memory` gives MB: the growth of the process's peak in a step beyond parameters, gradients and optimizer state, each
contestant in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import append_json, machine, median_ratio, seconds
from torch import Tensor
from training_problem import NAMES, SHAPES, Bertnli, contestant, encoded

from bertnli import ops

WARMUP = 2  # rounds that are not counted


def floor(shape: str, index: Tensor, precision: str) -> float:
    """Seconds of the matrix products of a step on these examples, forward and backward."""
    sizes, batch = SHAPES[shape], encoded().batch(index)
    h, f, layers = sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_layers"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = projected = len(batch.input_ids)
    if shape == "d2l":
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


def shuffled(batch: int, count: int) -> list[Tensor]:
    """The first `count` batches of a fixed shuffle, fewer where there are no more."""
    order = torch.randperm(len(encoded()), generator=torch.Generator().manual_seed(1))
    return [order[i * batch : (i + 1) * batch] for i in range(min(count, len(order) // batch))]


def compare(shape: str, batch: int, precision: str, rounds: int, names: list[str]) -> dict[str, float]:
    """Seconds of bertnli and of the floor, and the other contestants' ratios; medians over the rounds."""
    batches = shuffled(batch, rounds + WARMUP)
    contestants = {name: contestant(name, shape, precision) for name in names}
    bertnli, sample = contestants["bertnli"], batches[0][:16]
    expected = bertnli.logits(sample)
    for name, c in contestants.items():
        torch.testing.assert_close(c.logits(sample), expected, rtol=1e-3, atol=1e-4, msg=f"{name} differs")
    times: dict[str, list[float]] = {name: [] for name in contestants}
    floors = []
    with bertnli.training():
        # As in a long run, most of the batches' sizes have occurred before they are timed.
        for index in shuffled(batch, 40 if batch <= 32 else 8):
            bertnli.step(index)
        for i, index in enumerate(batches):
            for name, c in contestants.items():
                if len(contestants) > 1:
                    c.step(index)
                elapsed = seconds(partial(c.step, index))
                if i >= WARMUP:
                    times[name].append(elapsed)
                    if name == "bertnli":
                        floors.append(floor(shape, index, precision))
    reference = times.pop("bertnli")
    return {
        "bertnli_s": statistics.median(reference),
        "floor_s": statistics.median(floors),
        "share": median_ratio(floors, reference),
        "tokens": int(statistics.median(len(encoded().batch(index).input_ids) for index in batches[WARMUP:])),
        **{name: median_ratio(t, reference) for name, t in times.items()},
    }


def memory(name: str, shape: str, batch: int, precision: str) -> float:
    """MB: the growth of this process's peak in a step, less gradients; optimizer state exists before."""
    c = contestant(name, shape, precision)
    order = torch.randperm(len(encoded()), generator=torch.Generator().manual_seed(1))
    with c.training():
        c.step(order[:8])  # optimizer state, code and small buffers
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        c.step(order[8 : 8 + batch])
        growth = _status("VmHWM") - before
    gradients = sum(p.numel() * p.element_size() for p in c.model.parameters() if p.requires_grad)
    return (growth - (0 if isinstance(c, Bertnli) else gradients)) / 1e6


def _status(name: str) -> int:
    """Bytes of an entry of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measured_apart(names: list[str], shape: str, batch: int, precision: str) -> dict[str, float]:
    """`memory` of each contestant in a process of its own."""
    command = [sys.executable, __file__, "--shapes", shape, "--batch", str(batch), "--precision", precision, "--one"]
    runs = {name: subprocess.run([*command, name], capture_output=True, check=True, text=True) for name in names}
    return {name: float(run.stdout.split()[-1]) for name, run in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    precisions = ["fp32", "bf16"]
    fast = precisions if ops.cpu_multiplies_bf16() else precisions[:1]  # elsewhere `fit` trains in float32 only
    add("--shapes", nargs="+", choices=SHAPES, default=["small", "minilm"], help="models (default: small minilm)")
    add("--batch", type=int, nargs="+", default=[32], help="pairs in a batch (default: 32)")
    add("--precision", nargs="+", choices=precisions, default=fast, help="precisions (default: those fast on this CPU)")
    add("--against", nargs="*", choices=NAMES[1:], default=NAMES[1:], help="contestants beside bertnli (default: all)")
    add("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    add("--memory", action="store_true", help="measure peak memory instead of time")
    add("--one", metavar="NAME", help=argparse.SUPPRESS)  # one contestant's memory, in this process
    add("--json", type=Path, help="file to append the figures to, one JSON object a line")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    if args.one:
        print(memory(args.one, args.shapes[0], args.batch[0], args.precision[0]))
        return
    if "d2l" in args.shapes and any(name.startswith("hf") for name in args.against):
        parser.error("transformers cannot run the shape d2l; add --against 'bertnli, torch AdamW' 'd2l 128'")
    print(machine())
    for shape, batch, precision in [(s, b, p) for s in args.shapes for b in args.batch for p in args.precision]:
        names = ["bertnli", *args.against]
        row: dict[str, Any] = {"machine": machine(), "shape": shape, "batch": batch, "precision": precision}
        if args.memory:
            row |= {"work": "memory, MB", **measured_apart(names, shape, batch, precision)}
            figures = "  ".join(f"{name} {row[name]:.0f} MB" for name in names)
        else:
            row |= {"work": "training", **compare(shape, batch, precision, args.rounds, names)}
            figures = f"bertnli {row['bertnli_s'] * 1e3:8.1f} ms, floor {row['share']:.0%}   "
            figures += "  ".join(f"{name} x{row[name]:.2f}" for name in args.against)
        print(f"{shape:7} batch {batch:4} {precision} {figures}", flush=True)
        append_json(args.json, [row])


if __name__ == "__main__":
    main()
