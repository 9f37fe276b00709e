"""Calibration and precision-recall against torchmetrics, SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_models import classifier
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, precision_recall_curve
from torchmetrics.classification import MulticlassCalibrationError

from bertnli.tasks.calibration import fit_temperature, precision_recall, reliability


def logits_and_labels(seed: int, sharp: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(400, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * sharp, labels


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
def test_calibration_error_is_that_of_torchmetrics(sharp: float) -> None:
    logits, labels = logits_and_labels(0, sharp)
    expected = MulticlassCalibrationError(4, n_bins=15)(logits.softmax(1), labels)
    found = reliability(logits.softmax(1), labels)
    assert found.error == pytest.approx(float(expected), abs=1e-6)
    assert found.counts.sum() == len(labels)


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
def test_the_temperature_has_the_least_cross_entropy(sharp: float) -> None:
    logits, labels = logits_and_labels(1, sharp)
    loss = lambda t: float(torch.nn.functional.cross_entropy(logits.double() / t, labels))  # noqa: E731
    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-4)
    assert fit_temperature(logits, labels) == pytest.approx(sharp, rel=0.25)  # how the logits were made


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 50):
        scores = torch.from_numpy(rng.integers(0, 9, size) / 9)  # with equal scores
        truth = torch.from_numpy(rng.random(size) < 0.4)
        truth[0] = True
        precision, recall, average = precision_recall(scores, truth)
        expected = precision_recall_curve(truth.numpy(), scores.numpy())
        np.testing.assert_allclose(precision, expected[0][:-1][::-1])
        np.testing.assert_allclose(recall, expected[1][:-1][::-1])
        assert average == pytest.approx(average_precision_score(truth.numpy(), scores.numpy()))


def test_a_calibrated_head_predicts_the_same_classes() -> None:
    model = classifier()
    logits, labels = torch.randn(50, 3) * 5, torch.randint(3, (50,))
    before = model.output.weight.clone()
    temperature = model.calibrate(logits, labels)
    torch.testing.assert_close(model.output.weight * temperature, before)
    with pytest.raises(ValueError, match="labels from 3 to 3"):
        model.calibrate(logits, torch.full((50,), 3))
