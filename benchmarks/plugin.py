"""What the suites share: sizes, threads, and the fixture `contest`, which measures and writes records.

    pytest benchmarks --quick                       every suite at small sizes: less than ten minutes on two cores
    pytest benchmarks/bench_inference.py -k small   one suite, one model
    python benchmarks/report.py                     the page of all records

pytest-benchmark times bertnli's call; in the setup of each of its rounds the peers do theirs. So contestants alternate,
and its table and its files have bertnli's times, with the peers' ratios under "extra_info".
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from common import RESULTS

from bertnli.bench import race

_lines: list[str] = []  # the tables, for the end of the run


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bertnli's benchmarks")
    group.addoption("--quick", action="store_true", help="small sizes: all suites in less than ten minutes")
    group.addoption("--rounds", type=int, help="timed rounds (default: 9, with --quick 3)")
    group.addoption("--threads", type=int, help="CPU threads (default: PyTorch's)")
    group.addoption("--peers", help="modules of peers/ to take, separated by commas (default: all of the suite)")
    group.addoption("--precision", choices=race.PRECISIONS, help="precision of the inference suite (default: all)")
    group.addoption("--results", type=Path, default=RESULTS, help="folder of the records (default: benchmarks/results)")
    group.addoption("--pairs", type=int, help="training pairs of the end-to-end runs (default: all, with --quick 300)")
    group.addoption("--seeds", type=int, default=1, help="seeds of the end-to-end runs (default: 1)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # those of the peers are not ours to mend


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in _lines:
        terminalreporter.write_line(line)


class Settings(NamedTuple):
    """What the command line asks for."""

    quick: bool
    rounds: int
    threads: int
    peers: list[str] | None  # None: all
    precision: str | None  # None: all
    results: Path
    pairs: int | None
    seeds: int


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    option = request.config.getoption
    quick = option("--quick")
    threads = option("--threads") or torch.get_num_threads()
    torch.set_num_threads(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    rounds = option("--rounds") or (3 if quick else 9)
    pairs = option("--pairs") or (300 if quick else None)
    peers = option("--peers").split(",") if option("--peers") else None
    return Settings(quick, rounds, threads, peers, option("--precision"), option("--results"), pairs, option("--seeds"))


class Contest:
    """Measures contestants of one piece of work and appends their records; call it once in a test."""

    def __init__(self, suite: str, settings: Settings, benchmark: Any) -> None:
        self.suite, self.settings, self.benchmark = suite, settings, benchmark

    def __call__(
        self,
        work: str,
        contestants: Sequence[race.Contestant],
        missing: Mapping[str, str] | None = None,
        tolerance: Mapping[str, float] = race.TOLERANCE,
        pause: float = 0.0,
        calls: int | None = None,
        **parameters: Any,
    ) -> list[race.Record]:
        """The records. The first contestant is bertnli's, to whose results the others' are compared first."""
        missing = {**(missing or {}), **race.agreeing(contestants, tolerance)}
        taking_part = [c for c in contestants if f"{c.name} {c.precision}" not in missing]
        run = race.Race(taking_part, pause=pause, calls=calls)
        first = taking_part[0]
        self.benchmark.group = work
        self.benchmark.pedantic(run.turn, (first,), setup=run.others, rounds=self.settings.rounds)
        found = race.records(self.suite, work, taking_part, missing, parameters, self.settings.threads)
        self.add(found)
        return found

    def add(self, found: list[race.Record]) -> None:
        """Append records and show them."""
        ratios = {f"{r['contestant']} {r['precision']}": r["ratio"] for r in found if r["ratio"]}
        self.benchmark.extra_info.update(ratios)
        self.settings.results.mkdir(parents=True, exist_ok=True)
        race.append(self.settings.results / f"{self.suite}.jsonl", found)
        sizes = ", ".join(f"{name} {value}" for name, value in found[0]["parameters"].items())
        _lines.extend([f"{self.suite}: {found[0]['work']} ({sizes})", race.table(found)])


@pytest.fixture
def contest(request: pytest.FixtureRequest, settings: Settings, benchmark: Any) -> Contest:
    return Contest(request.path.stem.removeprefix("bench_"), settings, benchmark)
