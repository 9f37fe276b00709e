"""What `fit` tells its caller while it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bertnli.training.history import Epoch, Evaluation
from bertnli.training.steps import StepResult


@dataclass(frozen=True)
class Step:
    """An optimizer step that was taken.

    step    its number in the run, from 1
    epoch   the epoch's number, from 1
    lr      the learning rate of the head
    result  its figures in this process, on the model's device
    """

    step: int
    epoch: int
    lr: float
    result: StepResult

    @property
    def loss(self) -> float:
        """The mean loss over targets (of several processes: this one's part). Reading it waits for a GPU."""
        return float(self.result.loss_sum) / self.result.weight


@dataclass(frozen=True)
class Callback:
    """Functions that `fit` calls, in every process; an error that one raises ends the run, which can be continued.

        fit(model, train, dev, callbacks=[Callback(on_epoch=print)])

    on_step   after each optimizer step
    on_eval   after each evaluation on the dev data, with the evaluated weights in the model
    on_epoch  after each epoch, when the state file is written
    """

    on_step: Callable[[Step], object] | None = None
    on_eval: Callable[[Evaluation], object] | None = None
    on_epoch: Callable[[Epoch], object] | None = None
