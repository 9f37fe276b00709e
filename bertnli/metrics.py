"""Figures of merit of class predictions, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor


def classification_metrics(logits: Tensor, labels: Tensor, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Accuracy, mean cross-entropy, and per-class precision, recall, F1 and support with the confusion matrix.

    logits: float [N, C]; labels: int64 [N]. `confusion[i][j]` counts the pairs of class i that were given class j.
    """
    classes = logits.shape[1]
    names = list(label_names) if label_names is not None else [str(i) for i in range(classes)]
    predicted = logits.argmax(1)
    truth, guess = labels.cpu().numpy(), predicted.cpu().numpy()
    which = list(range(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=which, zero_division=0.0)
    return {
        "pairs": len(labels),
        "accuracy": float((predicted == labels).float().mean()),
        "loss": float(torch.nn.functional.cross_entropy(logits.float(), labels)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "macro_f1": float(f1.mean()),
        "labels": names,
        "confusion": confusion_matrix(truth, guess, labels=which).tolist(),
    }
