"""Hugging Face's `tokenizers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import minilm_folder
from text_problem import FEW, MAX_LEN

NAME = "tokenizers"
PRECISIONS = ("exact",)
REQUIRES = ("tokenizers",)
PAIRS = FEW


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs, padded to 128."""
    import tokenizers
    import torch

    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LEN)
    tokenizer.enable_padding(length=MAX_LEN)

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        encoded = tokenizer.encode_batch_fast(list(zip(premises, hypotheses, strict=True)))
        return (
            torch.tensor([e.ids for e in encoded]),
            torch.tensor([e.type_ids for e in encoded]),
            torch.tensor([e.attention_mask for e in encoded]).sum(1),
        )

    return encode


def build_texts() -> Callable[[list[str]], list[list[int]]]:
    """Ids of single texts, neither cut nor padded."""
    import tokenizers

    bare = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    bare.no_truncation()  # the file asks for 128 tokens, no more and no fewer
    bare.no_padding()
    return lambda texts: [e.ids for e in bare.encode_batch_fast(texts)]
