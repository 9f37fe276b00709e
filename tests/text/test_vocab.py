"""D2L's Vocab."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bertnli.text.vocab import Vocab


def test_vocab() -> None:
    vocab = Vocab([["b", "a", "b"], ["c", "a", "rare"]], min_freq=1, reserved_tokens=["<pad>", "<cls>", "<sep>"])
    assert vocab.idx_to_token == ["<unk>", "<pad>", "<cls>", "<sep>", "b", "a", "c", "rare"]
    assert Vocab(["b", "a", "b"], min_freq=2).idx_to_token == ["<unk>", "b"]
    assert vocab.token_freqs == [("b", 2), ("a", 2), ("c", 1), ("rare", 1)]
    assert (vocab["a"], vocab[["a", "z", ["b"]]], vocab[("c",)], len(vocab), vocab.unk) == (5, [5, 0, [4]], [6], 8, 0)
    assert (vocab.to_tokens(4), vocab.to_tokens([4]), vocab.to_tokens((4, 5))) == ("b", ["b"], ["b", "a"])
    assert (vocab.to_tokens(torch.tensor(4)), vocab.to_tokens(torch.tensor([4, 5]))) == ("b", ["b", "a"])
    empty = Vocab()
    assert (empty.idx_to_token, empty["x"]) == (["<unk>"], 0)
    empty.idx_to_token = ["<pad>", "<unk>"]
    empty.token_to_idx = {"<pad>": 0, "<unk>": 1}
    assert (empty.unk, empty["x"]) == (1, 1)
    assert pickle.loads(pickle.dumps(vocab)).__dict__ == vocab.__dict__


def test_vocab_files(tmp_path: Path) -> None:
    vocab = Vocab(["é", "中", '"', "\u2028"], reserved_tokens=["<pad>"])
    vocab.save(tmp_path / "vocab.json")
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocab.idx_to_token
    assert Vocab.from_json(tmp_path / "vocab.json").token_to_idx == vocab.token_to_idx
    for text in ('{"a": 1}', '["a", 1]', "["):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"bad\.json(: expected a JSON list of tokens| is not JSON)"):
            Vocab.from_json(tmp_path / "bad.json")


def test_tokens_that_are_tuples() -> None:
    vocab: Any = Vocab([("a", "b"), ("b", "c"), ("a", "b")])
    assert vocab.token_freqs == [(("a", "b"), 2), (("b", "c"), 1)]
    assert vocab.idx_to_token == ["<unk>", ("a", "b"), ("b", "c")]
    assert (vocab["a", "b"], vocab[[("b", "c"), ("x", "y")]]) == (1, [2, [0, 0]])


def test_repeated_reserved_tokens() -> None:
    vocab = Vocab(["a", "b"], reserved_tokens=["<pad>", "<pad>", "<unk>"])
    assert vocab.to_tokens(vocab[["<pad>", "<unk>", "a", "b"]]) == ["<pad>", "<unk>", "a", "b"]
    assert len(vocab) == len(vocab.idx_to_token)
