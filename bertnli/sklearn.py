"""scikit-learn's estimators over bertnli's models: for Pipeline, GridSearchCV, cross_val_score and the rest.

from bertnli.sklearn import TextClassifier

search = GridSearchCV(TextClassifier("bert-base-uncased", epochs=2), {"lr": [2e-5, 5e-5]}, cv=3)
search.fit(texts, labels).predict(["a fine film"])
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bertnli.checkpoint import from_pretrained
from bertnli.data.extras import from_extra
from bertnli.data.texts import TextData
from bertnli.model import Model
from bertnli.tasks.base import Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.multilabel import BERTMultiLabelClassifier
from bertnli.tasks.regression import BERTRegressor
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import space_out_data
from bertnli.training.options import TrainingOptions

with from_extra("sklearn", "bertnli.sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.validation import check_consistent_length, check_is_fitted


class _TextEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share. `model_` is the fitted bertnli.Model: it has `save_pretrained`.

    model           checkpoint that each `fit` begins with: a folder, or a name on the Hugging Face hub
    epochs, lr, batch_size    see TrainingOptions
    max_len         tokens of a text or pair at most
    precision       of predictions: "fp32", "bf16" or "int8" (CPU only)
    device          where it trains and predicts (default: a GPU if there is one; the CPU for "int8")
    random_state    seed of the new output layer and of the training; equal seeds give equal models
    training        further TrainingOptions by name
    progress        whether to show progress on standard error

    X is a sequence, array or Series of texts; for pairs a sequence of tuples, an array [N, 2] or a frame with two
    columns.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "bert-base-uncased",
        *,
        epochs: int = TrainingOptions.epochs,
        lr: float = TrainingOptions.lr,
        batch_size: int | None = TrainingOptions.batch_size,
        max_len: int = 128,
        precision: str = "fp32",
        device: torch.device | str | None = None,
        random_state: int = 0,
        training: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.max_len = max_len
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.training = training
        self.progress = progress

    def _fit(self, make_head: Any, X: Any, labels: list[Any], names: tuple[str, ...]) -> None:
        parts = _parts(X)
        check_consistent_length(parts[0], labels)
        bert, tokenizer = from_pretrained(self.model)
        with torch.random.fork_rng():
            torch.manual_seed(self.random_state)
            head: Head = make_head(bert)
        on_gpu = torch.cuda.is_available() and self.precision != "int8"
        self.model_ = Model(head, tokenizer, self.precision).to(self.device or ("cuda" if on_gpu else "cpu"))
        data = TextData(parts[0], parts[1] if len(parts) == 2 else None, labels, names)
        data = space_out_data(data) if isinstance(self.model_.tokenizer, WordTokenizer) else data
        options: dict[str, Any] = {
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "seed": self.random_state,
        }
        options |= self.training or {}
        self.model_.fit(data, max_len=self.max_len, progress=self.progress, **options)

    def _scores(self, X: Any) -> npt.NDArray[np.float32]:
        check_is_fitted(self, "model_")
        parts = _parts(X)
        return self.model_.score(*parts) if parts[0] else self.model_.score([])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string, tags.no_validation = False, True, True
        return tags


class TextClassifier(ClassifierMixin, _TextEstimator):  # type: ignore[misc]
    """Classes of texts or pairs. Labels are of any type that numpy sorts, or an indicator matrix [N, C] of zeros and
    ones, for which it is a multi-label classifier."""

    __doc__ += (_TextEstimator.__doc__ or "").partition("\n")[2]

    def fit(self, X: Any, y: Any) -> TextClassifier:
        """Fine-tune on texts and labels. Raises ValueError for X and y of different lengths, and for a single class."""
        y = np.asarray(y)
        if y.ndim == 2:
            self.classes_ = np.arange(y.shape[1])
            labels = y.astype(int).tolist()
        else:
            self.classes_, indices = np.unique(y, return_inverse=True)
            labels = indices.tolist()
        if len(self.classes_) < 2:
            raise ValueError(f"TextClassifier needs 2 classes or more; y has {len(self.classes_)}")
        names = tuple(map(str, self.classes_.tolist()))
        kind = BERTMultiLabelClassifier if y.ndim == 2 else BERTClassifier
        self._fit(lambda bert: kind(bert, label_names=names), X, labels, names)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """The probabilities of the classes, float32 [N, C], in the order of `classes_`."""
        return self._scores(X)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The class of each text, [N]; of a multi-label classifier the indicator matrix, int64 [N, C]."""
        probabilities = self.predict_proba(X)
        head = self.model_.head
        if isinstance(head, BERTMultiLabelClassifier):
            return (probabilities >= head.thresholds()).astype(np.int64)
        chosen: npt.NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return chosen


class TextRegressor(RegressorMixin, _TextEstimator):  # type: ignore[misc]
    """Real numbers of texts or pairs."""

    __doc__ += (_TextEstimator.__doc__ or "").partition("\n")[2]

    def fit(self, X: Any, y: Any) -> TextRegressor:
        """Fine-tune on texts and numbers, [N]. Raises ValueError for X and y of different lengths."""
        labels = np.asarray(y, dtype=np.float64)
        if labels.ndim != 1:
            raise ValueError(f"y must be [N]; found shape {list(labels.shape)}")
        self._fit(BERTRegressor, X, labels.tolist(), ())
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float32]:
        """The number of each text, float32 [N]."""
        return self._scores(X)


def _parts(X: Any) -> list[list[str]]:
    """[texts], or premises and hypotheses. Raises TypeError where a value is no text, ValueError for more columns."""
    if isinstance(X, str):
        raise TypeError("X must be a sequence of texts, not one str; put it into a list")
    if hasattr(X, "columns"):
        parts = [X[name].tolist() for name in X.columns]
    else:
        rows = X.tolist() if hasattr(X, "tolist") else list(X)
        parts = (
            [rows] if not rows or not isinstance(rows[0], list | tuple) else [list(p) for p in zip(*rows, strict=True)]
        )
    if len(parts) not in (1, 2):
        raise ValueError(f"X must have a text or a pair of texts in each row; found {len(parts)} columns")
    for part in parts:
        for i, text in enumerate(part):
            if not isinstance(text, str):
                raise TypeError(f"X[{i}] must be a text, or a pair of texts; found {text!r:.60}")
    return parts
