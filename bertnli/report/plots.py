"""The report's plots, as SVG."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertnli.tasks.calibration import Reliability, precision_recall
from bertnli.training.history import History


def new_figure(**options: Any) -> Any | None:
    """A matplotlib Figure of these options, without pyplot's global state; None if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        _warn_of_missing_matplotlib()
        return None
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


@cache
def _warn_of_missing_matplotlib() -> None:
    logging.getLogger("bertnli").warning("plots are not drawn: matplotlib is missing (pip install 'bertnli[plot]')")


def draw(paint: Callable[..., None], plots: int = 1) -> str:
    """An SVG element of `plots` axes side by side, which `paint` gets; a sentence if matplotlib is not installed."""
    figure = new_figure(figsize=(4.6 * plots, 3.2), layout="constrained")
    if figure is None:
        return "<p>Not drawn: matplotlib is missing (<code>pip install 'bertnli[plot]'</code>).</p>"
    from matplotlib import rc_context

    file = io.StringIO()
    # Text stays text, in the reader's fonts; matplotlib measures it in its own, which may lack characters.
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        axes = figure.subplots(1, plots, squeeze=False)[0]
        paint(*axes)
        for axis in axes:
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def curves(history: History) -> str:
    """Loss and dev score by epoch."""

    def paint(left: Any, right: Any) -> None:
        per_epoch = len(history.losses) / len(history.epochs)
        smooth = max(1, len(history.losses) // 200)  # steps of a point
        points = range(0, len(history.losses), smooth)
        means = [np.mean(history.losses[i : i + smooth]) for i in points]
        left.plot([(i + smooth / 2) / per_epoch for i in points], means, lw=1, label="train, steps")
        left.plot([e.epoch for e in history.epochs], [e.train_loss for e in history.epochs], "o", label="train, epoch")
        if history.evaluations:
            at = [e.step / per_epoch for e in history.evaluations]
            left.plot(at, [e.loss for e in history.evaluations], "o-", label="dev")
            metric = history.evaluations[0].metric
            right.plot(at, [e.score for e in history.evaluations], "o-", label=f"dev {metric}")
        accuracies = [(e.epoch, e.train_accuracy) for e in history.epochs if e.train_accuracy is not None]
        if accuracies:
            right.plot(*zip(*accuracies, strict=True), "o--", label="train accuracy, epoch")
        left.set(xlabel="epoch", ylabel="loss", xlim=(0, None))
        right.set(xlabel="epoch", ylabel="score", xlim=(0, None))

    return draw(paint, 2)


def reliability_diagram(before: Reliability, after: Reliability) -> str:
    """Accuracy by confidence, as the model is and at the best temperature."""

    def paint(left: Any, right: Any) -> None:
        left.plot([0, 1], [0, 1], "k:", lw=1)
        for found, name in ((before, "as it is"), (after, "at the best temperature")):
            some = found.counts > 0
            left.plot(found.confidence[some], found.accuracy[some], "o-", label=name)
        left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        edges = np.linspace(0, 1, len(before.counts) + 1)
        right.bar(edges[:-1], before.counts, np.diff(edges), align="edge")
        right.set(xlabel="confidence", ylabel="predictions", xlim=(0, 1))

    return draw(paint, 2)


def precision_recall_curves(probabilities: Tensor, truth: Tensor, names: Sequence[str]) -> str:
    """A curve a class against the others. probabilities, truth: [N, C]."""

    def paint(axis: Any) -> None:
        for i, name in enumerate(names):
            precision, recall, average = precision_recall(probabilities[:, i], truth[:, i])
            axis.plot(recall, precision, lw=1.2, label=f"{name} (average {average:.3f})")
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))

    return draw(paint)


def histogram_of_lengths(lengths: Tensor, longest: int) -> str:
    def paint(axis: Any) -> None:
        counts = torch.bincount(lengths.clamp(max=longest), minlength=longest + 1).numpy()
        last = int(np.flatnonzero(counts)[-1]) if counts.any() else 1
        axis.bar(np.arange(last + 1), counts[: last + 1], width=1.0)
        axis.set(xlabel="tokens", ylabel="sequences")

    return draw(paint)


def scatter(guesses: npt.NDArray[Any], truth: npt.NDArray[Any]) -> str:
    """Predicted numbers against the labels, of at most 2,000 examples."""

    def paint(axis: Any) -> None:
        step = -(-len(truth) // 2000)
        axis.plot(truth[::step], guesses[::step], ".", alpha=0.4)
        ends = [min(truth.min(), guesses.min()), max(truth.max(), guesses.max())]
        axis.plot(ends, ends, "k:", lw=1)
        axis.set(xlabel="label", ylabel="prediction")

    return draw(paint)
