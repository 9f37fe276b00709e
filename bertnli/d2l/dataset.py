"""D2L's dataset of BERT inputs over encoded pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from bertnli.text.encoded import index_array
from bertnli.text.tokenizer import Tokenizer, WordTokenizer


class _Item(tuple[Any, ...]):
    """One example of a batch, ((ids, segments, valid_len), label): a tuple that names where it comes from."""

    __slots__ = ()


class _Rows(Sequence[_Item]):
    """The examples of one batch, not made yet: the stock collate function turns them into tensors by one gather."""

    def __init__(self, dataset: SNLIBERTDataset, rows: Sequence[int]) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return _Rows(self.dataset, self.rows[i])
        return _Item(self.dataset[self.rows[i]])

    def __iter__(self) -> Iterator[_Item]:
        return (self[i] for i in range(len(self)))


def _collate_rows(batch: Sequence[Any], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None) -> Any:
    """What default_collate gives for a list of D2L's items: [[ids, segments, valid_lens], labels]."""
    if isinstance(batch, _Rows):
        dataset, rows = batch.dataset, index_array(batch.rows)
        return [list(dataset.encoded.to_padded(dataset.max_len, rows)), dataset.labels[torch.from_numpy(rows)]]
    inputs, labels = zip(*batch, strict=True)  # items that someone put into a list of their own
    return [[torch.stack(column) for column in zip(*inputs, strict=True)], torch.stack(labels)]


default_collate_fn_map[_Item] = _collate_rows


class SNLIBERTDataset(Dataset[Any]):
    """D2L's dataset of BERT inputs, stored without padding.

    dataset: (premises, hypotheses, labels) of `read_snli`, or the path of such a file, which is read and encoded in one
    pass. vocab: a `Vocab`, or a tokenizer. Items are
    ((token_ids [max_len], segments [max_len], valid_len []), label []), all int64; `all_token_ids`, `all_segments` and
    `valid_lens` are the padded tensors of the whole, made (and kept) when first asked for. A DataLoader makes each
    batch by one gather; a `collate_fn` of one's own is handed a sequence of items that makes them when they are read.
    """

    def __init__(
        self,
        dataset: tuple[Iterable[str], Iterable[str], Sequence[int]] | str | os.PathLike[str],
        max_len: int,
        vocab: Any = None,
    ) -> None:
        if vocab is None:
            raise ValueError("SNLIBERTDataset needs vocab: the Vocab or the tokenizer that the BERT was trained with")
        tokenizer = vocab if isinstance(vocab, Tokenizer) else WordTokenizer(vocab)
        self.vocab = vocab
        self.max_len = max_len
        if isinstance(dataset, str | os.PathLike):
            self.encoded = tokenizer.encode_file(dataset, max_len)
        else:
            premises, hypotheses, labels = dataset
            self.encoded = tokenizer.encode_pairs(premises, hypotheses, max_len, labels=labels)
        print(f"read {len(self.encoded)} examples")

    @property
    def labels(self) -> Tensor:
        assert self.encoded.labels is not None
        return self.encoded.labels

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.encoded.to_padded(self.max_len)

    @property
    def all_token_ids(self) -> Tensor:
        return self._all[0]

    @property
    def all_segments(self) -> Tensor:
        return self._all[1]

    @property
    def valid_lens(self) -> Tensor:
        return self.encoded.lengths

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int | slice) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """One example, or with a slice the tensors of several, as indexing the book's tensors gives."""
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            return self.encoded.to_padded(self.max_len, rows), self.labels[torch.from_numpy(rows)]
        row = int(index)
        row += len(self) if row < 0 else 0
        token_ids, segments, valid_lens = self.encoded.to_padded(self.max_len, np.array([row], np.int64))
        return (token_ids[0], segments[0], valid_lens[0]), self.labels[row]

    def __getitems__(self, rows: Sequence[int]) -> _Rows:
        return _Rows(self, rows)
