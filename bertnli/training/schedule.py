"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = ("linear", "cosine", "constant")


def make_schedule(kind: str, num_steps: int, warmup: float) -> Callable[[int], float]:
    """A function from a step's number, from 0, to the factor of the learning rate. It rises linearly in the share
    `warmup` of the steps. Then it falls to 0, linearly or as half a cosine wave, or stays at 1."""
    rise = int(num_steps * warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        left = max(0.0, (num_steps - step) / max(1, num_steps - rise))
        return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[kind]

    return factor
