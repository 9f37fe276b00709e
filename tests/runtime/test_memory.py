"""Memory that is reused during training."""

from __future__ import annotations

import os
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bertnli.runtime.memory import reuse_memory


def test_reused_memory_is_handed_out_once_and_given_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def churn(seed: int) -> None:
        """Allocate tensors of all sizes and free them in random order: none overwrites another."""
        draw = random.Random(seed)
        alive: list[tuple[torch.Tensor, int]] = []
        for i in range(400):
            if alive and draw.random() < 0.45:
                x, value = alive.pop(draw.randrange(len(alive)))
                assert bool((x == value).all())
            else:
                alive.append((torch.full((int(10 ** draw.uniform(0, 5.5)),), i + 1000 * seed), i + 1000 * seed))
        assert all(bool((x == value).all()) for x, value in alive)

    def churn_here(seed: int) -> None:
        with reuse_memory():
            churn(seed)

    with reuse_memory():
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(churn_here, range(8)))
            if sys.platform == "linux":  # another thread's memory is not from here
                foreign, own = threads.submit(torch.ones, 3_000_000).result(), torch.ones(3_000_000)
                ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
                places = [range(int(a, 16), int(b, 16)) for a, b in ranges]
                reused = next(r for r in places if own.data_ptr() in r)
                assert foreign.data_ptr() not in reused
                del foreign, own
        if sys.platform == "linux":
            place = torch.ones(3_000_000).data_ptr()
            assert torch.ones(3_000_000).data_ptr() == place
        with reuse_memory():
            outlives = torch.rand(1_000_000)
        copy = outlives.clone()
        torch.ones(50_000_000)
        before = resident() if sys.platform == "linux" else 0
    assert torch.equal(outlives, copy)
    if sys.platform == "linux":
        assert before - resident() > 150e6
    del outlives
    assert float(torch.ones(1_000_000).sum()) == 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is the C library's")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_reuse_of_memory_after_fork() -> None:
    """A forked child can allocate: no lock is held by a thread that the child does not have."""
    running = True

    def churn() -> None:
        with reuse_memory():
            while running:
                torch.empty(100_000)

    with reuse_memory(), ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            threads.submit(churn)
        try:
            for _ in range(30):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    torch.empty(100_000)
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            running = False
