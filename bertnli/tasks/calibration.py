"""How far a classifier's probabilities can be trusted, and the temperature that makes them fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of equal width of their confidence, the probability of the predicted class.

    confidence, accuracy    float64 [bins]    means of the bin; NaN where it is empty
    counts                  int64 [bins]
    error                   expected calibration error: the mean over predictions of their bin's |accuracy - confidence|
    """

    confidence: Floats
    accuracy: Floats
    counts: npt.NDArray[np.int64]
    error: float


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """The reliability of a classifier. probabilities: float [N, C]; labels: int64 [N].

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    confidence, predicted = (x.numpy() for x in probabilities.double().max(1))
    right = predicted == labels.numpy()
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # bins are open below, closed above
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        mean_confidence, accuracy = (np.bincount(place, x, minlength=bins) / counts for x in (confidence, right))
    gaps = np.abs(accuracy - mean_confidence)[counts > 0]
    error = float((gaps * counts[counts > 0]).sum() / max(1, len(confidence)))
    return Reliability(mean_confidence, accuracy, counts, error)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T, from 0.05 to 20, for which softmax(logits / T) has the least cross entropy.

    logits: float [N, C]; labels: int64 [N]. The loss is convex in 1 / T, so that its slope's zero is found by halving.
    """
    logits = logits.double()
    of_label = logits.gather(1, labels[:, None])[:, 0]
    low, high = 1 / 20, 20.0  # of 1 / T
    for _ in range(60):
        middle = math.sqrt(low * high)
        expected = (logits * (logits * middle).softmax(1)).sum(1)
        low, high = (low, middle) if float((expected - of_label).sum()) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


def precision_recall(scores: Tensor, truth: Tensor) -> tuple[Floats, Floats, float]:
    """Precision and recall, float64 [thresholds], at each distinct score from the highest on, and average precision.

    scores: float [N]; truth: bool [N]. Average precision is the mean of the precision over the steps of the recall, as
    scikit-learn has it; without a positive example it is 0.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    values, hits = scores[order].double().numpy(), truth[order].double().cumsum(0).numpy()
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1) if len(values) else np.zeros(0, np.int64)
    precision = hits[last] / (last + 1)
    recall = hits[last] / max(1.0, float(truth.sum()))
    return precision, recall, float((np.diff(recall, prepend=0.0) * precision).sum())
