"""What a training run reports: figures of each epoch, and progress within one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bertnli.data.progress import Progress
from bertnli.training.options import TrainingOptions
from bertnli.training.steps import StepResult


@dataclass
class Epoch:
    """Figures of one pass over the training examples. Losses are means over targets.

    epoch           its number, from 1
    train_accuracy  share of targets predicted correctly during training; None where the objective does not count them
    dev_score       the dev figure that the head names `metric`; None without dev data
    seconds         duration of the pass, without evaluation
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    dev_loss: float | None
    dev_score: float | None
    metric: str
    seconds: float
    pairs_per_second: float


@dataclass(repr=False)
class History:
    """Figures of a training run.

    epochs      one Epoch for each pass
    losses      mean loss of each optimizer step
    best_epoch  number of the epoch with the best dev score, the first of equals; None without a defined score
    """

    epochs: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best_epoch: int | None = None

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        text = f"History({len(self.epochs)} epochs, train loss {self.epochs[-1].train_loss:.4f}"
        if self.best_epoch is not None:
            best = self.epochs[self.best_epoch - 1]
            text += f", best dev {best.metric} {best.dev_score:.4f} in epoch {best.epoch}"
        return text + ")"

    def append(self, epoch: Epoch) -> bool:
        """Add an epoch; True if its dev score is better than all before. NaN is worse than any number."""
        self.epochs.append(epoch)
        scores = [-math.inf if math.isnan(e.dev_score) else e.dev_score for e in self.epochs if e.dev_score is not None]
        best, before = max(scores, default=-math.inf), self.best_epoch
        self.best_epoch = scores.index(best) + 1 if best > -math.inf else None
        return self.best_epoch != before

    def describe(self, options: TrainingOptions, train_sequences: int, dev_sequences: int | None) -> dict[str, Any]:
        """The run in plain values, for the model card; the score is that of the epoch whose weights were kept."""
        chosen = options.keep_best and self.best_epoch is not None and len(self.epochs) > 1
        number = self.best_epoch if chosen and self.best_epoch is not None else len(self.epochs)
        kept = self.epochs[number - 1]
        shown = ("epochs", "batch_size", "batch_tokens", "lr", "seed", "precision")
        return {
            "train_sequences": train_sequences,
            "dev_sequences": dev_sequences,
            "options": {name: value for name in shown if (value := getattr(options, name)) is not None},
            "epoch": kept.epoch,
            "metric": kept.metric,
            "score": None if kept.dev_score is None or math.isnan(kept.dev_score) else kept.dev_score,
            "chosen": chosen,
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class EpochProgress(Progress):
    """Loss, accuracy, pairs/s and time left of one epoch.

    num_processes   processes that share the epoch's steps
    """

    def __init__(self, total: int, title: str, num_processes: int, enabled: bool) -> None:
        super().__init__(total, title, "pairs", enabled)
        self._num_processes = num_processes

    def add(self, num_examples: int, results: Sequence[StepResult]) -> None:
        """Advance by some examples; `results` are those of all steps so far, of this process."""
        self.update(num_examples, lambda: self._figures(results))  # reading them waits for the device

    def _figures(self, results: Sequence[StepResult]) -> str:
        share = self._num_processes / sum(r.num_targets for r in results)
        correct = [r.num_correct for r in results if r.num_correct is not None]
        text = f"loss {float(sum(r.loss_sum for r in results)) * share:.3f}"
        return f"{text}, acc {int(sum(correct)) * share:.3f}" if correct else text
