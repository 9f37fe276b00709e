"""Metrics of classification and regression against scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torch import Tensor

from bertnli.tasks.classification import classification_metrics
from bertnli.tasks.regression import regression_metrics


def classification_cases() -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [N, C] and labels [N]: random, absent classes, constant predictions, one example."""
    g = torch.Generator().manual_seed(0)
    for examples, classes in ((1, 3), (2, 2), (7, 5), (500, 3), (40, 30)):
        logits = torch.randn(examples, classes, generator=g)
        labels = torch.randint(0, classes, (examples,), generator=g)
        yield logits, labels
        yield logits, torch.zeros_like(labels)
        yield torch.zeros_like(logits), labels  # equal scores: the first class
        yield torch.nn.functional.one_hot(labels, classes).float(), labels


@pytest.mark.parametrize(("logits", "labels"), list(classification_cases()))
def test_classification_metrics_equal_scikit_learn(logits: Tensor, labels: Tensor) -> None:
    names = [f"class {i}" for i in range(logits.shape[1])]
    found = classification_metrics(logits, labels, names)
    truth, guess, classes = labels.numpy(), logits.argmax(1).numpy(), list(range(len(names)))
    wanted = precision_recall_fscore_support(truth, guess, labels=classes, zero_division=0.0)
    for key, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        assert [row[key] for row in found["per_class"].values()] == pytest.approx(values.tolist(), abs=1e-12)
    assert found["accuracy"] == pytest.approx((truth == guess).mean())
    assert found["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0.0), abs=1e-12)
    assert found["confusion"] == confusion_matrix(truth, guess, labels=classes).tolist()
    assert found["labels"] == list(found["per_class"]) == names


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    found = classification_metrics(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1]))
    assert found["macro_f1"] == 1
    assert [row["f1"] for row in found["per_class"].values()] == [0, 1, 0]


def regression_cases() -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and labels [N, K]: random, ties, far from 0, perfectly correlated."""
    g = torch.Generator().manual_seed(0)
    for examples, columns in ((2, 1), (3, 1), (50, 1), (1000, 1), (60, 3)):
        outputs, labels = torch.randn(2, examples, columns, generator=g)
        yield outputs, labels + outputs
        yield outputs.round(), labels.mul(2).round() + torch.arange(examples)[:, None] % 2  # ties
        yield outputs * 1e-4 + 1000, labels * 1e6
        yield outputs, -3 * outputs + 1


@pytest.mark.parametrize(("outputs", "labels"), list(regression_cases()))
def test_regression_metrics_equal_scipy(outputs: Tensor, labels: Tensor) -> None:
    found = regression_metrics(outputs, labels)
    columns = list(zip(outputs.T.double().numpy(), labels.T.double().numpy(), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns: NaN
        wanted = {
            "pearson": [pearsonr(a, b).statistic for a, b in columns],
            "spearman": [spearmanr(a, b).statistic for a, b in columns],
            "mse": [((a - b) ** 2).mean() for a, b in columns],
            "mae": [np.abs(a - b).mean() for a, b in columns],
        }
    for key, values in wanted.items():
        assert found[key] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12, nan_ok=True)
        if len(columns) > 1:
            rows = [row[key] for row in found["per_label"].values()]
            assert rows == pytest.approx(values, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("labels", [[[1.0]], [[2.0], [2.0], [2.0]]], ids=["one example", "constant"])
def test_a_correlation_that_is_not_defined_is_nan(labels: list[list[float]]) -> None:
    found = regression_metrics(torch.arange(len(labels)).float()[:, None], torch.tensor(labels))
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert found["mse"] > 0
