"""Contestants in processes of their own, and what pytest adds to a contest: see plugin.py.

A suite builds `Contestant`s (bertnli/bench/race.py), and gives them to the fixture `contest`. A peer that brings a
thread pool of its own, needs another torch, or is measured for its memory runs in a process of its own: `Remote`.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
from common import RUNS
from peers import environment_of, load, unavailable

from bertnli.bench.race import Contestant

HERE = Path(__file__).resolve().parent
PATIENCE = 900  # seconds that a contestant has to be built, or to answer


class Remote(Contestant):
    """A contestant in a process of its own, which `worker.py` runs.

    peer        a module of peers/
    settings    what `worker.py` gives the module: {"precision": ..., "threads": ..., "folder": ...}
    """

    def __init__(self, peer: str, precision: str, settings: dict[str, Any]) -> None:
        module = load(peer)
        super().__init__(module.NAME, precision, lambda: None)
        key = secrets.token_bytes(16)
        threads = str(settings["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "BENCH_KEY": key.hex()}
        with Listener(authkey=key) as listener:
            command = [environment_of(module, RUNS), str(HERE / "worker.py"), str(listener.address)]
            log = RUNS / "logs"
            log.mkdir(parents=True, exist_ok=True)
            with (log / f"{peer}_{precision}.txt").open("w") as file:
                self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            listener._listener._socket.settimeout(60)  # type: ignore[attr-defined]  # else it waits for a dead process
            self.pipe: Connection = listener.accept()
        self.pipe.send({"peer": peer, "precision": precision, **settings})

    def ask(self, *message: Any) -> Any:
        """The worker's answer. Raises RuntimeError with its error, or where it has ended."""
        self.pipe.send(message)
        return self.answer()

    def answer(self) -> Any:
        try:
            if not self.pipe.poll(PATIENCE):
                raise RuntimeError(f"no answer in {PATIENCE} s")
            error, found = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("its process ended") from None
        if error is not None:
            raise RuntimeError(error)
        return found

    def seconds(self, count: int) -> list[float]:
        found: list[float] = self.ask("seconds", count)
        return found

    def output(self) -> np.ndarray[Any, Any]:
        return np.asarray(self.ask("output"), np.float64).reshape(-1)

    def end(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def remotes(
    wanted: Sequence[tuple[str, str]], settings: dict[str, Any]
) -> Iterator[tuple[list[Remote], dict[str, str]]]:
    """The (peer, precision) that can be built, each in its process, and {name and precision: why not} of the others.

    Processes are built one after the other, since they share exported files.
    """
    built: list[Remote] = []
    missing: dict[str, str] = {}
    try:
        for peer, precision in wanted:
            module = load(peer)
            name = f"{module.NAME} {precision}"
            if reason := unavailable(module, precision):
                missing[name] = reason
                continue
            remote = None
            try:
                remote = Remote(peer, precision, settings)
                remote.versions = remote.answer()
                built.append(remote)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                missing[name] = first_line(error)
                if remote is not None:
                    remote.end()
        yield built, missing
    finally:
        for remote in built:
            remote.end()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
