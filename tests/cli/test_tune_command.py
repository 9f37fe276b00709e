"""`bertnli tune`: a search whose best run `bertnli train` repeats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.commands import run, task_jobs
from safetensors.torch import load_file

SEARCH = "[search]\nlr = {low = 1e-4, high = 1e-2, log = true}\nbatch_size = [8, 16]\nepochs = {low = 1, high = 2}\n"


def arguments(folder: Path, search: str = SEARCH) -> list[Any]:
    reading, file, *_ = task_jobs(folder)["classification"]
    (folder / "ranges.toml").write_text(search)
    return [
        "tune", "--scratch", "bert.small", "--min-freq", 1, "--train", folder / file, "--dev", folder / file, *reading,
        "--search", folder / "ranges.toml", "--output", folder / "best", "--quiet",
    ]  # fmt: skip


def test_a_search_is_continued_and_its_best_run_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(tmp_path)
    status, out, err = run(*command, "--trials", 2, "--json", capsys=capsys)
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["trial"] for line in lines[:-1]] == [1, 2]
    assert all(1e-4 <= line["lr"] <= 1e-2 and line["batch_size"] in (8, 16) for line in lines)
    assert lines[-1]["score"] == max(line["score"] for line in lines[:-1])

    status, _, err = run(*command, "--trials", 3, capsys=capsys)
    assert (status, "another run's" in err) == (2, True)
    status, out, err = run(*command, "--trials", 3, "--resume", "--json", capsys=capsys)
    assert status == 0, err
    more = [json.loads(line) for line in out.splitlines()]
    assert [line["trial"] for line in more[:-1]] == [3]
    trials = lines[:-1] + more[:-1]
    assert len({line["lr"] for line in trials}) == 3
    best = max((line for line in trials if line["score"] is not None), key=lambda line: line["score"])
    assert more[-1]["best"] == best["trial"]

    folder = tmp_path / "best"
    card = json.loads((folder / "config.json").read_text())
    assert str(best["lr"]) in (folder / "run.toml").read_text()
    status, _, err = run(
        "train", "--config", folder / "run.toml", "--output", tmp_path / "again", "--quiet", capsys=capsys
    )
    assert status == 0, err
    again, wanted = (load_file(place / "model.safetensors") for place in (tmp_path / "again", folder))
    assert all(torch.equal(value, again[name]) for name, value in wanted.items())
    assert card == json.loads((tmp_path / "again" / "config.json").read_text())
    assert "Search" in (folder / "report.html").read_text()


def test_trials_are_pruned_by_their_dev_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that diverges is not the end."""
    calls: list[int] = []

    def prunes(trial: optuna.Trial) -> bool:
        calls.append(trial.number)
        return trial.number == 1

    monkeypatch.setattr(optuna.Trial, "should_prune", prunes)
    command = arguments(tmp_path, "[search]\nlr = [1e-3, 1e-4, 1e-2, 1e30]\nepochs = [2]\n")
    status, out, err = run(*command, "--trials", 5, "--seed", 3, "--json", capsys=capsys)
    assert status == 0, err
    states = [json.loads(line)["state"] for line in out.splitlines()[:-1]]
    assert states[1] == "pruned"
    assert set(states) == {"complete", "pruned", "fail"}
    assert calls.count(1) == 1


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("[search]\nlearning_rate = [1]\n", "no option 'learning_rate'"),
        ("[search]\nlr = 3\n", "lr must be a list of values, or {low"),
        ("[search]\nlr = {low = 1, hihg = 2}\n", "lr must be a list of values, or {low"),
        ("[search]\nlr = {low = 2, high = 1}\n", "low must be at most high"),
        ("[search]\nlr = {low = 0, high = 1, log = true}\n", "above 0 with log"),
        ("[search]\nepochs = [0]\n", "epochs must be at least 1"),
        ("[search]\nseed = [1, 2]\n", "no option 'seed'"),
        ("lr = [1]\n", "expected one table [search]"),
        ("[search\n", "ranges.toml: "),
    ],
)
def test_wrong_ranges(search: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(*arguments(tmp_path, search), capsys=capsys)
    assert status == 2
    assert message in err


def test_without_optuna(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = run(*arguments(tmp_path), capsys=capsys)
    assert (status, "pip install 'bertnli[tune]'" in err) == (2, True)
