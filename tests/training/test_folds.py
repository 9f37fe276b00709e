"""Cross-validation, with scikit-learn's folds as the reference."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_tasks import PIECES, TASKS, teacher, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold
from torch.utils.data import Subset

from bertnli import Head, WordPieceTokenizer, cross_validate, evaluate, fit
from bertnli.training.folds import fold_indices

TOKENIZER = WordPieceTokenizer(PIECES)


@settings(deadline=None, max_examples=100)
@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=40), folds=st.integers(2, 4), seed=st.integers(0, 9))
def test_folds_have_the_sizes_of_scikit_learns(labels: list[int], folds: int, seed: int) -> None:
    count = len(labels)
    found = fold_indices(count, folds, seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(count))
    assert [len(part) for part in found] == [len(test) for _, test in KFold(folds).split(labels)]
    if np.bincount(labels).max() < folds:
        return  # scikit-learn refuses
    found = fold_indices(count, folds, seed, labels)
    assert sorted(np.concatenate(found).tolist()) == list(range(count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes
        theirs = [test for _, test in StratifiedKFold(folds).split(labels, labels)]
    for own, test in zip(found, theirs, strict=True):
        assert (
            np.bincount(np.take(labels, own), minlength=4).tolist()
            == np.bincount(np.take(labels, test), minlength=4).tolist()
        )


def test_folds_depend_on_the_seed_alone() -> None:
    labels = [i % 3 for i in range(50)]
    folds = [[part.tolist() for part in fold_indices(50, 5, seed, labels)] for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]
    for wrong in (1, 51):
        with pytest.raises(ValueError, match=r"folds must be at (least 2|most the number of examples, 50)"):
            fold_indices(50, wrong, 0)


@pytest.mark.parametrize("max_len", [32, 6])
@pytest.mark.parametrize("task", ["classification", "regression", "tagging", "windows"])
def test_each_fold_is_measured_by_a_model_of_the_others(task: str, max_len: int) -> None:
    """Also where an example has several sequences, as in 6 tokens a sentence of a tagger has."""

    def new() -> Head:
        head = teacher("classification" if task == "windows" else task)
        head.settings |= {"max_len": max_len} | ({"windows": "mean"} if task == "windows" else {})
        return head

    model, data = new(), TASKS["classification" if task == "windows" else task][0](30)
    before = copy.deepcopy(model.state_dict())
    options: dict[str, Any] = dict(epochs=1, lr=1e-3, seed=4, progress=False)
    found = cross_validate(model, model.encode(TOKENIZER, data), folds=3, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    labels = data.labels if model.task == "classification" else None
    for figures, test in zip(found.figures, fold_indices(30, 3, 4, labels), strict=True):
        own, rest = new(), [i for i in range(30) if i not in test]
        fit(own, own.encode(TOKENIZER, data[rest]), **options)
        wanted = evaluate(own, own.encode(TOKENIZER, data[test.tolist()]))
        assert figures == {name: wanted[name] for name in figures}
    name = model.metric
    values = [figures[name] for figures in found.figures]
    assert found.mean[name] == pytest.approx(np.mean(values))
    assert found.deviation[name] == pytest.approx(np.std(values, ddof=1))
    assert found._repr_html_().count("<tr>") == 1 + 3 + 2
    assert f"{found.mean[name]:.4f} ±" in repr(found)


def test_dev_data_choose_the_weights() -> None:
    model = teacher()
    data, dev = (model.encode(TOKENIZER, texts(n, seed)) for n, seed in ((30, 0), (20, 1)))
    options: dict[str, Any] = dict(folds=2, epochs=3, lr=3e-3, progress=False)
    found = cross_validate(model, data, **options)
    assert cross_validate(model, data, dev, **options) != found
    assert cross_validate(model, Subset(data, range(30)), **options) == found
    with pytest.raises(ValueError, match="several folds"):
        cross_validate(qa := teacher("qa"), qa.encode(TOKENIZER, TASKS["qa"][0](9)), folds=3)
