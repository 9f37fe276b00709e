"""The benchmarks' runner at tiny sizes: records are whole, ratios are wide within one run, and the page is written.

Times are never compared with a bound: machines differ, and may be busy.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

from bertnli.bench import race
from bertnli.bench.race import Contestant, Race

SUITES = ("text", "inference")


class Sleeper(Contestant):
    """Takes the next of some times, without waiting."""

    def __init__(self, name: str, times: list[float], precision: str = "fp32", share: float = 1.0) -> None:
        super().__init__(name, precision, lambda: torch.ones(3), share=share)
        self._turn = itertools.cycle(times)

    def seconds(self, count: int) -> list[float]:
        return [next(self._turn) for _ in range(count)]


def test_ratios_are_those_of_rounds() -> None:
    contestants = [Sleeper("bertnli", [1.0, 2.0, 4.0]), Sleeper("peer", [3.0, 6.0, 12.0])]
    contestants.append(Sleeper("half", [1.0], share=0.5))
    run = Race(contestants, warm=False, calls=1)
    run.run(3)
    own, peer, half = race.records("text", "work", contestants, {"lost one int8": "not installed"}, {"pairs": 1})[:3]
    assert (own["ratio"], own["seconds"], own["p50"]) == (1.0, 2.0, 2.0)
    assert (peer["ratio"], peer["ratio_low"], peer["ratio_high"], peer["seconds"]) == (3.0, 3.0, 3.0, 6.0)
    assert (half["seconds"], half["ratio"]) == (2.0, 1.0)


def test_contestants_alternate_and_the_first_comes_last() -> None:
    order: list[str] = []
    contestants = [Contestant(name, "fp32", partial(order.append, name)) for name in ("a", "b", "c")]
    Race(contestants, calls=1).run(2)
    assert order == ["b", "b", "c", "c", "a", "a"] * 2  # a call to warm up, and the timed one


@pytest.mark.parametrize("count", [5, 30])
def test_the_interval_holds_the_median(count: int) -> None:
    """In about 95 of 100 samples; with few rounds the bootstrap's interval is a little short."""
    rng = np.random.default_rng(1)
    hits = sum(low <= 2 <= high for low, high in (race.interval(rng.normal(2, 0.1, count)) for _ in range(200)))
    assert hits >= 170


def test_a_contestant_that_differs_is_left_out_with_the_reason() -> None:
    def give(value: float, size: int = 3) -> torch.Tensor:
        return torch.full((size,), value)

    contestants = [
        Contestant("bertnli", "fp32", lambda: give(1.0)),
        Contestant("near", "bf16", lambda: give(1.03)),
        Contestant("far", "fp32", lambda: give(1.03)),
        Contestant("nan", "int8", lambda: give(float("nan"))),
        Contestant("short", "int8", lambda: give(1.0, 2)),
        Contestant("broken", "fp32", lambda: 1 / 0),
    ]
    left_out = race.agreeing(contestants)
    assert set(left_out) == {"far fp32", "nan int8", "short int8", "broken fp32"}
    assert left_out["broken fp32"] == "ZeroDivisionError: division by zero"
    with pytest.raises(ZeroDivisionError):
        race.agreeing([contestants[0], Contestant("bertnli", "int8", lambda: 1 / 0)])
    assert "3.0e-02" in left_out["far fp32"]
    found = race.contest("text", "work", contestants, 2, {"lost one int8": "not installed"}, pairs=3)
    assert [r["contestant"] for r in found if r["missing"]] == ["lost one", "far", "nan", "short", "broken"]


def test_results_are_flattened_in_their_order() -> None:
    nested = [torch.tensor([[1, 2]]), {"a": [3.0], "b": (np.array([4]), torch.tensor([5.0], dtype=torch.bfloat16))}]
    assert race.flat(nested).tolist() == [1, 2, 3, 4, 5]


def test_records_survive_a_file(tmp_path: Path) -> None:
    run = [Sleeper("bertnli", [1.0])]
    Race(run, calls=1).run(2)
    found = race.records("text", "work", run, {"peer fp32": "not installed"}, {"model": "small"})
    race.append(tmp_path / "text.jsonl", found[:1])
    race.append(tmp_path / "text.jsonl", found[1:])
    assert race.read(tmp_path / "text.jsonl") == found
    assert all(tuple(record) == race.FIELDS for record in found)
    assert found[1]["missing"] == "not installed"
    assert found[0]["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_suites_and_page(tmp_path: Path) -> None:
    """Encoding beside D2L's Python, and scoring beside transformers in processes of their own, one round each."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks", "--quick", "--rounds", "2"]
    command += ["--threads", "1", "--precision", "fp32", "--peers", "transformers,d2l_text,zentorch"]
    command += ["--results", str(tmp_path), "-k", "padded_words or (ids and small and one)"]
    # Not a worker of the run that this test is in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {suite: race.read(tmp_path / f"{suite}.jsonl") for suite in SUITES}
    (d2l,) = (r for r in found["text"] if r["contestant"] == "D2L")
    assert d2l["ratio"] > 5
    by_name = {f"{r['contestant']} {r['precision']}": r for r in found["inference"]}
    assert by_name["transformers fp32"]["ratio"] > 1
    for name in ("bertnli fp32", "transformers fp32"):
        assert 0 < by_name[name]["p50"] <= by_name[name]["p95"]
    assert all(r["missing"] for r in by_name.values() if r["seconds"] is None)

    page = tmp_path / "page.html"
    command = [
        "benchmarks/report.py",
        "--results",
        str(tmp_path),
        "--output",
        str(page),
        "--svg",
        str(tmp_path / "a.svg"),
    ]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    text = page.read_text(encoding="utf-8")
    for word in ("strings to padded tensors, words", "transformers", "Where others are better", "<svg", "not measured"):
        assert word in text


def test_the_page_of_the_kept_records(tmp_path: Path) -> None:
    """A peer that takes less time is under "Where others are better"; the kept records have no unknown field."""
    for path in (ROOT / "benchmarks" / "results").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert set(json.loads(line)) <= set(race.FIELDS)
    run = [Sleeper("bertnli", [2.0]), Sleeper("rival", [1.0])]
    Race(run, calls=1).run(3)
    race.append(tmp_path / "text.jsonl", race.records("text", "some work", run, {}, {"pairs": 7}))
    page = tmp_path / "page.html"
    command = [sys.executable, "benchmarks/report.py", "--results", str(tmp_path), "--output", str(page)]
    subprocess.run(command, cwd=ROOT, check=True)
    text = page.read_text(encoding="utf-8")
    better = text.partition("Where others are better")[2].partition("<h2>")[0]
    assert "some work, pairs 7: rival in fp32 takes 0.50 x (0.50 to 0.50)" in better
