"""Contestants that do the same work in turn, and the records of their times."""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertnli.bench.machine import circumstances

#: How far results may be from bertnli's, as a share of the largest value.
TOLERANCE = {"exact": 0.0, "fp32": 1e-4, "bf16": 5e-2, "int8": 0.15}
PRECISIONS = ("fp32", "bf16", "int8")  # from the best to the coarsest
#: The fields of a record, in their order. `missing` is why a contestant has no times.
FIELDS = (
    *(
        "suite",
        "work",
        "parameters",
        "contestant",
        "precision",
        "seconds",
        "p50",
        "p95",
        "spread",
        "ratio",
        "ratio_low",
    ),
    *("ratio_high", "rounds", "memory", "figures", "missing", "machine", "cpu", "threads", "versions", "flags"),
    *("commit", "date"),
)
Record = dict[str, Any]


@dataclass
class Contestant:
    """One way to do a piece of work.

    name        "bertnli", or the peer's name
    precision   "fp32", "bf16" or "int8", or "exact" for work without floating-point numbers
    call        does the work once
    result      what must agree with the other contestants' results (default: what `call` returns)
    share       part of the work that one call does: its times are divided by it
    versions    of the libraries that it uses
    memory      bytes that it needs at its peak, where that is asked for
    figures     other numbers, such as an accuracy
    """

    name: str
    precision: str
    call: Callable[[], Any]
    result: Callable[[], Any] | None = None
    share: float = 1.0
    versions: dict[str, str] = field(default_factory=dict)
    memory: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list, init=False)  # seconds of a call, the mean of each round
    calls: list[float] = field(default_factory=list, init=False)  # seconds of each call

    def seconds(self, count: int) -> list[float]:
        """Seconds of each of `count` calls."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            returned = self.call()
            times.append(time.perf_counter() - start)
            del returned  # (freeing it is not part of the work)
        return times

    def output(self) -> np.ndarray[Any, Any]:
        return flat((self.result or self.call)())


def flat(result: Any) -> np.ndarray[Any, Any]:
    """All numbers of a result, float64 [N]."""
    if isinstance(result, torch.Tensor):
        result = result.detach().float().numpy() if result.is_floating_point() else result.numpy()
    elif isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (list, tuple)) and result and not isinstance(result[0], (int, float)):
        return np.concatenate([flat(part) for part in result])
    return np.asarray(result, np.float64).reshape(-1)


def agreeing(contestants: Sequence[Contestant], tolerance: Mapping[str, float] = TOLERANCE) -> dict[str, str]:
    """{name and precision: why it is left out} of the contestants that fail or do not give the first one's results."""
    expected, left_out = contestants[0].output(), {}
    for c in contestants[1:]:
        try:
            found = c.output()
        except Exception as error:
            if c.name.startswith("bertnli"):
                raise
            left_out[f"{c.name} {c.precision}"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
            continue
        if found.shape != expected.shape:
            left_out[f"{c.name} {c.precision}"] = f"gives {found.size} numbers where bertnli gives {expected.size}"
            continue
        distance = float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30))
        if not distance <= tolerance[c.precision]:  # not where it is NaN, either
            left_out[f"{c.name} {c.precision}"] = f"differs from bertnli by {distance:.1e} of the largest value"
    return left_out


class Race:
    """Times contestants in turn.

    contestants   the first is timed last in a round
    seconds       a round repeats a contestant's call for about so long
    pause         seconds before each turn, in which the threads of another library go to sleep
    warm          do an untimed call before each turn: it finds the caches and the freed memory of its own
    calls         calls of a turn, instead of those that take `seconds`
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        seconds: float = 0.1,
        pause: float = 0.0,
        warm: bool = True,
        calls: int | None = None,
    ) -> None:
        self.contestants, self.pause, self.warm = list(contestants), pause, warm
        gc.collect()
        self.counts = {id(c): calls or max(1, min(2000, round(seconds / c.seconds(1)[0]))) for c in contestants}

    def turn(self, contestant: Contestant) -> None:
        time.sleep(self.pause)
        if self.warm:
            contestant.seconds(1)
        times = [s / contestant.share for s in contestant.seconds(self.counts[id(contestant)])]
        contestant.calls += times
        contestant.rounds.append(statistics.mean(times))

    def others(self) -> None:
        """A turn of all but the first."""
        for c in self.contestants[1:]:
            self.turn(c)

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            self.others()
            self.turn(self.contestants[0])


def interval(ratios: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, by the bootstrap."""
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def records(
    suite: str,
    work: str,
    contestants: Sequence[Contestant],
    missing: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> list[Record]:
    """A record of each contestant after a race, and of each that could not take part.

    suite        the stage: text, attention, encoder, training, inference, end_to_end, service
    work         what was done, in words
    missing      {name and precision, "openvino int8": the reason}
    parameters   sizes: {"model": "minilm", "pairs": 128}

    `ratio` is the median over rounds of (its time / the time of the bertnli of the same precision), with its 95 %
    confidence interval; `spread` the distance of the quartiles of the rounds over their median; `p50` and `p95` are
    percentiles of single calls.
    """
    about = {"suite": suite, "work": work, "parameters": dict(parameters or {})}
    where = circumstances(threads)
    versions = where["versions"] | {name: v for c in contestants for name, v in c.versions.items()}
    found = []
    for c in contestants:
        own: dict[str, Any] = {"contestant": c.name, "precision": c.precision, "memory": c.memory, "figures": c.figures}
        if c.rounds:
            low, middle, high = np.percentile(c.rounds, [25, 50, 75])
            p50, p95 = np.percentile(c.calls, [50, 95])
            own |= {"seconds": float(middle), "spread": float((high - low) / middle), "rounds": len(c.rounds)}
            own |= {"p50": float(p50), "p95": float(p95)}
            reference = next((r for r in contestants if (r.name, r.precision) == ("bertnli", c.precision)), None)
            if reference is not None:
                ratios = [a / b for a, b in zip(c.rounds, reference.rounds, strict=True)]
                own["ratio"] = statistics.median(ratios)
                own["ratio_low"], own["ratio_high"] = interval(ratios)
        found.append(about | own | where | {"versions": versions})
    for name, reason in (missing or {}).items():
        contestant, _, precision = name.rpartition(" ")
        found.append(about | {"contestant": contestant, "precision": precision, "missing": reason} | where)
    return [{name: record.get(name) for name in FIELDS} for record in found]


def contest(
    suite: str,
    work: str,
    contestants: Sequence[Contestant],
    rounds: int,
    missing: Mapping[str, str] | None = None,
    **parameters: Any,
) -> list[Record]:
    """Compare the results, let those that agree with the first contestant's race, and give the records."""
    missing = {**(missing or {}), **agreeing(contestants)}
    taking_part = [c for c in contestants if f"{c.name} {c.precision}" not in missing]
    Race(taking_part).run(rounds)
    return records(suite, work, taking_part, missing, parameters)


def append(path: str | os.PathLike[str], found: Sequence[Record]) -> None:
    """Append one JSON object a line, without the fields that are None."""
    with Path(path).open("a", encoding="utf-8") as file:
        for record in found:
            file.write(json.dumps({name: value for name, value in record.items() if value is not None}) + "\n")


def read(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file; a field that is not there is None."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [{**dict.fromkeys(FIELDS), **json.loads(line)} for line in lines]


def table(found: Sequence[Record]) -> str:
    """The records of one race as lines: time, percentile, and the ratio to bertnli."""
    lines = []
    for r in found:
        name = f"  {r['contestant']} {r['precision']}".ljust(42)
        if r["missing"]:
            lines.append(f"{name} left out: {r['missing']}")
            continue
        line = name
        if r["seconds"] is not None:
            line += f" {duration(r['seconds']):>11}  p95 {duration(r['p95']):>11}"
        if r["ratio"] is not None and r["contestant"] != "bertnli":
            line += f"  x{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
        line += "".join(f"  {name} {value:.4g}" for name, value in (r["figures"] or {}).items())
        if r["memory"]:
            line += f"  {r['memory'] / 1e6:.0f} MB"
        lines.append(line)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """With a unit that leaves one to four digits before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
