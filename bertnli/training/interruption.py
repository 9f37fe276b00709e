"""Signals that end a run: its state is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal came while the run was not between two steps, but nothing would be lost."""


class Interruption:
    """Within `with interruption.watched():` the first SIGINT or SIGTERM only sets `signal`; a second one acts at once.

    On another than the main thread, where Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._at_once = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run the block with handlers of this object; then the previous ones are set again, and called if need be."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by code that is not Python
                self._handlers[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            self._restore()
        if self.signal is not None:
            self.act(self.signal)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Run the block, in which a signal raises Interrupted."""
        self._at_once = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._at_once = False

    def act(self, number: int) -> None:
        """Do what the signal would have done without this object; SIGTERM, if it would kill, raises SystemExit."""
        self._restore()
        if number == signal.SIGTERM and signal.getsignal(number) == signal.SIG_DFL:
            raise SystemExit(128 + number)
        signal.raise_signal(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            self.act(number)
        self.signal = number
        if self._at_once:
            raise Interrupted

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())
