"""Multi-label classification: any number of classes for each text or pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.data.html import bars
from bertnli.tasks.classification import BERTClassifier
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts


@dataclass(frozen=True)
class MultiLabelPrediction:
    """The classes of one text or pair.

    labels          names of the classes whose probability is at least their threshold
    label_ids       their indices
    probabilities   name to probability of every class, in their order; each by itself
    """

    labels: list[str]
    label_ids: list[int]
    probabilities: dict[str, float]

    def _repr_html_(self) -> str:
        """A bar for each class, for notebooks."""
        return bars(self.probabilities, self.labels)


class BERTMultiLabelClassifier(BERTClassifier):
    """Any number of `num_labels` classes for each text or pair: a sigmoid an output. Loss: binary cross entropy.

    Labels: [N, num_labels], 1 for each class that the example has, else 0; of any dtype. Arguments: see BERTClassifier.

    settings    thresholds    probability of each class from which on it is predicted (default: 0.5 for all). `fit` with
                              dev data chooses those of the best F1 there

    As scikit-learn has it, a figure whose denominator is 0 is 0.
    """

    task = "multilabel"
    metric = "micro_f1"
    defaults: ClassVar[dict[str, Any]] = {"thresholds": None}

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        labels = batch.labels.to(outputs.dtype)
        losses = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        return losses.masked_fill(labels == self.ignored, 0).sum()

    def num_targets(self, batch: PackedBatch) -> int:
        return len(batch) * self.output.out_features

    def num_correct(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        return ((outputs > 0) == batch.labels).sum()

    def logits(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        return torch.stack([torch.zeros_like(outputs), outputs], -1)  # softmax over the two is the sigmoid

    def label_error(self, labels: Tensor) -> str | None:
        if labels.dim() != 2 or labels.shape[1] != self.output.out_features:
            shape = list(labels.shape)
            return f"labels of shape {shape}; expected a row of {self.output.out_features} zeros and ones an example"
        if bool(((labels != 0) & (labels != 1)).any()):
            return "labels other than 0 and 1; each example has a row of zeros and ones"
        return None

    def thresholds(self) -> npt.NDArray[np.float32]:
        """The threshold of each class, float32 [C]. Raises ValueError for settings that do not fit."""
        given, count = self.settings["thresholds"], self.output.out_features
        found = np.full(count, 0.5) if given is None else np.asarray(given, dtype=object)
        if found.shape != (count,) or not all(isinstance(x, float | int) and 0 <= x <= 1 for x in found):
            raise ValueError(f'settings["thresholds"] must be {count} numbers from 0 to 1; found {given!r}')
        return found.astype(np.float32)

    def metrics(self, outputs: Tensor, data: EncodedTexts) -> dict[str, Any]:
        assert data.labels is not None
        truth, guesses = data.labels.numpy() > 0, outputs.sigmoid().numpy() >= self.thresholds()
        hits, support, guessed = (both.sum(0) for both in (truth & guesses, truth, guesses))
        names = self.label_names or tuple(str(i) for i in range(truth.shape[1]))
        f1 = 2 * hits / np.maximum(support + guessed, 1)
        columns = zip(hits / np.maximum(guessed, 1), hits / np.maximum(support, 1), f1, support, strict=True)
        return {
            "micro_f1": float(2 * hits.sum() / max(1, (support + guessed).sum())),
            "macro_f1": float(f1.mean()),
            "accuracy": float((truth == guesses).all(1).mean()),  # of whole examples
            "per_class": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
                for name, (p, r, f, n) in zip(names, columns, strict=True)
            },
        }

    def predictions(self, outputs: Tensor, data: EncodedTexts) -> list[Any]:
        probabilities = outputs.sigmoid()
        names = self.label_names or tuple(str(i) for i in range(outputs.shape[1]))
        chosen = probabilities.numpy() >= self.thresholds()
        return [
            MultiLabelPrediction([names[i] for i in ids], ids, dict(zip(names, row, strict=True)))
            for ids, row in zip((np.flatnonzero(row).tolist() for row in chosen), probabilities.tolist(), strict=True)
        ]

    def tune(self, outputs: Tensor, data: EncodedTexts) -> None:
        assert data.labels is not None
        columns = zip(outputs.sigmoid().numpy().T, data.labels.numpy().T > 0, strict=True)
        self.settings["thresholds"] = [best_threshold(scores, truth) for scores, truth in columns]


def best_threshold(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> float:
    """The threshold of the best F1: that nearest to 0.5, between two scores; 0.5 without a positive example.

    scores: float32 [N] from 0 to 1; truth: bool [N].
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order].astype(np.float64), truth[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + hits[-1])  # of the so many highest
    below = np.append(scores[1:], 0.0)
    f1[below == scores] = -1  # equal scores are on one side
    cuts = (scores + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    low, high = below[best], scores[best]
    nearest = np.where((low < 0.5) & (high >= 0.5), 0.5, cuts[best])
    return float(nearest[np.abs(nearest - 0.5).argmin()])
