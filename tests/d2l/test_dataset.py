"""SNLIBERTDataset: the tensors, items and batches of D2L's class."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import d2l_oracle
from helpers.texts import SPECIAL, WORD_VOCAB, WORDS, assert_equal_encoded, d2l_vocabulary, random_pairs, word_text
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data._utils.collate import default_collate

from bertnli.d2l.dataset import SNLIBERTDataset
from bertnli.data.snli import read_snli
from bertnli.text.wordpiece import WordPieceTokenizer


@pytest.mark.parametrize(("split", "max_len"), [("train", 128), ("dev", 24), ("test", 15)])
def test_dataset_equals_d2l_on_real_files(
    data_dir: Path, capsys: pytest.CaptureFixture[str], split: Literal["train", "dev", "test"], max_len: int
) -> None:
    data = read_snli(data_dir / "snli_1.0", split=split)
    vocab = d2l_vocabulary(*data[:2])
    dataset = SNLIBERTDataset(data, max_len, vocab)
    assert capsys.readouterr().out == f"read {len(data[2])} examples\n"
    path = data_dir / "snli_1.0" / f"snli_1.0_{split}.txt"
    premises, hypotheses, labels = d2l_oracle.read_snli(path)
    ids, segments, lens = d2l_oracle.encode_dataset(vocab, premises, hypotheses, max_len)
    assert torch.equal(dataset.all_token_ids, torch.tensor(ids))
    assert torch.equal(dataset.all_segments, torch.tensor(segments))
    assert torch.equal(dataset.valid_lens, torch.tensor(lens))
    assert torch.equal(dataset.labels, torch.tensor(labels))
    assert_equal_encoded(SNLIBERTDataset(path, max_len, vocab).encoded, dataset.encoded)
    assert (dataset.vocab, dataset.max_len, len(dataset)) == (vocab, max_len, len(labels))


def d2l_items(n: int = 70, max_len: int = 16) -> tuple[SNLIBERTDataset, list[Any]]:
    rng = random.Random(3)
    premises, hypotheses = random_pairs(rng, n)
    labels = [rng.randrange(3) for _ in range(n)]
    ids, segments, lens = map(torch.tensor, d2l_oracle.encode_dataset(WORD_VOCAB, premises, hypotheses, max_len))
    items = [((ids[i], segments[i], lens[i]), torch.tensor(labels[i])) for i in range(n)]
    return SNLIBERTDataset((premises, hypotheses, labels), max_len, WORD_VOCAB), items


def assert_same_tree(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_tree(x, y)


def test_items() -> None:
    dataset, items = d2l_items()
    for i, item in enumerate(items):
        assert_same_tree(dataset[i], item)
    assert_same_tree(dataset[-1], items[-1])
    for i in (70, -71):
        with pytest.raises(IndexError):
            dataset[i]
    with pytest.raises(ValueError, match="needs vocab"):
        SNLIBERTDataset(([], [], []), 16)


def test_dataset_with_each_kind_of_vocabulary() -> None:
    class Other:
        idx_to_token = WORD_VOCAB.idx_to_token
        token_to_idx = WORD_VOCAB.token_to_idx

    data = ([word_text(3)], [word_text(2)], [1])
    wanted = SNLIBERTDataset(data, 16, WORD_VOCAB).all_token_ids
    assert torch.equal(SNLIBERTDataset(data, 16, Other()).all_token_ids, wanted)
    assert torch.equal(SNLIBERTDataset(data, 16, WORDS).all_token_ids, wanted)
    pieces = SNLIBERTDataset((["a b"], ["b."], [2]), 8, WordPieceTokenizer([*SPECIAL, "a", "b", "."]))
    assert pieces.all_token_ids.tolist() == [[2, 5, 6, 3, 6, 7, 3, 0]]


@pytest.mark.parametrize("workers", [None, "fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # (of one processor)
def test_stock_loader_gives_the_books_batches(workers: str | None) -> None:
    dataset, items = d2l_items()
    options = {"num_workers": 2, "multiprocessing_context": workers} if workers else {}

    def batches(source: Any, **more: Any) -> list[Any]:
        sampler = RandomSampler(source, generator=torch.Generator().manual_seed(5))
        return list(DataLoader(source, batch_size=16, sampler=sampler, **more))

    gathered, collated = batches(dataset, **options), batches(items)
    assert len(gathered) == len(collated) == 5
    for a, b in zip(gathered, collated, strict=True):
        assert_same_tree(a, b)


def test_rows_of_a_batch_are_examples_too() -> None:
    dataset, items = d2l_items()
    rows = dataset.__getitems__([4, 2, 2])
    assert len(rows) == 3
    for row, i in zip(rows, [4, 2, 2], strict=True):
        assert_same_tree(tuple(row), items[i])
    assert_same_tree(default_collate(rows), default_collate([items[4], items[2], items[2]]))
    assert_same_tree(default_collate(list(rows)), default_collate([items[4], items[2], items[2]]))
    assert_same_tree(default_collate(rows[:2]), default_collate([items[4], items[2]]))
