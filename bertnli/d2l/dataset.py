"""D2L's downloads, tokens, pretrained model, and dataset of BERT inputs."""

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

from bertnli import checkpoint
from bertnli.data import download as hub
from bertnli.encoder.bert import BERTModel
from bertnli.text.encoded import index_array
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab

_FOLDER = os.path.join("..", "data")  # where D2L keeps its downloads


def download(name: str, folder: str = _FOLDER, sha1_hash: str | None = None) -> str:
    """`hub.download` into D2L's `../data`."""
    return hub.download(name, folder, sha1_hash)


def download_extract(name: str, folder: str | None = None) -> str:
    """`hub.download_extract` into D2L's `../data`."""
    return hub.download_extract(name, folder, into=_FOLDER)


def load_pretrained_model(*args: Any, **kwargs: Any) -> tuple[BERTModel, Vocab | Tokenizer]:
    """`bertnli.load_pretrained_model` with downloads in D2L's `../data`."""
    return checkpoint.load_pretrained_model(*args, **{"folder": _FOLDER, **kwargs})


def tokenize(lines: Iterable[str], token: str = "word") -> list[list[str]]:
    """Split lines into words (at white space) or characters."""
    if token == "word":
        return [line.split() for line in lines]
    if token == "char":
        return [list(line) for line in lines]
    raise ValueError(f'token must be "word" or "char"; found {token!r}')


def get_tokens_and_segments(tokens_a: list[str], tokens_b: list[str] | None = None) -> tuple[list[str], list[int]]:
    """`<cls> a <sep> b <sep>` and its segment ids, 0 for the first text and 1 for the second."""
    tokens = ["<cls>", *tokens_a, "<sep>"]
    segments = [0] * len(tokens)
    if tokens_b is not None:
        tokens += [*tokens_b, "<sep>"]
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments


def get_dataloader_workers() -> int:
    """0: a batch is one gather in C++, so worker processes only cost."""
    return 0


class _Item(tuple[Any, ...]):
    """One example of a batch, ((ids, segments, valid_len), label); its type selects `_collate`."""

    __slots__ = ()


class _Batch(Sequence[_Item]):
    """The examples of one batch, made when they are read: the default collate function gathers them in one call."""

    def __init__(self, dataset: SNLIBERTDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return _Batch(self.dataset, self.indices[i])
        return _Item(self.dataset[self.indices[i]])

    def __iter__(self) -> Iterator[_Item]:
        return (self[i] for i in range(len(self)))


def _collate(batch: Sequence[Any], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None) -> Any:
    """What default_collate gives for a list of D2L's items: [[ids, segments, valid_lens], labels]."""
    if isinstance(batch, _Batch):
        dataset, indices = batch.dataset, index_array(batch.indices)
        return [list(dataset.encoded.to_padded(dataset.max_len, indices)), dataset.labels[torch.from_numpy(indices)]]
    inputs, labels = zip(*batch, strict=True)  # a list of items, from the caller's own sampler or dataset
    return [[torch.stack(column) for column in zip(*inputs, strict=True)], torch.stack(labels)]


default_collate_fn_map[_Item] = _collate


class SNLIBERTDataset(Dataset[Any]):
    """D2L's dataset of BERT inputs, stored without padding.

    dataset    (premises, hypotheses, labels) of `read_snli`, or the path of a file in SNLI's layout
    max_len    tokens of an example, with `<cls>`, `<sep>` and padding
    vocab      a Vocab or a tokenizer

    Items are ((token_ids [max_len], segments [max_len], valid_len []), label []), all int64. `all_token_ids` and
    `all_segments` [N, max_len] are made at first use, then kept; `valid_lens` is [N]. A DataLoader makes each batch by
    one gather; a custom `collate_fn` gets a sequence whose items are made when they are read.
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
        """One example, or with a slice the tensors of several, as indexing D2L's tensors gives."""
        if isinstance(index, slice):
            indices = np.arange(len(self))[index]
            return self.encoded.to_padded(self.max_len, indices), self.labels[torch.from_numpy(indices)]
        i = int(index)
        i += len(self) if i < 0 else 0
        token_ids, segments, valid_lens = self.encoded.to_padded(self.max_len, np.array([i], np.int64))
        return (token_ids[0], segments[0], valid_lens[0]), self.labels[i]

    def __getitems__(self, indices: Sequence[int]) -> _Batch:
        return _Batch(self, indices)
