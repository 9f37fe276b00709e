"""Progress of long tasks: silent if short, lines in files and logs, a bar in a terminal."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import pytest
import torch

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, fit
from bertnli.data import progress
from bertnli.data.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [0.0]
    monkeypatch.setattr("bertnli.data.progress.time.perf_counter", lambda: now[0])
    return now


def run(clock: list[float], steps: int, seconds: float, **options: bool) -> None:
    with Progress(steps, "epoch 1/2", "pairs", **options) as shown:
        for i in range(steps):
            clock[0] += seconds
            shown.update(1, lambda i=i: f"loss {i}")  # type: ignore[misc]


def test_short_tasks_print_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 29, 1.0)
    run(clock, 1000, 100.0, enabled=False)
    assert capsys.readouterr() == ("", "")


def test_lines_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "epoch 1/2: 30% of 100 pairs, 1 pairs/s, 01:10 left, loss 29"
    assert len(lines) == 3
    run(clock, 1000, 60.0)
    assert len(capsys.readouterr().err.splitlines()) == 20  # of a longer task, one each twentieth
    with Progress(0, "file", "B") as shown:
        clock[0] += 40
        shown.update(8_000_000)
    assert capsys.readouterr().err == "file: 8.00MB, 200kB/s\n"


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(10, "epoch 1/2", "pairs") as shown:
        shown.update(10, lambda: "loss 0.5")
    text = capsys.readouterr().err
    assert "\r" in text
    assert "epoch 1/2" in text


def test_training_reports_loss_and_accuracy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    ids, offsets = torch.zeros(40, dtype=torch.int32), torch.arange(0, 41, 2)
    data = EncodedTexts(
        ids, offsets, torch.full((20,), 2, dtype=torch.int32), torch.zeros(20, dtype=torch.int64), pad_id=0, max_len=8
    )
    model = BERTClassifier(BERTModel(BERTConfig(5, num_hiddens=8, num_heads=2)))
    fit(model, data, epochs=1, batch_size=5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    pattern = r"epoch 1/1: 100% of 20 pairs, [\d,]+ pairs/s, 00:00 left, loss \d\.\d{3}, acc \d\.\d{3}"
    assert re.fullmatch(pattern, lines[-1])
    fit(model, data, epochs=1, batch_size=5, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking a process with threads
def test_a_process_that_dies_with_the_lock_stops_no_other() -> None:
    bar: Any = Progress(1, "", "step", enabled=False)._bar  # tqdm's methods have no types
    child = os.fork()
    if child == 0:
        bar.get_lock().acquire()
        os._exit(0)
    os.waitpid(child, 0)
    assert bar.get_lock().acquire(timeout=5)
    bar.get_lock().release()
