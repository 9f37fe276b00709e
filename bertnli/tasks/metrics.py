"""Figures of merit of predictions, by scikit-learn and SciPy, which take a second to import and so wait for a use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


def classification_metrics(logits: Tensor, labels: Tensor, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Accuracy, and per-class precision, recall, F1 and support with the confusion matrix.

    logits: float [N, C]; labels: int64 [N]. `confusion[i][j]` counts the examples of class i that were given class j.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = logits.shape[1]
    names = list(label_names) if label_names is not None else [str(i) for i in range(classes)]
    predicted = logits.argmax(1)
    truth, guess = labels.cpu().numpy(), predicted.cpu().numpy()
    which = list(range(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=which, zero_division=0.0)
    return {
        "accuracy": float((predicted == labels).float().mean()),
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


def regression_metrics(outputs: Tensor, labels: Tensor, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Pearson's and Spearman's correlation, mean squared and mean absolute error; their means over K > 1 columns.

    outputs, labels: float [N, K]. The correlation with something constant is 0. With K > 1, `per_label` has each
    column's figures.
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


def _column_metrics(guess: Any, truth: Any) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    constant = len(guess) < 2 or np.ptp(guess) == 0 or np.ptp(truth) == 0
    return {
        "pearson": 0.0 if constant else float(pearsonr(guess, truth).statistic),
        "spearman": 0.0 if constant else float(spearmanr(guess, truth).statistic),
        "mse": float(np.square(guess - truth).mean()),
        "mae": float(np.abs(guess - truth).mean()),
    }
