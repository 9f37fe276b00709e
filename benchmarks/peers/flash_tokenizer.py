"""flash-tokenizer, whose ids of single texts become rows of pairs in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from common import minilm_folder
from text_problem import FEW, interleaved, rows_of_pairs

NAME = "flash-tokenizer"
PRECISIONS = ("exact",)
REQUIRES = ("flash-tokenizer",)
PAIRS = FEW


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs that are short enough, padded to 128."""
    import flash_tokenizer

    tokenizer = flash_tokenizer.BertTokenizerFlash(str(minilm_folder() / "vocab.txt"), do_lower_case=True)

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        mixed = interleaved((premises, hypotheses))
        rows = tokenizer(mixed, padding="longest", max_length=130, do_multiprocess=threads > 1)["input_ids"]
        texts = [[i for i in row if i][1:-1] for row in rows]  # without [PAD], [CLS] and [SEP]
        offsets = np.cumsum([0, *map(len, texts)])
        return rows_of_pairs(np.concatenate(texts), offsets)

    return encode
