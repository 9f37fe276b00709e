"""One peer in a process of its own: `python worker.py ADDRESS`, started by runner.Remote.

It imports nothing of bertnli or of tests, so that it runs in an environment with another torch. Messages are answered
by (error, None) or (None, answer):

    {"peer": ..., "precision": ..., "threads": ..., "folder": ...}   builds the peer; its versions
    ("work", source, pairs)    what the next messages are about: that many pairs from "ids" or "text"
    ("output",)                the scores
    ("seconds", count)         seconds of each of so many calls
    None                       ends the process
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import load
from problem import Problem, Run


def main() -> None:
    warnings.simplefilter("ignore")
    key = bytes.fromhex(os.environ.pop("BENCH_KEY"))
    with Client(sys.argv[1], authkey=key) as pipe:
        settings = pipe.recv()
        make: Callable[[str, int], Run] | None = None
        run: Run | None = None
        message: Any = ()
        while message is not None:
            try:
                if make is None:
                    make = builder(**settings)
                    answer: Any = {name: version(name) for name in load(settings["peer"]).REQUIRES}
                elif message[0] == "work":
                    run, answer = make(*message[1:]), None
                else:
                    assert run is not None
                    answer = seconds(run, message[1]) if message[0] == "seconds" else run()
                pipe.send((None, answer))
            except Exception as error:
                traceback.print_exc()
                lines = str(error).strip().splitlines()
                pipe.send((f"{type(error).__name__}: {lines[0][:160] if lines else ''}", None))
                if make is None:
                    return
            message = pipe.recv()


def builder(peer: str, precision: str, threads: int, folder: str) -> Callable[[str, int], Run]:
    """`make(source, pairs)` gives the peer's scores of that work."""
    module, problem = load(peer), Problem(Path(folder))
    set_threads(threads)
    from_ids = module.build(problem, precision, threads) if hasattr(module, "build") else None
    from_text = module.build_text(problem, precision, threads) if hasattr(module, "build_text") else None

    def make(source: str, count: int) -> Run:
        pairs = problem.pairs(count)
        if source == "text" and from_text is not None:
            return lambda: from_text(pairs.texts)
        assert from_ids is not None, f"{peer} starts from text"
        return pairs.run_from_text(from_ids, problem) if source == "text" else pairs.run_from_ids(from_ids)

    return make


def set_threads(threads: int) -> None:
    """PyTorch's threads, if the environment has it."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def seconds(run: Run, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
