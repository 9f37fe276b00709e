"""The estimators of bertnli.sklearn within scikit-learn's own tools."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.tiny_tasks import PIECES, teacher, texts
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, f1_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from bertnli import Model, WordPieceTokenizer, save_pretrained
from bertnli.sklearn import TextClassifier, TextRegressor

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_pretrained(teacher(dropout=0.0), folder, WordPieceTokenizer(PIECES))
    return folder


def examples(n: int = 120) -> tuple[list[str], list[str]]:
    """Texts, and the first colour in each, or none."""
    first = list(texts(n).first)
    return first, [next((word for word in text.split() if word in COLOURS), "none") for text in first]


def classifier(checkpoint: Path, **options: Any) -> TextClassifier:
    return TextClassifier(checkpoint, **{"epochs": 6, "lr": 3e-3, "batch_size": 16, "max_len": 20, **options})


def test_fit_predict_score(checkpoint: Path, tmp_path: Path) -> None:
    X, y = examples()
    estimator = classifier(checkpoint)
    with pytest.raises(NotFittedError):
        estimator.predict(X)
    assert estimator.fit(X, y) is estimator
    assert estimator.classes_.tolist() == sorted(set(y))
    probabilities, predicted = estimator.predict_proba(X), estimator.predict(X)
    assert probabilities.shape == (120, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert predicted.tolist() == [estimator.classes_[i] for i in probabilities.argmax(1)]
    assert estimator.score(X, y) == accuracy_score(y, predicted) > 0.8
    again = clone(estimator)
    assert again.get_params() == estimator.get_params()
    for data in (np.array(X), pd.Series(X, index=range(120, 0, -1)), tuple(X)):
        assert np.array_equal(clone(estimator).fit(data, np.array(y)).predict_proba(data), probabilities)
    assert not np.array_equal(clone(estimator).set_params(random_state=1).fit(X, y).predict_proba(X), probabilities)
    loaded = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(loaded.predict_proba(X), probabilities)
    assert estimator.predict_proba([]).shape == (0, 4)
    estimator.model_.save_pretrained(tmp_path)
    assert [p.label for p in Model.from_pretrained(tmp_path).predict(X)] == predicted.tolist()


def test_labels_of_other_types_and_pairs(checkpoint: Path) -> None:
    data = texts(200)
    pairs, y = list(zip(data.first, data.second or (), strict=True)), [2 * label + 5 for label in data.labels or ()]
    estimator = classifier(checkpoint, epochs=1).fit(pairs, y)
    assert estimator.classes_.tolist() == [5, 7]
    assert set(estimator.predict(pairs)) <= {5, 7}
    frame = pd.DataFrame({"a": data.first, "b": list(data.second or ())}, index=range(200, 0, -1))
    for other in (frame, np.array(pairs), [list(pair) for pair in pairs]):
        assert np.array_equal(estimator.predict_proba(other), estimator.predict_proba(pairs))


def test_search_cross_validation_and_pipelines(checkpoint: Path) -> None:
    X, y = examples(60)
    lower = FunctionTransformer(lambda some: [text.lower() for text in some])
    pipeline = Pipeline([("lower", lower), ("bert", classifier(checkpoint, epochs=1))])
    search = GridSearchCV(pipeline, {"bert__lr": [0.0, 3e-3]}, cv=2, error_score="raise")
    search.fit([text.upper() for text in X], y)
    assert set(search.best_params_) == {"bert__lr"}
    assert search.predict(X).shape == (60,)
    scores = cross_val_score(classifier(checkpoint, epochs=1), np.array(X), y, cv=3, scoring="f1_macro")
    assert scores.shape == (3,)


def test_regression(checkpoint: Path) -> None:
    X = list(texts(150).first)
    y = [0.5 * sum(word in COLOURS for word in text.split()) for text in X]
    estimator = TextRegressor(checkpoint, epochs=8, lr=3e-3, batch_size=16).fit(X, y)
    predicted = estimator.predict(X)
    assert estimator.score(X, y) == pytest.approx(r2_score(y, predicted))
    assert estimator.score(X, y) > 0.5
    with pytest.raises(ValueError, match=r"y must be \[N\]; found shape \[150, 1\]"):
        estimator.fit(X, [[value] for value in y])


def test_several_labels(checkpoint: Path) -> None:
    X = list(texts(200).first)
    y = np.array([[int(name in text.split()) for name in COLOURS] for text in X])
    estimator = classifier(checkpoint, epochs=8).fit(X, y)
    assert estimator.predict(X).shape == (200, 3)
    assert f1_score(y, estimator.predict(X), average="micro") > 0.8
    assert 0 <= estimator.score(X, y) <= 1


@pytest.mark.parametrize(
    "check",
    [
        "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_parameters_default_constructible",
        "check_mixin_order",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
    ],
)
@pytest.mark.parametrize("kind", [TextClassifier, TextRegressor])
def test_checks_of_scikit_learn_that_need_no_numbers(check: str, kind: Any) -> None:
    getattr(estimator_checks, check)(kind.__name__, kind())


def test_what_does_not_fit(checkpoint: Path) -> None:
    estimator = classifier(checkpoint)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (["a", "b", "c"], ["x", "y"], ValueError, "inconsistent numbers of samples"),
        (["a", "b"], ["x", "x"], ValueError, "TextClassifier needs 2 classes or more; y has 1"),
        (["a", 3], ["x", "y"], TypeError, r"X\[1\] must be a text, or a pair of texts; found 3"),
        ("ab", ["x", "y"], TypeError, "X must be a sequence of texts, not one str"),
        ([("a", "b", "c")] * 2, ["x", "y"], ValueError, "a text or a pair of texts in each row; found 3 columns"),
    ]
    for X, y, kind, message in cases:
        with pytest.raises(kind, match=message):
            estimator.fit(X, y)


def test_the_error_without_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None\nimport bertnli.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1].startswith("ImportError: bertnli.sklearn needs sklearn")
    assert "pip install 'bertnli[sklearn]'" in run.stderr
