"""sentence-transformers' `CrossEncoder` over bertnli's engine. It does not need sentence-transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertnli.checkpoint.hub import find_folder
from bertnli.checkpoint.sentence_transformers import cross_encoder_activation
from bertnli.data.arguments import strings
from bertnli.data.progress import Progress
from bertnli.inference.predict import run_batches
from bertnli.inference.session import InferenceSession, session_of
from bertnli.model import Model, ranking
from bertnli.text.encoded import EncodedTexts

_log = logging.getLogger("bertnli")


class CrossEncoder:
    """Scores of pairs, with the methods, arguments and results of sentence-transformers' `CrossEncoder`.

        model = bertnli.CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2", precision="int8")
        model.predict([("How many people live in Berlin?", "Berlin has 3.5 million inhabitants.")])
        model.rank("How many people live in Berlin?", documents, top_k=3, return_documents=True)

    model_name_or_path    a checkpoint of a classifier or regressor: a folder, or a name on the Hugging Face hub
    num_labels            outputs that the checkpoint must have (default: those that it has)
    max_length            tokens of a pair at most (default: the checkpoint's, else all positions)
    activation_fn         of the outputs [B, num_labels] (default: the checkpoint's, else a sigmoid of one output, none
                          of several)
    device                where the model runs (default: a GPU if there is one; the CPU for "int8")
    cache_folder          where downloads go
    precision             "fp32", "bf16" or "int8": see InferenceSession

    `model` is the bertnli.Model inside, to fine-tune and to save.

    Raises FileNotFoundError for a missing checkpoint, ValueError for one without an output layer or with another number
    of outputs than `num_labels`.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        folder = find_folder(model_name_or_path, cache_folder)
        self.model = Model.from_pretrained(folder, precision, device)
        head = self.model.head
        if head.task not in ("classification", "regression", "multilabel"):
            raise ValueError(f"{model_name_or_path} is of the task {head.task!r}; a CrossEncoder scores pairs")
        if num_labels not in (None, self.num_labels):
            raise ValueError(f"{model_name_or_path} has {self.num_labels} outputs, not num_labels={num_labels}")
        positions = head.config.max_len
        self.max_length = min(positions, max_length or head.settings.get("max_len", positions))
        self.activation_fn = activation_fn or cross_encoder_activation(folder, self.num_labels)

    @property
    def num_labels(self) -> int:
        return self.model.head.output.out_features

    def predict(
        self,
        inputs: Any,
        *,
        batch_size: int = 256,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Scores of pairs: an array [N], or [N, num_labels] of several outputs; of one pair its score or row.

        inputs               pairs, or one pair of two strings
        batch_size           pairs that are computed at a time (default: 256, since batches are not padded)
        show_progress_bar    (default: if the logger "bertnli" shows INFO)
        activation_fn        see the class
        apply_softmax        whether the scores of several outputs are probabilities
        convert_to_numpy     whether to give a numpy array (default: True), else a list of tensors
        convert_to_tensor    whether to give one tensor instead

        Raises ValueError for inputs that are not pairs.
        """
        if isinstance(inputs, np.ndarray):
            inputs = inputs.tolist()
        single = isinstance(inputs, list | tuple) and len(inputs) > 0 and isinstance(inputs[0], str)
        pairs = [inputs] if single else list(inputs)
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"inputs[{i}] must be a pair of two texts; found {pair!r:.60}")
        first, second = (strings([pair[side] for pair in pairs], "inputs") for side in (0, 1))
        tokenizer = self.model.tokenizer
        encoded = tokenizer.encode_pairs(first, second, self.max_length, "longest_first_hf")
        show = _log.isEnabledFor(logging.INFO) if show_progress_bar is None else show_progress_bar
        session = session_of(self.model.head, self.model.precision)
        outputs = run_with_progress(session, encoded, batch_size, "pairs", show)
        scores = scores_of(outputs, activation_fn or self.activation_fn, apply_softmax)
        return converted(scores if pairs else scores.new_zeros(0), single, convert_to_numpy, convert_to_tensor)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 256,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> list[dict[str, Any]]:
        """The documents by their scores with a query, best first: dicts of `corpus_id`, `score`, and with
        `return_documents` `text`.

        top_k    documents at most (default: all). For the other arguments see `predict`

        Raises ValueError for a model of several outputs.
        """
        if self.num_labels != 1:
            raise ValueError(f"rank needs a model of one output; this one has {self.num_labels}. Use predict")
        scores = self.predict(
            [(query, document) for document in documents],
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
        )
        found: list[dict[str, Any]] = [{"corpus_id": index, "score": score} for index, score in ranking(scores, top_k)]
        return [row | {"text": documents[row["corpus_id"]]} for row in found] if return_documents else found


# What sentence-transformers' own models share with the class above when they are accelerated.


def run_with_progress(
    session: InferenceSession, encoded: EncodedTexts, batch_size: int, unit: str, show: bool
) -> Tensor:
    """The session's outputs, float32 [N, columns] on the CPU."""
    with Progress(len(encoded), "Batches", unit, show) as progress:
        outputs = run_batches(session, encoded, batch_size, each=lambda _, batch: progress.update(len(batch)))
    return outputs.float().cpu()


def scores_of(outputs: Tensor, activation_fn: Callable[[Tensor], Tensor] | None, apply_softmax: bool | None) -> Tensor:
    """Scores [N, num_labels] of outputs, or [N] of one output."""
    scores = outputs if activation_fn is None else activation_fn(outputs)
    if outputs.shape[1] == 1 and scores.dim() > 1:
        scores = scores.squeeze(-1)
    return scores.softmax(1) if apply_softmax and scores.dim() > 1 else scores


def converted(results: Tensor, single: bool, to_numpy: bool, to_tensor: bool) -> Any:
    """The results as one array, one tensor or a list of tensors; of a single input the first of them."""
    found: Any = results if to_tensor else results.float().numpy() if to_numpy else list(results)
    return found[0] if single else found
