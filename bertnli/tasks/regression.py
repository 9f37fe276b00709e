"""Regression: one real number, or several, for each text or pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bertnli.encoder.bert import BERTModel
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts


class BERTRegressor(Head):
    """A real number, or `num_labels` of them, for each text or pair, from its `<cls>` vector. Loss: squared error.

    Labels: float32 [N], or [N, num_labels]. Arguments: see Head.

    settings    activation    of the outputs: "identity", or "sigmoid" as of many CrossEncoders; then labels are from 0
                              to 1
    """

    task = "regression"
    metric = "pearson"
    ignored = float("nan")
    defaults: ClassVar[dict[str, Any]] = {"activation": "identity"}

    def __init__(
        self,
        bert: BERTModel | Head,
        num_labels: int = 1,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(bert, num_labels, label_names, dropout)

    def values(self, outputs: Tensor) -> Tensor:
        """The predicted numbers: the outputs after the activation. Raises ValueError for an unknown activation."""
        kind = self.settings["activation"]
        if kind not in ("identity", "sigmoid"):
            raise ValueError(f'settings["activation"] must be "identity" or "sigmoid"; found {kind!r}')
        return outputs.sigmoid() if kind == "sigmoid" else outputs

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        labels = batch.labels.to(outputs.dtype).view_as(outputs)
        return (self.values(outputs) - labels).masked_fill(labels.isnan(), 0).square().sum()

    def num_targets(self, batch: PackedBatch) -> int:
        return len(batch) * self.output.out_features

    def label_error(self, labels: Tensor) -> str | None:
        if not labels.dtype.is_floating_point:
            return f"labels of {labels.dtype}; regression takes reals"
        width = self.output.out_features
        if labels.shape != (len(labels), width) and (width > 1 or labels.dim() != 1):
            return f"labels of shape {list(labels.shape)}; the model has {width} outputs an example"
        if not bool(labels.isfinite().all()):
            return "labels that are not finite"
        low, high = labels.aminmax() if labels.numel() else (0, 0)
        if self.settings["activation"] == "sigmoid" and not 0 <= float(low) <= float(high) <= 1:
            return (
                f"labels from {float(low):g} to {float(high):g}; the model's outputs are sigmoids: scale them to 0 to 1"
            )
        return None

    def metrics(self, outputs: Tensor, data: EncodedTexts) -> dict[str, Any]:
        assert data.labels is not None
        return regression_metrics(self.values(outputs), data.labels.view_as(outputs), self.label_names)

    def predictions(self, outputs: Tensor, data: EncodedTexts) -> list[Any]:
        return self.values(outputs).squeeze(1).tolist()


def regression_metrics(outputs: Tensor, labels: Tensor, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Pearson's and Spearman's correlation, mean squared and mean absolute error; for K > 1 columns their means.

    outputs, labels: float [N, K], on the CPU. A correlation with constant values, or of fewer than 2 examples, is
    undefined: NaN.
    For K > 1, `per_label` has the figures of each column.
    """
    columns = [
        _column_metrics(guess, truth)
        for guess, truth in zip(outputs.T.double().numpy(), labels.T.double().numpy(), strict=True)
    ]
    figures: dict[str, Any] = {name: float(np.mean([column[name] for column in columns])) for name in columns[0]}
    if len(columns) > 1:
        names = label_names if label_names is not None else [str(i) for i in range(len(columns))]
        figures["per_label"] = dict(zip(names, columns, strict=True))
    return figures


def _column_metrics(guess: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> dict[str, float]:
    return {
        "pearson": _pearson(guess, truth),
        "spearman": _pearson(_ranks(guess), _ranks(truth)),
        "mse": float(np.square(guess - truth).mean()),
        "mae": float(np.abs(guess - truth).mean()),
    }


def _pearson(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)), -1, 1))


def _ranks(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    mean_rank: npt.NDArray[np.float64] = counts.cumsum() - (counts - 1) / 2
    return mean_rank[inverse]
