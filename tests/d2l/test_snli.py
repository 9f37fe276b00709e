"""D2L's reader, its dataset for other models, and predictions of one pair."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import d2l_oracle
from helpers.texts import RESERVED
from torch import Tensor, nn

from bertnli import BERTConfig, BERTModel, Vocab, d2l, evaluate, fit, predict, read_snli, save_pretrained
from bertnli.data.demo import write_demo_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_corpus(tmp_path_factory.mktemp("snli"), train=40, dev=0, test=10)


def test_lists_can_be_changed(folder: Path) -> None:
    premises, hypotheses, labels = d2l.read_snli(folder, is_train=True)
    expected = d2l_oracle.read_snli(folder / "snli_1.0_train.txt")
    assert (premises, hypotheses, labels) == expected == read_snli(folder)
    assert all(type(column) is list for column in (premises, hypotheses, labels))
    json.dumps(premises + hypotheses * 2)
    random.Random(0).shuffle(premises)
    premises.append("one more")


def test_dataset_of_the_attention_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertnli.d2l.snli.download_extract", lambda name: folder)
    train_iter, test_iter, vocab = d2l.load_data_snli(8, 12)
    train, test = (d2l_oracle.read_snli(folder / f"snli_1.0_{name}.txt") for name in ("train", "test"))
    lines = [text.split() for side in train[:2] for text in side]
    assert vocab.idx_to_token == Vocab(lines, min_freq=5, reserved_tokens=["<pad>"]).idx_to_token
    assert (len(train_iter), len(test_iter)) == (5, 2)
    (premises, hypotheses), labels = next(iter(test_iter))
    for found, texts in ((premises, test[0]), (hypotheses, test[1])):
        rows = [(vocab[text.split()] + [1] * 12)[:12] for text in texts[:8]]
        assert torch.equal(found, torch.tensor(rows))
    assert torch.equal(labels, torch.tensor(test[2][:8]))
    assert d2l.truncate_pad([1, 2, 3], 2, 0) == [1, 2]


class OwnClassifier(nn.Module):
    """The chapter's classifier."""

    def __init__(self, bert: BERTModel) -> None:
        super().__init__()
        self.encoder, self.hidden, self.output = bert.encoder, bert.hidden, nn.Linear(16, 3)

    def forward(self, inputs: Any) -> Tensor:
        return self.output(self.hidden(self.encoder(*inputs)[:, 0, :]))  # type: ignore[no-any-return]


class WordCounts(nn.Module):
    """A model of two tensors of ids: neutral for pairs of unequal length."""

    def forward(self, inputs: list[Tensor]) -> Tensor:
        first, second = (ids.shape[1] for ids in inputs)
        return torch.tensor([[float(first == second), 0.0, 0.5]])


def test_prediction_of_one_pair() -> None:
    vocab, found = Vocab(["a", "b", "c"], reserved_tokens=RESERVED), set()
    for seed, pair in enumerate([("a", "b c"), ("A b", "c c c c"), ("c c", "c"), ("b", "a a a a a")] * 2):
        torch.manual_seed(seed)
        bert = BERTModel(BERTConfig(len(vocab), num_hiddens=16, num_heads=2))
        own, ours = OwnClassifier(bert), d2l.BERTClassifier(bert)
        ours.load_state_dict(own.state_dict())
        words = [text.split() for text in pair]
        expected = predict(ours, vocab, *pair)[0].label
        assert d2l.predict_snli(own, vocab, *pair) == d2l.predict_snli(ours, vocab, *words) == expected
        found.add(expected)
    assert len(found) > 1
    assert d2l.predict_snli(WordCounts(), vocab, ["a"], ["b"]) == "entailment"
    assert d2l.predict_snli(WordCounts(), vocab, "a b", "b") == "neutral"


def test_the_chapters_own_classifier_is_told_what_to_do(tmp_path: Path) -> None:
    vocab = Vocab(["a"], reserved_tokens=RESERVED)
    own: Any = OwnClassifier(BERTModel(BERTConfig(len(vocab), num_hiddens=16, num_heads=2)))
    data = d2l.SNLIBERTDataset((["a"], ["a"], [0]), 8, vocab)
    for call in (
        lambda: predict(own, vocab, "a", "a"),
        lambda: save_pretrained(own, tmp_path, vocab),
        lambda: evaluate(own, data),
        lambda: fit(own, data),
    ):
        with pytest.raises(TypeError, match=r"found .*OwnClassifier\..* head = d2l.BERTClassifier\(bert\)"):
            call()
