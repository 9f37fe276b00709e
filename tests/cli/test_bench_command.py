"""`bertnli bench`: the short measurement of a machine."""

from __future__ import annotations

import json

import pytest
from helpers.commands import run

from bertnli.bench import measure, race
from bertnli.cli import options


def test_choices_are_those_of_the_library() -> None:
    assert options.BENCH_WORKS == measure.WORKS
    assert tuple(measure.MODELS) == options.BENCH_SIZES


@pytest.mark.slow
def test_every_work_has_a_record_of_bertnli_and_of_the_peer(capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios are wide, and within one run: a machine may be busy."""
    flags = ["--size", "small", "--rounds", "2", "--pairs", "600", "--json"]
    status, out, err = run("bench", *flags, capsys=capsys)
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert all(set(record) == set(race.FIELDS) for record in found)
    assert [r["work"] for r in found if r["contestant"] == "bertnli" and r["precision"] in ("exact", "fp32")] == [
        "pairs of strings to ids",
        "encoded pairs to scores",
        "training step",
    ]
    peers = {r["suite"]: r for r in found if r["contestant"] in ("tokenizers", "transformers")}
    assert set(peers) == set(measure.WORKS)
    for suite, least in (("text", 5), ("inference", 1), ("training", 1)):
        assert peers[suite]["ratio"] > least, peers[suite]
        assert peers[suite]["ratio_low"] <= peers[suite]["ratio"] <= peers[suite]["ratio_high"]
    assert "pairs/s" in err  # the table, for people


def test_full_needs_a_checkout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bertnli.__file__", "/nowhere/site-packages/bertnli/__init__.py")
    status, _, err = run("bench", "--full", capsys=capsys)
    assert status == 2
    assert "--full needs a checkout" in err
