"""Running a trained model: scores of encoded pairs, and predictions from text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertnli.heads import BERTClassifier
from bertnli.metrics import classification_metrics
from bertnli.pairs import EncodedPairs
from bertnli.tokenizer import Tokenizer, Truncation

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Prediction:
    """One pair's class.

    label           its name (its index as a string where the model has no names)
    label_id        its index
    probabilities   name to probability, in the order of the classes; they sum to 1
    """

    label: str
    label_id: int
    probabilities: dict[str, float]


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Matrix products in `precision`: "fp32" or "bf16" (weights and statistics stay float32)."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}; found {precision!r}")
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


@torch.no_grad()
def score(model: BERTClassifier, pairs: EncodedPairs, *, batch_size: int = 256, precision: str = "fp32") -> Tensor:
    """Class scores, float32 [N, num_labels] on the CPU, in eval mode; the model's own mode is restored."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        scores = torch.empty(len(pairs), model.output.out_features)
        with autocast(device, precision):
            for begin in range(0, len(pairs), batch_size):
                rows = range(begin, min(begin + batch_size, len(pairs)))
                scores[begin : rows.stop] = model(pairs.batch(rows).to(device)).float().cpu()
        return scores
    finally:
        model.train(was_training)


def evaluate(
    model: BERTClassifier, pairs: EncodedPairs, *, batch_size: int = 256, precision: str = "fp32"
) -> dict[str, Any]:
    """Accuracy, loss, per-class figures and confusion matrix on labelled pairs (see `classification_metrics`).

    Raises ValueError for pairs without labels or with a label that the model does not have.
    """
    if pairs.labels is None:
        raise ValueError("evaluation needs labelled pairs; these have no labels")
    if len(pairs) and not 0 <= int(pairs.labels.min()) <= int(pairs.labels.max()) < model.output.out_features:
        raise ValueError(
            f"labels run from {int(pairs.labels.min())} to {int(pairs.labels.max())}, "
            f"but the model has {model.output.out_features} classes"
        )
    return classification_metrics(
        score(model, pairs, batch_size=batch_size, precision=precision), pairs.labels, model.label_names
    )


def predict(
    model: BERTClassifier,
    tokenizer: Tokenizer,
    premises: Sequence[str],
    hypotheses: Sequence[str],
    *,
    max_len: int = 128,
    truncation: Truncation = "longest_first",
    batch_size: int = 256,
    precision: str = "fp32",
) -> list[Prediction]:
    """The class of each pair, in order.

    Two strings instead of two lists are one pair. Raises ValueError for lists of different lengths.
    """
    if isinstance(premises, str) and isinstance(hypotheses, str):
        premises, hypotheses = [premises], [hypotheses]
    max_len = min(max_len, model.config.max_len)
    pairs = tokenizer.encode_pairs(premises, hypotheses, max_len, truncation)
    probabilities = score(model, pairs, batch_size=batch_size, precision=precision).softmax(1)
    names = model.label_names or tuple(str(i) for i in range(probabilities.shape[1]))
    best = probabilities.argmax(1).tolist()
    return [
        Prediction(names[i], i, dict(zip(names, row, strict=True)))
        for i, row in zip(best, probabilities.tolist(), strict=True)
    ]
