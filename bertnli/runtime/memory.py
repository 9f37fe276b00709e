"""CPU settings for the time of a training run: denormal numbers, and memory that is reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Run the block with denormal numbers counted as zero. Adam's moments of rare words decay into them, and CPUs are
    slow at them."""
    already = float(torch.tensor(1e-39) * 1) == 0
    changed = not already and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if changed:
            torch.set_flush_denormal(False)


@contextmanager
def reuse_memory() -> Iterator[None]:
    """Run the block with freed CPU tensors' memory reused for the next ones, in huge pages; release it afterwards.

    Otherwise each step returns its activations and gradients to the system, and fetches them anew page by page.
    """
    torch.ops.bertnli.keep_memory(True)
    try:
        yield
    finally:
        torch.ops.bertnli.keep_memory(False)
        torch.ops.bertnli.give_back_memory()
