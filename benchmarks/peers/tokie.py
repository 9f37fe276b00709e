"""tokie, whose ragged ids of single texts become rows of pairs by numpy (its own pairs come one by one)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from common import minilm_folder
from text_problem import interleaved, rows_of_pairs

NAME = "tokie"
PRECISIONS = ("exact",)
REQUIRES = ("tokie",)
PAIRS = None  # as many as bertnli gets


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs that are short enough, padded to 128."""
    import tokie

    tokenizer = tokie.Tokenizer.from_json(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        ids, lengths = tokenizer.encode_batch_flat(interleaved((premises, hypotheses)), add_special_tokens=False)
        return rows_of_pairs(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    return encode
