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
from bertnli.text.tokenizer import WordTokenizer
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


# ---- subclasses and assignments ----


class CutByRatio(SNLIBERTDataset):
    """D2L's exercise: cut both texts in proportion to their lengths."""

    def _truncate_pair_of_tokens(self, p_tokens: list[str], h_tokens: list[str]) -> None:
        total, budget = len(p_tokens) + len(h_tokens), self.max_len - 3
        if total > budget:
            kept = len(p_tokens) * budget // total
            del p_tokens[kept:], h_tokens[budget - kept :]


class AsBefore(SNLIBERTDataset):
    """Overrides a step without changing it."""

    def _mp_worker(self, premise_hypothesis_tokens: list[list[str]]) -> tuple[list[int], list[int], int]:
        return super()._mp_worker(premise_hypothesis_tokens)


class Reversed(SNLIBERTDataset):
    def _preprocess(self, all_premise_hypothesis_tokens: list[list[list[str]]]) -> Any:
        return super()._preprocess([pair[::-1] for pair in all_premise_hypothesis_tokens])


def random_data(n: int = 60) -> tuple[list[str], list[str], list[int]]:
    rng = random.Random(5)
    return (*random_pairs(rng, n), [rng.randrange(3) for _ in range(n)])


def tensors(dataset: SNLIBERTDataset) -> list[torch.Tensor]:
    return [dataset.all_token_ids, dataset.all_segments, dataset.valid_lens, dataset.labels]


def test_overridden_steps_are_honoured() -> None:
    first, second, labels = random_data()
    fast = SNLIBERTDataset((first, second, labels), 12, WORD_VOCAB)
    assert_same_tree(tensors(AsBefore((first, second, labels), 12, WORD_VOCAB)), tensors(fast))
    swapped = SNLIBERTDataset((second, first, labels), 12, WORD_VOCAB)
    assert_same_tree(tensors(Reversed((first, second, labels), 12, WORD_VOCAB)), tensors(swapped))
    ratio = CutByRatio((first, second, labels), 12, WORD_VOCAB)
    assert not torch.equal(ratio.all_token_ids, fast.all_token_ids)
    for i, (p, h) in enumerate(zip(first, second, strict=True)):
        words, others = p.lower().split(), h.lower().split()
        ratio._truncate_pair_of_tokens(words, others)
        ids = WORD_VOCAB[["<cls>", *words, "<sep>", *others, "<sep>"]]
        assert ratio.all_token_ids[i, : len(ids)].tolist() == ids
    assert_equal_encoded(AsBefore((first, second, labels), 12, WORD_VOCAB).encoded, fast.encoded)
    batch = next(iter(DataLoader(ratio, 16)))
    assert_same_tree(batch, [[t[:16] for t in tensors(ratio)[:3]], ratio.labels[:16]])
    assert len(AsBefore(([], [], []), 12, WORD_VOCAB)) == 0
    with pytest.raises(ValueError, match="vocab must be a Vocab"):
        AsBefore((["a"], ["b"], [0]), 8, WordPieceTokenizer([*SPECIAL, "a", "b"]))


def test_truncation_by_ratio() -> None:
    first, second, labels = random_data()
    dataset = SNLIBERTDataset((first, second, labels), 12, WORD_VOCAB, truncation="ratio")
    encoded = WordTokenizer(WORD_VOCAB).encode_pairs(first, second, 12, "ratio", labels=labels)
    assert_equal_encoded(dataset.encoded, encoded)


def test_tensors_can_be_assigned() -> None:
    dataset = SNLIBERTDataset(random_data(), 12, WORD_VOCAB)
    dataset.labels = dataset.labels % 2
    assert int(dataset.encoded.labels.max()) == 1  # type: ignore[union-attr]
    dataset.labels = [2] * 60
    assert dataset[3][1].item() == 2
    ids = dataset.all_token_ids.clone()
    ids[:, 1] = 7
    dataset.all_token_ids = ids
    assert dataset[5][0][0][1] == 7
    assert torch.equal(next(iter(DataLoader(dataset, 60)))[0][0], ids)
    assert torch.equal(dataset.encoded.to_padded()[0], ids)
    dataset.all_token_ids[0, 1] = 8  # in place
    assert dataset[0][0][0][1] == 8
    dataset.valid_lens = dataset.valid_lens - 1
    assert int(dataset.encoded.lengths.max()) == 11
    with pytest.raises(ValueError, match=r"expected a tensor of shape \[60, 12\]; found \[1, 12\]"):
        dataset.all_segments = torch.zeros(1, 12)
    dataset.all_segments = torch.arange(12).expand(60, 12) % 2
    with pytest.raises(ValueError, match="all_segments must be 0 for the first text"):
        _ = dataset.encoded.labels
