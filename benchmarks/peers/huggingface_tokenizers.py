"""`tokenizers` and the tokenizers of `transformers`."""

from __future__ import annotations

from functools import cache
from typing import Any

import tokenizers
import torch
import transformers
from common import minilm_folder
from text_problem import MAX_LEN


@cache
def tokenizer() -> Any:
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LEN)
    tokenizer.enable_padding(length=MAX_LEN)
    return tokenizer


@cache
def transformers_tokenizer() -> Any:
    return transformers.BertTokenizerFast.from_pretrained(minilm_folder())


def encode_batch_fast(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    encoded = tokenizer().encode_batch_fast(list(zip(premises, hypotheses, strict=True)))
    return (
        torch.tensor([e.ids for e in encoded]),
        torch.tensor([e.type_ids for e in encoded]),
        torch.tensor([e.attention_mask for e in encoded]).sum(1),
    )


def call_transformers(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    options = {"max_length": MAX_LEN, "truncation": "longest_first", "padding": "max_length", "return_tensors": "pt"}
    out = transformers_tokenizer()(premises, hypotheses, **options)
    return out["input_ids"], out["token_type_ids"], out["attention_mask"].sum(1)
