"""How far a long task has come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

_REFRESH_SECONDS = 0.2  # of a bar
_LINE_SECONDS, _LINE_SHARE = 30.0, 0.05  # time and share of the task between two lines, at least


def in_notebook() -> bool:
    """True in a kernel that shows rich output: Jupyter, Colab and others whose shell is a subclass of its."""
    zmqshell = sys.modules.get("ipykernel.zmqshell")  # loaded in such a kernel
    if zmqshell is None:
        return False
    from IPython import get_ipython

    return isinstance(get_ipython(), zmqshell.ZMQInteractiveShell)


class _Bar(tqdm):  # type: ignore[type-arg]
    pass


# tqdm's own lock is shared with forked processes: one that is killed while it holds the lock stops all others for good.
_Bar.set_lock(threading.RLock())


class Progress:
    """A bar in a terminal or a notebook; in files and logs a plain line now and then. On standard error.

    total   size of the task in `unit`, 0 if unknown
    unit    what is counted; "B" for bytes
    """

    def __init__(self, total: int, title: str, unit: str, enabled: bool = True) -> None:
        self.total, self.title, self.unit, self.done = total, title, unit, 0
        live = sys.stderr is not None and (sys.stderr.isatty() or in_notebook())
        self._prints = enabled and not live and sys.stderr is not None
        self._started = self._shown = time.perf_counter()
        self._shown_done = 0
        self._bar = _Bar(
            total=total or None,
            desc=title,
            unit=unit,
            unit_scale=unit == "B",
            leave=False,
            disable=not (enabled and live),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _is_due(self) -> bool:
        waited = time.perf_counter() - self._shown
        if self._prints:
            return waited >= _LINE_SECONDS and self.done - self._shown_done >= _LINE_SHARE * self.total
        return not self._bar.disable and waited > _REFRESH_SECONDS

    def update(self, count: int, figures: Callable[[], str] | None = None) -> None:
        """Advance by `count`. `figures`, shown beside it, is called only when it is time to show something."""
        self.done += count
        if self._is_due():
            self._shown, self._shown_done = time.perf_counter(), self.done
            text = "" if figures is None else figures()
            if self._prints:
                print(self._line(text), file=sys.stderr, flush=True)
            elif text:
                self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(count)

    def _line(self, figures: str) -> str:
        seconds = time.perf_counter() - self._started
        rate = self.done / seconds
        done, total, speed = (
            tqdm.format_sizeof(n, "B") if self.unit == "B" else f"{n:,.0f}" for n in (self.done, self.total, rate)
        )
        unit = "" if self.unit == "B" else f" {self.unit}"
        text = f"{self.title}: {done}{unit}, {speed}{unit}/s"
        if self.total:
            left = tqdm.format_interval((self.total - self.done) / rate)
            text = f"{self.title}: {self.done / self.total:.0%} of {total}{unit}, {speed}{unit}/s, {left} left"
        return f"{text}, {figures}" if figures else text
