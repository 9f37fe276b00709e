"""Punctuation apart from words, and characters as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    TextData,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    predict,
    read_pairs,
)
from bertnli.text.vocab import space_out, space_out_data


def test_spaces_around_punctuation() -> None:
    assert space_out("A man's dog isn't sleeping, they're up.").split() == [
        "A", "man", "'s", "dog", "is", "n't", "sleeping", ",", "they", "'re", "up", ".",
    ]  # fmt: skip
    tokens = "a t-shirt ( red ) , is n't it ?"
    assert space_out(tokens).split() == tokens.split()
    tokenizer = WordTokenizer.from_texts(["a man is n't sleeping , they 're up ."], 1)
    torch.manual_seed(0)
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=16, ffn_num_hiddens=16, num_heads=1, num_layers=1))
    model = BERTClassifier(bert)
    apart = ["a man is n't sleeping .", "they 're up , a man ."]
    assert predict(model, tokenizer, "A man isn't sleeping.", "They're up, a man.") == predict(model, tokenizer, *apart)
    with pytest.raises(TypeError, match="hypotheses must be a sequence of str, not one str"):
        predict(model, tokenizer, ["a"], "b")
    data = space_out_data(TextData.of("In the U.S. ... he isn't."), Vocab.of(["u.s.", "..."]))
    assert [text.split() for text in data.first] == [["In", "the", "U.S.", "...", "he", "is", "n't", "."]]


def test_characters_of_chinese(data_dir: Path) -> None:
    """Every character of its own training text is a token; nothing is unknown but what is rare."""
    data = read_pairs(data_dir / "ocnli" / "train.10k.json", "text")
    texts = [*data.first, *(data.second or ())]
    tokenizer = WordPieceTokenizer.of_characters(texts, 1)
    encoded = tokenizer.encode_texts(texts, 512)
    assert int((encoded.ids == tokenizer.unk_id).sum()) == 0
    assert tokenizer.tokenize("我们OK了") == ["我", "们", "o", "##k", "了"]
    rare = WordPieceTokenizer.of_characters(texts, 5)
    assert 0 < int((rare.encode_texts(texts, 512).ids == rare.unk_id).sum()) < 0.01 * len(encoded.ids)
