"""The tokenizers of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import minilm_folder
from text_problem import FEW, MAX_LEN

NAME = "transformers"
PRECISIONS = ("exact",)
REQUIRES = ("transformers",)
PAIRS = FEW


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs, padded to 128."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    options = {"max_length": MAX_LEN, "truncation": "longest_first", "padding": "max_length", "return_tensors": "pt"}

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        out = tokenizer(premises, hypotheses, **options)
        return out["input_ids"], out["token_type_ids"], out["attention_mask"].sum(1)

    return encode
