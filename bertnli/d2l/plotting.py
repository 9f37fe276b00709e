"""D2L's stopwatch, running sums, and curves that grow while training runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor


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


class Animator:
    """Curves that grow: drawn live in a notebook, only collected in a script (`fig.savefig(...)` keeps them).

    X, Y    lists of each curve's points
    fig     a matplotlib Figure; None if matplotlib is not installed, which a warning says once
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
        self.fig = new_figure(figsize=figsize)
        axes = None if self.fig is None else self.fig.subplots(nrows, ncols)
        self.axes: list[Any] = [] if axes is None else list(axes.flat) if nrows * ncols > 1 else [axes]
        self.legend, self.fmts = legend, fmts
        self._style = dict(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale, xlim=xlim, ylim=ylim)
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        self._notebook = self.fig is not None and _in_notebook()
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

            if self._display is None:
                self._display = display.display(self.fig, display_id=True)
            else:
                self._display.update(self.fig)

    def draw(self) -> None:
        """Bring the figure up to date."""
        if self.fig is None:
            return
        axis = self.axes[0]
        axis.cla()
        for i, (x, y) in enumerate(zip(self.X, self.Y, strict=True)):
            axis.plot(x, y, self.fmts[i % len(self.fmts)])
        axis.set(**{name: value for name, value in self._style.items() if value is not None})
        if self.legend:
            axis.legend(self.legend[: len(self.X)])
        axis.grid(True)


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
    logging.getLogger("bertnli").warning("curves are not drawn: matplotlib is missing (pip install matplotlib)")


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
