"""Figures of runs in TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny_models import classifier, pairs

from bertnli import Callback, History, fit
from bertnli.integrations import mlflow, tensorboard, wandb

Figures = dict[tuple[str, int], float]


def run(callback: Callback) -> History:
    options: dict[str, Any] = dict(epochs=2, batch_size=9, eval_steps=4, lr=1e-3, progress=False)
    return fit(classifier(), pairs(), pairs(20), callbacks=[callback], **options)


def expected(history: History) -> Figures:
    figures = {("train/loss", i): history.losses[i - 1] for i in (5, 10, 15, 20)}
    for e in history.evaluations:
        figures |= {(f"dev/{name}", e.step): value for name, value in e.figures.items()}
    return figures


def without_rates(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if key[0] != "train/lr"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_tensorboard_reads_the_figures(tmp_path: Path) -> None:
    history = run(tensorboard(tmp_path, every=5))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    wanted = expected(history)
    assert without_rates(found) == pytest.approx(wanted, rel=1e-6)
    assert [found["train/lr", step] for step in (5, 10, 15, 20)] == sorted(
        [value for (tag, _), value in found.items() if tag == "train/lr"], reverse=True
    )


def test_wandb_and_mlflow_are_given_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls that they document: `run.log(figures, step=)` and `log_metrics(figures, step=, run_id=)`."""
    found: Figures = {}

    def log(figures: dict[str, float], step: int, run_id: str = "") -> None:
        found.update({(name, step): value for name, value in figures.items()})

    began: list[dict[str, Any]] = []

    def begin(**options: Any) -> Any:
        began.append(options)
        return SimpleNamespace(log=log, info=SimpleNamespace(run_id="1"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None, init=begin))
    modules = SimpleNamespace(active_run=lambda: None, start_run=begin, log_metrics=log)
    monkeypatch.setitem(sys.modules, "mlflow", modules)
    for make in (wandb, mlflow):
        found.clear()
        history = run(make(5, tags=["a"]))
        assert without_rates(found) == expected(history)
    assert began == [{"tags": ["a"]}] * 2


@pytest.mark.parametrize("make", [wandb, mlflow])
def test_a_missing_library_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, make.__name__, None)
    with pytest.raises(ImportError, match=rf"callback needs {make.__name__}: pip install 'bertnli\[{make.__name__}\]'"):
        make()
