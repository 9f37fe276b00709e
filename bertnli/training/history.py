"""What a training run reports: figures of each epoch, and progress within one."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from bertnli.data.html import table
from bertnli.data.progress import Progress
from bertnli.training.options import TrainingOptions
from bertnli.training.steps import StepResult

LOWER_IS_BETTER = ("loss", "mse", "mae")  # of these figures


@dataclass
class Evaluation:
    """Figures of the dev data after some optimizer steps.

    step      number of optimizer steps before it
    epoch     number of the epoch it was in, from 1
    loss      mean loss over targets
    score     the figure named `metric`, NaN where it is undefined
    figures   all numbers that `evaluate` gave
    """

    step: int
    epoch: int
    loss: float
    score: float
    metric: str
    figures: dict[str, float]

    @property
    def gain(self) -> float:
        """The score, or its negative where lower is better; NaN is worse than any number."""
        return -math.inf if math.isnan(self.score) else -self.score if self.metric in LOWER_IS_BETTER else self.score


@dataclass
class Epoch:
    """Figures of one pass over the training examples. Losses are means over targets.

    epoch           its number, from 1
    train_accuracy  share of targets predicted correctly during training; None where the objective does not count them
    dev_score       the dev figure named `metric`; None without dev data
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

    epochs       one Epoch for each pass; the last one is shorter where training stopped early
    losses       mean loss of each optimizer step
    evaluations  one Evaluation for each time that the dev data were evaluated
    dev          of the weights that the run ended with: figures of merit on the dev data, as `evaluate` gives them, and
                 the outputs, as `score` does; None without dev data. It is not in `as_dict`
    """

    epochs: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    dev: tuple[dict[str, Any], Tensor] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        text = f"History({len(self.epochs)} epochs, train loss {self.epochs[-1].train_loss:.4f}"
        if (best := self.best) is not None:
            text += f", best dev {best.metric} {best.score:.4f} in epoch {best.epoch}"
        return text + ")"

    def _repr_html_(self) -> str:
        """A table of the epochs, for notebooks."""
        names = [name for name in Epoch.__dataclass_fields__ if name != "metric"]
        names = [name for name in names if any(getattr(e, name) is not None for e in self.epochs)]
        metric = self.epochs[0].metric if self.epochs else ""
        titles = [metric if name == "dev_score" else name.replace("_", " ") for name in names]
        rows = [[getattr(e, name) for name in names] for e in self.epochs]
        return f"<p>{html.escape(repr(self))}</p>{table(titles, rows)}"

    def to_pandas(self) -> Any:
        """The epochs as a pandas DataFrame with the index `epoch`. Raises ImportError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("History.to_pandas needs pandas: pip install pandas") from error
        frame = pandas.DataFrame([vars(e) for e in self.epochs], columns=list(Epoch.__dataclass_fields__))
        return frame.set_index("epoch")

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the best score, the first of equals; None without a defined score."""
        best = max(self.evaluations, key=lambda e: e.gain, default=None)
        return None if best is None or best.gain == -math.inf else best

    @property
    def best_epoch(self) -> int | None:
        """Number of the epoch of the best evaluation; None without a defined score."""
        return None if self.best is None else self.best.epoch

    def stalled(self, min_delta: float) -> int:
        """How many evaluations have passed since a score was better, by more than `min_delta`, than all such before."""
        best, since = -math.inf, 0
        for evaluation in self.evaluations:
            better = evaluation.gain > best + min_delta
            best, since = (evaluation.gain, 0) if better else (best, since + 1)
        return since

    def describe(self, options: TrainingOptions, train_sequences: int, dev_sequences: int | None) -> dict[str, Any]:
        """The run in plain values, for the model card; the score is that of the weights that were kept."""
        chosen = options.keep_best and self.best is not None and len(self.evaluations) > 1
        last = self.evaluations[-1] if self.evaluations else None
        kept = self.best if chosen else last
        shown = ("epochs", "batch_size", "batch_tokens", "lr", "seed", "precision")
        changed = [f.name for f in fields(options) if getattr(options, f.name) != f.default and f.name not in shown]
        return {
            "train_sequences": train_sequences,
            "dev_sequences": dev_sequences,
            "options": {name: value for name in (*shown, *changed) if (value := getattr(options, name)) is not None},
            "epoch": len(self.epochs) if kept is None else kept.epoch,
            "metric": self.epochs[-1].metric,
            "score": None if kept is None or math.isnan(kept.score) else kept.score,
            "chosen": chosen,
        }

    def as_dict(self) -> dict[str, Any]:
        values = asdict(replace(self, dev=None))
        del values["dev"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The history whose `as_dict` this is."""
        epochs, evaluations = values["epochs"], values["evaluations"]
        return cls([Epoch(**e) for e in epochs], values["losses"], [Evaluation(**e) for e in evaluations])


class EpochProgress(Progress):
    """Loss, accuracy, pairs/s and time left of one epoch.

    num_processes   processes that share the epoch's steps
    """

    def __init__(self, total: int, title: str, num_processes: int, enabled: bool) -> None:
        super().__init__(total, title, "pairs", enabled)
        self._num_processes = num_processes

    def skip(self, num_examples: int) -> None:
        """Count examples of the interrupted run that is continued."""
        if num_examples:
            self.update(num_examples)

    def add(self, num_examples: int, results: Sequence[StepResult]) -> None:
        """Advance by some examples; `results` are those of all steps so far, of this process."""
        self.update(num_examples, lambda: self._figures(results))  # reading them waits for the device

    def _figures(self, results: Sequence[StepResult]) -> str:
        share = self._num_processes / sum(r.weight for r in results)
        correct = [r.num_correct for r in results if r.num_correct is not None]
        text = f"loss {float(sum(r.loss_sum for r in results)) * share:.3f}"
        num_targets = sum(r.num_targets for r in results)
        accuracy = int(sum(correct)) * self._num_processes / num_targets
        return f"{text}, acc {accuracy:.3f}" if correct else text
