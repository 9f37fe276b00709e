"""A training step on CPUs beside transformers and D2L's padded modules.

    pytest benchmarks/bench_training.py [--quick] [-k "step and small"]

In one process. Every contestant has the same weights and the same pairs of SNLI (generated pairs where it is absent);
their logits must agree first. Dropout 0.1 and the optimizer's step are included.

    bertnli                     the step of `fit`, with bertnli's AdamW
    bertnli, torch AdamW        bertnli's model under PyTorch's fused AdamW; bf16 by autocast
    transformers, buckets       SDPA; the batch sorted by length, eight sequences at a time, each group padded to its
                                longest; fused AdamW; bf16 by autocast
    transformers, plain AdamW   the same under `torch.optim.AdamW(parameters)`
    transformers, longest       the batch padded to its longest sequence; fused AdamW
    transformers, 128           padded to 128; fused AdamW
    D2L (float32)               D2L's modules in float32, padded to 128; its Adam
    floor                       the matrix products that a step needs (floor.py): its ratio is a share of the step

The model `d2l` is bert.small in D2L's variant (no LayerNorm on the embeddings), which transformers cannot run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import notebook
import pytest
import torch
from common import ROOT
from floor import Floor
from training_problem import NAMES, OF_TRANSFORMERS, encoded, loop_of

from bertnli import ops
from bertnli.bench.machine import versions_of
from bertnli.bench.race import Contestant, Race, records
from bertnli.bench.training import BertnliLoop, contestant, shuffled
from bertnli.runtime.memory import flush_denormals

QUICK = [("small", 32), ("d2l", 32), ("minilm", 32)]
BATCHES = [*QUICK, ("small", 16), ("small", 512), ("d2l", 16), ("d2l", 512), ("minilm", 128), ("base", 64)]
PRECISIONS = ["fp32", *(["bf16"] if ops.cpu_multiplies_bf16() else [])]  # elsewhere `fit` trains in float32 only


def peers_of(shape: str, batch: int, quick: bool) -> tuple[str, ...]:
    """Contestants beside bertnli's, without those that would take minutes."""
    padded = ("D2L (float32)",) if shape != "base" else ()
    if shape == "d2l":
        return (*NAMES[1:], *padded)
    if quick and shape == "minilm":
        return OF_TRANSFORMERS[:1]
    return (*NAMES[1:], *(OF_TRANSFORMERS if batch <= 128 else OF_TRANSFORMERS[:1]), *padded)


@contextmanager
def loops_of(
    shape: str, precision: str, names: tuple[str, ...], batches: list[torch.Tensor]
) -> Iterator[list[Contestant]]:
    """The contestants; bertnli's loop has taken steps of most sizes before, as in a long run."""
    found = []
    with ExitStack() as stack:
        for name in names:
            loop = loop_of(name, shape, precision)
            found.append(contestant(name, loop, batches))
            if isinstance(loop, BertnliLoop):
                logits = loop.logits(batches[0][:16].sort().values)  # the steps change them
                found[-1].result = logits.clone
                stack.callback(loop.end)
                for index in batches:
                    loop.step(index)
            if "transformers" in name:
                found[-1].versions = versions_of(("transformers",))
            found[-1].precision = precision
        yield found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("shape", "batch"), BATCHES)
def test_step(contest: Any, settings: Any, shape: str, batch: int, precision: str) -> None:
    if settings.quick and (shape, batch) not in QUICK:
        pytest.skip("left out by --quick")
    batches = shuffled(encoded(), batch, 40 if batch <= 32 else 8)
    names = ("bertnli", *peers_of(shape, batch, settings.quick))
    # The logits are compared in float32; 1e-4 of the largest one.
    tolerance = dict.fromkeys(("fp32", "bf16"), 1e-4)
    with flush_denormals(), loops_of(shape, precision, names, batches) as contestants:
        contestants.append(Floor(shape, encoded(), batches, contestants[0]))
        contest("training step", contestants, tolerance=tolerance, model=shape, pairs=batch)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("shape", "batch"), BATCHES)
def test_memory(contest: Any, benchmark: Any, settings: Any, shape: str, batch: int, precision: str) -> None:
    """Peak memory of a step beyond parameters, gradients and optimizer state, each contestant in its own process."""
    if settings.quick and (shape, batch) != ("small", 32):
        pytest.skip("left out by --quick")
    if shape == "d2l":
        pytest.skip("as the model small")

    def measure(name: str) -> Contestant:
        command = [
            sys.executable,
            str(Path(__file__).parent / "training_problem.py"),
            name,
            shape,
            str(batch),
            precision,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, text=True)
        return Contestant(name, precision, lambda: None, memory=int(done.stdout.split()[-1]))

    names = (*NAMES, "transformers, buckets", "transformers, 128")
    found = benchmark.pedantic(lambda: [measure(name) for name in names])
    parameters = {"model": shape, "pairs": batch}
    contest.add(records("training", "memory of a training step", found, {}, parameters, settings.threads))


@pytest.mark.parametrize("batch", [32, 512])
def test_notebook(contest: Any, settings: Any, batch: int) -> None:
    """The loop of D2L's chapter around D2L's classes and around bertnli's (notebook.py)."""
    if settings.quick and batch == 512:
        pytest.skip("left out by --quick")
    with flush_denormals():  # as in `train_ch13`
        contest("step of D2L's notebook", notebook.contestants(batch), pairs=batch)


BUSY = """
import os, sys, time
if "BENCH_TORCH_FIRST" in os.environ:
    import torch  # loads OpenMP before bertnli can set how its threads wait
import bertnli
from bertnli.bench.training import BertnliLoop, shuffled
from training_problem import encoded, model_of
loop = BertnliLoop(model_of("small"), encoded())
batches = shuffled(encoded(), 16, 60)
times = []
for half in (batches[:30], batches[30:]):  # the first warms up
    start = time.perf_counter()
    for index in half:
        loop.step(index)
    times.append(time.perf_counter() - start)
print(times[1])
"""
WAITING: dict[str, dict[str, str]] = {
    "bertnli": {},
    "OpenMP's default": {"BENCH_TORCH_FIRST": "1"},  # threads spin for milliseconds
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},  # threads sleep at once
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@pytest.mark.parametrize("busy", [0, 1, 2])
def test_busy_machine(contest: Any, benchmark: Any, settings: Any, busy: int) -> None:
    """30 steps of 16 pairs of bert.small beside processes that compute, by how OpenMP's threads wait for each other."""
    if settings.quick:
        pytest.skip("left out by --quick")

    class Waiting(Contestant):
        def seconds(self, count: int) -> list[float]:
            kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
            path = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))}
            command = [sys.executable, "-c", BUSY]
            environment = kept | path | WAITING[self.name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return [float(done.stdout)]

    race = Race([Waiting(name, "fp32", lambda: None) for name in WAITING], warm=False, calls=1)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        benchmark.pedantic(race.turn, (race.contestants[0],), setup=race.others, rounds=3)
    finally:
        for process in others:
            process.kill()
    parameters = {"busy_processes": busy, "steps": 30, "pairs": 16}
    contest.add(records("training", "steps on a busy machine", race.contestants, {}, parameters, settings.threads))
