"""D2L's stopwatch, running sums, and curves that grow while training runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from bertnli.data.progress import in_notebook
from bertnli.report.plots import new_figure


class Timer:
    """Several stopwatch times, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        self.tik = time.time()

    def stop(self) -> float:
        self.times.append(time.time() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        return sum(self.times) / len(self.times)

    def sum(self) -> float:
        return sum(self.times)

    def cumsum(self) -> list[float]:
        return [float(t) for t in np.cumsum(self.times)]


class Accumulator:
    """Running sums of n quantities."""

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: float | Tensor) -> None:
        self.data = [a + float(b) for a, b in zip(self.data, args, strict=True)]

    def reset(self) -> None:
        self.data = [0.0] * len(self.data)

    def __getitem__(self, i: int) -> float:
        return self.data[i]


def use_svg_display() -> None:
    """Show matplotlib's figures as SVG pictures in a notebook, without `%matplotlib inline`; elsewhere nothing."""
    if in_notebook():
        from IPython import get_ipython
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(get_ipython(), {"svg"})


def set_figsize(figsize: tuple[float, float] = (3.5, 2.5)) -> None:
    """Set the size in inches of the figures that pyplot makes from now on."""
    import matplotlib

    use_svg_display()
    matplotlib.rcParams["figure.figsize"] = figsize


def set_axes(
    axes: Any,
    xlabel: str | None,
    ylabel: str | None,
    xlim: Sequence[float] | None,
    ylim: Sequence[float] | None,
    xscale: str,
    yscale: str,
    legend: Sequence[str] | None,
) -> None:
    """Label and scale matplotlib axes."""
    options = dict(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale, xlim=xlim, ylim=ylim)
    axes.set(**{name: value for name, value in options.items() if value is not None})
    if legend:
        axes.legend(legend)
    axes.grid(True)


class Animator:
    """Curves that grow: drawn live in a notebook, only collected in a script (`fig.savefig(...)` keeps them).

    X, Y    lists of each curve's points
    fig     a matplotlib Figure; None if matplotlib is not installed, which a warning says once
    axes    a list of its axes, or an array of them as `pyplot.subplots` gives; the curves are in the first
    """

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | None = None,
        xlim: Sequence[float] | None = None,
        ylim: Sequence[float] | None = None,
        xscale: str = "linear",
        yscale: str = "linear",
        fmts: Sequence[str] = ("-", "m--", "g-.", "r:"),
        nrows: int = 1,
        ncols: int = 1,
        figsize: tuple[float, float] = (3.5, 2.5),
    ) -> None:
        self.fig = new_figure(figsize=figsize, layout="tight")
        axes = None if self.fig is None else self.fig.subplots(nrows, ncols)
        self.axes: Any = [] if axes is None else axes if nrows * ncols > 1 else [axes]
        self.legend, self.fmts = legend, fmts
        self._style = (xlabel, ylabel, xlim, ylim, xscale, yscale)
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        self._notebook = self.fig is not None and in_notebook()
        self._display: Any = None

    def add(self, x: Any, y: Any) -> None:
        """Append a point to each curve; a None in `y` leaves its curve as it is."""
        ys = list(y) if hasattr(y, "__len__") else [y]
        xs = list(x) if hasattr(x, "__len__") else [x] * len(ys)
        while len(self.X) < len(ys):
            self.X.append([])
            self.Y.append([])
        for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
            if a is not None and b is not None:
                self.X[i].append(float(a))
                self.Y[i].append(float(b))
        self.draw()
        if self._notebook:
            from IPython import display

            use_svg_display()
            if self._display is None:
                self._display = display.display(self.fig, display_id=True)
            else:
                self._display.update(self.fig)

    def draw(self) -> None:
        """Bring the figure up to date."""
        if self.fig is None:
            return
        axis = np.ravel(self.axes)[0]
        axis.cla()
        for i, (x, y) in enumerate(zip(self.X, self.Y, strict=True)):
            axis.plot(x, y, self.fmts[i % len(self.fmts)])
        set_axes(axis, *self._style, self.legend[: len(self.X)] if self.legend else None)
