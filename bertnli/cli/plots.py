"""Curves of a training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertnli.d2l.plotting import new_figure
from bertnli.data.files import atomic_path
from bertnli.training.history import History


def save_curves(history: History, path: Path) -> bool:
    """Draw losses and scores over the epochs; False if matplotlib is not installed."""
    figure = new_figure(figsize=(9, 3.5), layout="constrained")
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    epochs, evaluations = [e.epoch for e in history.epochs], history.evaluations
    per_epoch = len(history.losses) / len(epochs)
    steps = np.arange(1, len(history.losses) + 1) / per_epoch
    window = max(1, len(steps) // 50)
    means = np.convolve(history.losses, np.full(window, 1 / window), "valid")
    left.plot(steps, history.losses, lw=0.5, alpha=0.3, label="train, each step")
    left.plot(steps[window - 1 :], means, label=f"train, mean of {window} steps")
    if history.epochs[0].train_accuracy is not None:
        right.plot(epochs, [e.train_accuracy for e in history.epochs], marker="o", label="train accuracy")
    if evaluations:
        places = [e.step / per_epoch for e in evaluations]
        left.plot(places, [e.loss for e in evaluations], marker="o", label="dev")
        right.plot(places, [e.score for e in evaluations], marker="o", label=f"dev {evaluations[0].metric}")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="score")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True
