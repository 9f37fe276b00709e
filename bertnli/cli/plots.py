"""Curves of a training run."""

from __future__ import annotations

from pathlib import Path

from bertnli.d2l.plotting import new_figure
from bertnli.data.files import atomic_path
from bertnli.training.history import History


def save_curves(history: History, path: Path) -> bool:
    """Draw losses and scores by epoch; False if matplotlib is not installed."""
    figure = new_figure(figsize=(9, 3.5), layout="constrained")
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    epochs = [e.epoch for e in history.epochs]
    per_epoch = len(history.losses) / len(epochs)
    steps = [(i + 1) / per_epoch for i in range(len(history.losses))]
    left.plot(steps, history.losses, lw=0.5, alpha=0.5, label="step")
    left.plot(epochs, [e.train_loss for e in history.epochs], marker="o", label="train")
    if history.epochs[0].train_accuracy is not None:
        right.plot(epochs, [e.train_accuracy for e in history.epochs], marker="o", label="train accuracy")
    if history.epochs[0].dev_loss is not None:
        left.plot(epochs, [e.dev_loss for e in history.epochs], marker="o", label="dev")
        right.plot(epochs, [e.dev_score for e in history.epochs], marker="o", label=f"dev {history.epochs[0].metric}")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="score")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True
