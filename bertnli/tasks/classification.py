"""Classification: one class for each text or pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli.data.html import bars
from bertnli.encoder.bert import BERTModel
from bertnli.tasks.base import Head, class_label_error
from bertnli.tasks.calibration import fit_temperature
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts


@dataclass(frozen=True)
class Prediction:
    """The class of one text or pair.

    label           its name (its index as a string if the model has no names)
    label_id        its index
    probabilities   name to probability, in the order of the classes; they sum to 1
    """

    label: str
    label_id: int
    probabilities: dict[str, float]

    def _repr_html_(self) -> str:
        """A bar for each class, for notebooks."""
        return bars(self.probabilities, [self.label])


class BERTClassifier(Head):
    """One of `num_labels` classes for each text or pair, from its `<cls>` vector: D2L's `encoder`, `hidden`, `output`.

    Labels: int64 [N]. Arguments: see Head; `num_labels` is the number of names by default, or 3.

    Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT".
    """

    task = "classification"
    metric = "accuracy"
    ignored = -100  # as cross_entropy has it
    hidden: nn.Sequential

    def __init__(
        self,
        bert: BERTModel | Head,
        num_labels: int | None = None,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        if num_labels is None:
            num_labels = 3 if label_names is None else len(label_names)
        super().__init__(bert, num_labels, label_names, dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        return F.cross_entropy(outputs, batch.labels, reduction="sum")

    def num_correct(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        return (outputs.argmax(1) == batch.labels).sum()

    def logits(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        return outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The probabilities of the classes, [N, num_labels]."""
        return outputs.softmax(1)

    @torch.no_grad()
    def calibrate(self, outputs: Tensor, labels: Tensor) -> float:
        """Divide the output layer by the temperature that fits the probabilities to labelled data; returns it.

            model.calibrate(bertnli.score(model, dev), dev.labels)

        The predicted classes stay. outputs: float [N, C], the model's; labels: int64 [N]. Use data that were not
        trained on. See `fit_temperature`. Raises ValueError for labels that the model does not have.
        """
        if (error := class_label_error(labels, 1, self.output.out_features)) is not None:
            raise ValueError(f"calibrate needs one class an example: found {error}")
        temperature = fit_temperature(outputs, labels)
        for parameter in self.output.parameters():
            parameter.div_(temperature)
        return temperature

    def label_error(self, labels: Tensor) -> str | None:
        return class_label_error(labels, 1, self.output.out_features)

    def metrics(self, outputs: Tensor, data: EncodedTexts) -> dict[str, Any]:
        assert data.labels is not None
        return classification_metrics(outputs, data.labels, self.label_names)

    def predictions(self, outputs: Tensor, data: EncodedTexts) -> list[Any]:
        probabilities = self.probabilities(outputs)
        names = self.label_names or tuple(str(i) for i in range(outputs.shape[1]))
        best = probabilities.argmax(1).tolist()
        return [
            Prediction(names[i], i, dict(zip(names, row, strict=True)))
            for i, row in zip(best, probabilities.tolist(), strict=True)
        ]


def classification_metrics(logits: Tensor, labels: Tensor, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Accuracy, precision, recall, F1 and support of each class, macro F1, and the confusion matrix.

    logits: float [N, C]; labels: int64 [N]; both on the CPU. As in scikit-learn, a figure whose denominator is 0 is 0,
    and macro F1 is the mean over the classes that occur in the labels or in the predictions. `confusion[i][j]` counts
    the examples of class i that were predicted as class j.
    """
    classes = logits.shape[1]
    names = list(label_names) if label_names is not None else [str(i) for i in range(classes)]
    predicted = logits.argmax(1)
    cells = np.bincount((labels * classes + predicted).numpy(), minlength=classes * classes)
    confusion = cells.reshape(classes, classes)
    hits, support, guesses = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / np.maximum(support + guesses, 1)
    columns = zip(hits / np.maximum(guesses, 1), hits / np.maximum(support, 1), f1, support, strict=True)
    return {
        "accuracy": float((predicted == labels).float().mean()),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, (p, r, f, n) in zip(names, columns, strict=True)
        },
        "macro_f1": float(f1[support + guesses > 0].mean()),
        "labels": names,
        "confusion": confusion.tolist(),
    }
