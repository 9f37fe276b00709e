"""Running a trained model: scores of encoded pairs, and predictions from text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertnli.batching import PackedBatch
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


def check_labels(pairs: EncodedPairs, name: str, model: BERTClassifier) -> None:
    """Raise ValueError unless `pairs` are some, labelled with classes of `model`, and short enough for it."""
    classes = model.output.out_features
    if not len(pairs):
        raise ValueError(f"{name} is empty")
    if pairs.labels is None:
        raise ValueError(f"{name} has no labels")
    if pairs.labels.dtype != torch.int64:
        raise ValueError(f"{name} has labels of {pairs.labels.dtype}; classes are integers")
    low, high = int(pairs.labels.min()), int(pairs.labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name} has labels from {low} to {high}; the model has {classes} classes")
    if (longest := int(pairs.lengths.max())) > model.config.max_len:
        raise ValueError(
            f"{name} has a row of {longest} tokens; the model's max_len is {model.config.max_len}: "
            "encode the pairs with a smaller max_len"
        )


def score(model: BERTClassifier, pairs: EncodedPairs, *, batch_size: int = 256, precision: str = "fp32") -> Tensor:
    """Class scores, float32 [N, num_labels] on the CPU, in eval mode; the model's own mode is restored.

    Raises ValueError for a batch_size below 1, and as the encoder does for rows that it cannot take.
    """
    return in_batches(model, model, pairs, batch_size, precision).float().cpu()


@torch.no_grad()
def in_batches(
    model: BERTClassifier,
    function: Callable[[PackedBatch], Tensor],
    pairs: EncodedPairs,
    batch_size: int = 256,
    precision: str = "fp32",
) -> Tensor:
    """`function`, a part of `model` in eval mode, of all pairs: [B, ...] of each batch to [N, ...] on its device."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; found {batch_size}")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with autocast(device, precision):
            begins = range(0, max(1, len(pairs)), batch_size)  # no pairs are one batch of none
            rows = (range(begin, min(begin + batch_size, len(pairs))) for begin in begins)
            return torch.cat([function(pairs.batch(some).to(device)) for some in rows])
    finally:
        model.train(was_training)


def evaluate(
    model: BERTClassifier, pairs: EncodedPairs, *, batch_size: int = 256, precision: str = "fp32"
) -> dict[str, Any]:
    """Accuracy, loss, per-class figures and confusion matrix on labelled pairs (see `classification_metrics`).

    Raises ValueError where there are no pairs, no labels, or labels that the model does not have.
    """
    check_labels(pairs, "the evaluated data", model)
    assert pairs.labels is not None
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
