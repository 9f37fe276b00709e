"""nanotoken, whose ragged ids become rows of pairs by numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from common import minilm_folder
from text_problem import interleaved, rows_of_pairs

NAME = "nanotoken"
PRECISIONS = ("exact",)
REQUIRES = ("nanotoken",)
PAIRS = None  # as many as bertnli gets


def build_ragged(threads: int) -> Callable[[list[str]], Any]:
    """Ids and offsets of single texts, without special tokens."""
    import nanotoken

    tokenizer = nanotoken.Tokenizer(str(minilm_folder() / "tokenizer.json"))
    return lambda texts: tokenizer.encode_batch(texts, add_special_tokens=False, parallel=threads > 1)


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs that are short enough, padded to 128."""
    encode_ragged = build_ragged(threads)

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        ragged = encode_ragged(interleaved((premises, hypotheses)))
        return rows_of_pairs(np.asarray(ragged.ids), np.asarray(ragged.offsets))

    return encode
