"""Timing of contestants on one device, and the table of results."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import median_ratio
from torch import Tensor

Contestants = dict[str, Callable[[], Any]]
_CALLS = 10  # of a contestant in one CUDA graph


class Bench:
    """Times contestants until the time is up, and keeps the rows of the table."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.rounds, self.json = torch.device(args.device), args.rounds, args.json
        self.deadline = time.monotonic() + 60 * args.minutes
        self.compiler = "eager" if args.tiny else "inductor"  # torch.compile's backend
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine()
        self.about = dict(device=name, torch=torch.__version__, python=platform.python_version())
        self.rows: list[dict[str, Any]] = []
        self.status = 0

    @contextlib.contextmanager
    def part(self, **about: Any) -> Iterator[None]:
        """An exception inside becomes a row and a traceback; the program continues."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail({**about, "fails": _first_line(error)})

    def fail(self, row: dict[str, Any]) -> None:
        self.status = 1
        self.add(row)

    def out_of_time(self, **about: Any) -> bool:
        """Whether the time is up. Where `about` is given, a row then says what is skipped."""
        late = time.monotonic() > self.deadline
        if late and about:
            self.add({**about, "skipped": "out of time"})
        return late

    def add(self, row: dict[str, Any]) -> None:
        """Print a row and write all rows so far, so that they survive a time limit from outside."""
        self.rows.append(row)
        print("  ".join(f"{name} {_shown(name, value)}" for name, value in row.items()), flush=True)
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps({**self.about, "rows": self.rows}, indent=2) + "\n", encoding="utf-8")

    def check_close(self, actual: Tensor, expected: Tensor, tolerance: float, **about: Any) -> None:
        """Add a row with "differs" where a contestant's result is not bertnli's within the tolerance."""
        try:
            torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)
        except AssertionError as error:
            self.fail({**about, "differs": " ".join(str(error).split())[:200]})

    def seconds(self, run: Callable[[], Any], repeats: int) -> float:
        """Mean time of a call: on a GPU the device's, elsewhere the wall time."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def launch_seconds(self, run: Callable[[], Any]) -> float:
        """Median time until the host is free again."""
        times = []
        for _ in range(self.rounds):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        return statistics.median(times)

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any] | None:
        """_CALLS calls of `run` as a CUDA graph, which excludes launches; None where capture fails."""
        if self.device.type != "cuda":
            return None
        stream, warmup = torch.cuda.current_stream(), torch.cuda.Stream()
        warmup.wait_stream(stream)
        with torch.cuda.stream(warmup):
            run()
        stream.wait_stream(warmup)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream), torch.cuda.graph(graph):
                for _ in range(_CALLS):
                    run()
        except Exception:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def compare(self, work: str, contestants: Contestants, kernels: bool = False, **about: Any) -> None:
        """Add a row: milliseconds of "bertnli", the first contestant, and the other contestants' ratios.

        With `kernels`, each contestant is a CUDA graph; one that cannot be captured has ", launched" in its name.
        """
        if self.out_of_time(work=work, **about):
            return
        row: dict[str, Any] = {"work": work, **about}
        ready = self._warmed_up(contestants, kernels, row)
        # Enough calls that one timing takes 10 ms or more and the host is ahead of the device.
        repeats = max(3, min(50, round(0.01 / max(1e-6, self.seconds(ready["bertnli"][0], 3)))))
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.rounds):
            for name, (run, calls) in ready.items():
                times[name].append(self.seconds(run, repeats) / calls)
        reference = times.pop("bertnli")
        row["bertnli_ms"] = 1e3 * statistics.median(reference)
        if self.device.type == "cuda" and not kernels:
            row["launch_ms"] = 1e3 * self.launch_seconds(ready["bertnli"][0])
        self.add(row | {name: median_ratio(t, reference) for name, t in times.items()})

    def _warmed_up(
        self, contestants: Contestants, kernels: bool, row: dict[str, Any]
    ) -> dict[str, tuple[Callable[[], Any], int]]:
        """What is to be timed and how many calls it contains, by name. `row` names contestants that fail."""
        ready: dict[str, tuple[Callable[[], Any], int]] = {}
        for name, run in contestants.items():
            if ready and self.out_of_time():  # after a contestant that was slow to compile
                row[name] = "skipped"
                continue
            try:
                for _ in range(3):
                    run()
                graph = self.captured(run) if kernels else None
            except Exception as error:  # a peer that this PyTorch or device lacks
                if name == "bertnli":
                    raise
                row[name] = f"fails: {_first_line(error)}"
                continue
            launched = kernels and graph is None and self.device.type == "cuda" and bool(ready)
            ready[f"{name}, launched" if launched else name] = (graph, _CALLS) if graph else (run, 1)
        return ready


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{'' if name.endswith(('_ms', '_mib', 'dropout')) else 'x'}{value:.2f}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}"
