"""The learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable


def linear_schedule(num_steps: int, warmup: float) -> Callable[[int], float]:
    """A function from a step's number, from 0, to the factor of the learning rate, which rises linearly in the share
    `warmup` of the steps and then falls linearly to 0."""
    rise = int(num_steps * warmup)

    def factor(step: int) -> float:
        return (step + 1) / (rise + 1) if step < rise else max(0.0, (num_steps - step) / max(1, num_steps - rise))

    return factor
