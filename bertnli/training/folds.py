"""Cross-validation: a model is trained on all folds of the data but one, and measured on that one, for each in turn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bertnli.data.arguments import integer
from bertnli.data.html import table
from bertnli.inference.predict import evaluate
from bertnli.tasks.base import Head
from bertnli.tasks.question_answering import EncodedQuestions
from bertnli.text.encoded import Encoded, encoded_texts, without_subset
from bertnli.training.loop import fit
from bertnli.training.options import TrainingOptions


@dataclass(frozen=True)
class CrossValidation:
    """What `cross_validate` found.

    figures   of each fold: the numbers that `evaluate` gave
    """

    figures: list[dict[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each figure over the folds."""
        return {name: float(np.mean(values)) for name, values in self._columns().items()}

    @property
    def deviation(self) -> dict[str, float]:
        """The sample standard deviation of each figure over the folds."""
        return {name: float(np.std(values, ddof=1)) for name, values in self._columns().items()}

    def _columns(self) -> dict[str, list[float]]:
        return {name: [fold[name] for fold in self.figures] for name in self.figures[0] if name != "examples"}

    def __repr__(self) -> str:
        mean, deviation = self.mean, self.deviation
        shown = ", ".join(f"{name} {mean[name]:.4f} ± {deviation[name]:.4f}" for name in mean)
        return f"CrossValidation({len(self.figures)} folds: {shown})"

    def _repr_html_(self) -> str:
        """A table of the folds, for notebooks."""
        rows: list[list[Any]] = [[str(i), *fold.values()] for i, fold in enumerate(self.figures, 1)]
        names = list(self.figures[0])
        for name, row in (("mean", self.mean), ("deviation", self.deviation)):
            rows.append([name, *(row.get(column) for column in names)])
        return table(["fold", *names], rows)


def cross_validate(
    model: Head,
    data: Encoded,
    dev: Encoded | None = None,
    options: TrainingOptions | None = None,
    *,
    folds: int = 5,
    **training: Any,
) -> CrossValidation:
    """Train copies of `model` on all folds but one, and evaluate each on the fold that it did not see.

        data = bertnli.load_encoded("reviews.csv", head, tokenizer, text_columns=["text"])
        found = bertnli.cross_validate(head, data, folds=5, epochs=3)
        print(found.mean["accuracy"], found.deviation["accuracy"])

    data                what `model.encode` gave for labelled examples: EncodedTexts, or data of a custom head that have
                        their method `select`. The folds of a classifier have equal shares of each class
    dev                 the same of other examples, to choose each copy's best weights by (default: the last weights are
                        taken, so that a fold is measured on data that decided nothing)
    folds               number of folds, from 2 to the number of examples
    options, training   of `fit`; `seed` also decides which example is in which fold

    `model` stays as it is. Raises ValueError for another number of folds, for question answering, whose folds would
    share contexts, and what `fit` and `evaluate` raise.
    """
    if isinstance(data, EncodedQuestions):
        raise ValueError("questions on one context would be in several folds; split the articles yourself (`where`)")
    examples: Any = without_subset(data)
    examples = examples if hasattr(examples, "select") else encoded_texts(examples, "data")
    names = {name for name in training if name in TrainingOptions.__dataclass_fields__}
    options = (options or TrainingOptions()).changed({name: training.pop(name) for name in names})
    labels = examples.labels if model.task == "classification" else None
    figures = []
    for held_out in fold_indices(len(examples), folds, options.seed, labels):
        rest = np.delete(np.arange(len(examples)), held_out)
        copied = copy.deepcopy(model)
        fit(copied, examples.select(rest), dev, options, **training)
        found = evaluate(copied, examples.select(held_out))
        figures.append({name: value for name, value in found.items() if isinstance(value, int | float)})
    return CrossValidation(figures)


def fold_indices(
    count: int, folds: int, seed: int, labels: Sequence[int] | Tensor | None = None
) -> list[npt.NDArray[np.int64]]:
    """The examples of each fold, ascending. With class labels, each class is spread evenly over the folds, which have
    the sizes of scikit-learn's StratifiedKFold."""
    folds = integer(folds, "folds", low=2)
    if folds > count:
        raise ValueError(f"folds must be at most the number of examples, {count}; found {folds}")
    order = np.random.default_rng(seed).permutation(count)
    if labels is not None:  # class by class, by their first appearance
        _, first, label = np.unique(np.asarray(labels), return_index=True, return_inverse=True)
        order = order[np.argsort(first[label][order], kind="stable")]
    fold = np.empty(count, np.int64)  # of each example
    fold[order] = np.arange(count) % folds
    return [np.flatnonzero(fold == i) for i in range(folds)]
