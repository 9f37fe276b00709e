"""D2L's pretraining chapters against D2L's algorithm, on a small folder in WikiText-2's layout."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import d2l_oracle
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bertnli import d2l

WORDS = [*(f"word{i}" for i in range(30)), "The", "<unk>", "@-@"]


def write_wiki(folder: Path, paragraphs: int = 40) -> None:
    """Lines of WikiText-2: headings, blank lines, paragraphs of one sentence and of several."""
    rng, lines = random.Random(0), [" \n", " = Heading = \n"]
    for i in range(paragraphs):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(1 + i % 5)]
        lines.append(f" {' . '.join(sentences)} . \n")
    (folder / "wikitext-2").mkdir()
    (folder / "wikitext-2" / "wiki.train.tokens").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def wiki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked folder, where D2L's notebooks expect it."""
    for name in ("data", "notebook"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebook")
    write_wiki(tmp_path / "data")
    return tmp_path / "data" / "wikitext-2"


def small_bert(vocab_size: int) -> d2l.BERTModel:
    torch.manual_seed(0)
    return d2l.BERTModel(vocab_size, 16, 32, 2, 2, 0.0, max_len=64).double()


def double(batch: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in batch]


def test_examples_are_d2ls_for_equal_seeds(wiki: Path) -> None:
    for max_len in (32, 16):
        random.seed(3)
        paragraphs = d2l._read_wiki(wiki)
        assert not any(re.search(r"[A-Z]", sentence) for paragraph in paragraphs for sentence in paragraph)
        state = random.getstate()
        dataset = d2l._WikiTextDataset(paragraphs, max_len)
        random.setstate(state)
        wanted = d2l_oracle.wiki_examples(paragraphs, dataset.vocab, max_len)
        assert len(dataset) == len(wanted[0]) > 20
        for found, column in zip(dataset[:], wanted, strict=True):
            assert torch.equal(found, torch.tensor(column))
        assert dataset.valid_lens.dtype == torch.float32
        assert len(dataset[0]) == 7


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_and_gradients_are_d2ls(wiki: Path, reduction: str) -> None:
    random.seed(1)
    dataset = d2l._WikiTextDataset(d2l._read_wiki(wiki), 32)
    batch = double(list(dataset[:24]))
    size = len(dataset.vocab)
    net, twin = small_bert(size), small_bert(size)
    loss = nn.CrossEntropyLoss() if reduction == "mean" else nn.CrossEntropyLoss(label_smoothing=0.1)
    found = d2l._get_batch_loss_bert(net, loss, size, *batch)
    wanted = d2l_oracle.pretraining_losses(twin, loss, size, *batch)
    for a, b in zip(found, (*wanted, sum(wanted)), strict=True):
        assert a.item() == pytest.approx(b.item(), abs=1e-12)
    found[2].backward()
    sum(wanted).backward()
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_only_distinct_positions_are_projected(wiki: Path) -> None:
    random.seed(1)
    dataset = d2l._WikiTextDataset(d2l._read_wiki(wiki), 32)
    net, rows = small_bert(len(dataset.vocab)).float(), []
    assert net.mlm is not None
    net.mlm.mlp[3].register_forward_hook(lambda *call: rows.append(len(call[2])))
    batch = dataset[:24]
    d2l._get_batch_loss_bert(net, nn.CrossEntropyLoss(), len(dataset.vocab), *batch)
    weights = batch[4]
    assert rows == [int(weights.sum()) + int((weights.min(1).values == 0).sum())]
    assert rows[0] < weights.numel()


def test_training_is_d2ls(wiki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(2)
    train_iter, vocab = d2l.load_data_wiki(16, 32)
    batches = [double(batch) for batch in DataLoader(train_iter.dataset, 16)]
    net, twin = small_bert(len(vocab)), small_bert(len(vocab))
    steps = len(batches) + 3
    wanted = d2l_oracle.train_bert(batches, twin, nn.CrossEntropyLoss(), len(vocab), steps)
    capsys.readouterr()
    d2l.train_bert(batches, net, nn.CrossEntropyLoss(), len(vocab), [torch.device("cpu")], steps)
    printed = capsys.readouterr().out.splitlines()
    mlm, nsp = (sum(pair[i] for pair in wanted) / steps for i in (0, 1))
    assert printed[0] == f"MLM loss {mlm:.3f}, NSP loss {nsp:.3f}"
    assert re.fullmatch(r"[\d.]+ sentence pairs/sec on \[device\(type='cpu'\)\]", printed[1])
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8, msg=name)
    with pytest.raises(ValueError, match="no batches"):
        d2l.train_bert([], net, nn.CrossEntropyLoss(), len(vocab), None, 1)


def test_encodings_of_words(wiki: Path) -> None:
    random.seed(2)
    _, vocab = d2l.load_data_wiki(16, 32)
    net = small_bert(len(vocab)).eval()
    one, pair = ["word1", "word2"], ["word3", "nowhere"]
    assert d2l.get_bert_encoding(net, one, vocab=vocab).shape == (1, 4, 16)
    tokens, segments = d2l.get_tokens_and_segments(one, pair)
    inputs: list[Any] = [torch.tensor([vocab[tokens]]), torch.tensor([segments]), torch.tensor([len(tokens)])]
    assert torch.equal(d2l.get_bert_encoding(net, one, pair, vocab), net(*inputs)[0])
    with pytest.raises(ValueError, match="needs the model's Vocab"):
        d2l.get_bert_encoding(net, one)
