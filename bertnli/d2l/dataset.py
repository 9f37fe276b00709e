"""D2L's downloads, tokens, pretrained model, and dataset of BERT inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from bertnli import checkpoint
from bertnli.data import download as hub
from bertnli.data.snli import read_pairs
from bertnli.encoder.bert import BERTModel
from bertnli.text.encoded import EncodedTexts, LazyItems, index_array, labels_tensor
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import Vocab

_FOLDER = os.path.join("..", "data")  # where D2L keeps its downloads


def download(
    name: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    sha1_hash: str | None = None,
    *,
    url: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> str:
    """`hub.download` into D2L's `../data`.

    The English edition calls the first two arguments `url` and `folder`, the Chinese one `name` and `cache_dir`.
    """
    source = name if name is not None else url
    if source is None or (name is not None and url is not None):
        raise TypeError("download needs one of name and url")
    if folder is not None and cache_dir is not None:
        raise TypeError("folder and cache_dir are names of the same argument; give one of them")
    into = folder if folder is not None else cache_dir if cache_dir is not None else _FOLDER
    return hub.download(source, into, sha1_hash)


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


class _Batch(LazyItems):
    """The examples of one batch, which the default collate function gathers in one call."""

    def __getitem__(self, i: Any) -> Any:
        found = super().__getitem__(i)
        return found if isinstance(i, slice) else _Item(found)


def _collate(batch: Sequence[Any], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None) -> Any:
    """What default_collate gives for a list of D2L's items: [[ids, segments, valid_lens], labels]."""
    if isinstance(batch, _Batch):
        dataset, indices = batch.dataset, index_array(batch.indices)
        return [list(dataset.padded(indices)), dataset.labels[torch.from_numpy(indices)]]
    inputs, labels = zip(*batch, strict=True)  # a list of items, from the caller's own sampler or dataset
    return [[torch.stack(column) for column in zip(*inputs, strict=True)], torch.stack(labels)]


default_collate_fn_map[_Item] = _collate
_STEPS = ("_preprocess", "_mp_worker", "_truncate_pair_of_tokens")


def _column(i: int) -> Any:
    """The property of one of SNLIBERTDataset's three tensors of inputs."""

    def all_three(dataset: SNLIBERTDataset) -> list[Tensor]:
        if dataset._padded is None:
            dataset._padded = list(dataset.encoded.to_padded(dataset.max_len))
        return dataset._padded

    def read(dataset: SNLIBERTDataset) -> Tensor:
        return dataset.encoded.lengths if i == 2 and dataset._padded is None else all_three(dataset)[i]

    def write(dataset: SNLIBERTDataset, value: Tensor) -> None:
        column = all_three(dataset)
        if value.shape != column[i].shape:
            raise ValueError(f"expected a tensor of shape {list(column[i].shape)}; found {list(value.shape)}")
        column[i] = value.long()

    return property(read, write)


class SNLIBERTDataset(Dataset[Any]):
    """D2L's dataset of BERT inputs, stored without padding.

    dataset     (premises, hypotheses, labels) of `read_snli`, or the path of a file in SNLI's layout
    max_len     tokens of an example, with `<cls>`, `<sep>` and padding
    vocab       a Vocab or a tokenizer
    truncation  how a pair that is too long is cut: see `Tokenizer.encode_pairs`

    Items are ((token_ids [max_len], segments [max_len], valid_len []), label []), all int64. `all_token_ids` and
    `all_segments` [N, max_len] are made at first use, then kept; `valid_lens` and `labels` are [N]. All four can be
    assigned. `encoded` has the same examples for `fit` and `evaluate`. A DataLoader makes each batch by one gather; a
    custom `collate_fn` gets a sequence whose items are made when they are read.

    A subclass may override D2L's `_preprocess`, `_mp_worker` and `_truncate_pair_of_tokens`. Then examples are made one
    by one in Python, which takes about a hundred times as long.
    """

    def __init__(
        self,
        dataset: tuple[Iterable[str], Iterable[str], Sequence[int]] | str | os.PathLike[str],
        max_len: int,
        vocab: Any = None,
        truncation: Truncation = "longest_first",
    ) -> None:
        if vocab is None:
            raise ValueError("SNLIBERTDataset needs vocab: the Vocab or the tokenizer that the BERT was trained with")
        tokenizer = vocab if isinstance(vocab, Tokenizer) else WordTokenizer(vocab)
        self.vocab = vocab
        self.max_len = max_len
        self._pad_id = tokenizer.pad_id
        self._encoded: EncodedTexts | None = None
        self._padded: list[Tensor] | None = None  # [all_token_ids, all_segments, valid_lens]
        if any(getattr(type(self), name) is not getattr(SNLIBERTDataset, name) for name in _STEPS):
            self._padded, self._labels = self._by_overridden_steps(dataset, tokenizer)
        else:
            if isinstance(dataset, str | os.PathLike):
                self._encoded = tokenizer.encode_file(dataset, max_len, truncation)
            else:
                premises, hypotheses, labels = dataset
                self._encoded = tokenizer.encode_pairs(premises, hypotheses, max_len, truncation, labels=labels)
            self._labels = cast(Tensor, self._encoded.labels)
        print(f"read {len(self)} examples")

    # ---- D2L's steps, for subclasses ----

    def _by_overridden_steps(self, dataset: Any, tokenizer: Tokenizer) -> tuple[list[Tensor], Tensor]:
        if not isinstance(tokenizer, WordTokenizer):
            raise ValueError(f"{', '.join(_STEPS)} work on D2L's words: vocab must be a Vocab when one is overridden")
        if isinstance(dataset, str | os.PathLike):
            data = read_pairs(dataset)
            assert data.second is not None
            dataset = data.first, data.second, data.labels
        sides = [tokenize([text.lower() for text in side]) for side in dataset[:2]]
        pairs = [[premise, hypothesis] for premise, hypothesis in zip(*sides, strict=True)]
        padded = list(self._preprocess(pairs))
        return padded, cast(Tensor, labels_tensor(dataset[2], len(padded[0])))

    def _preprocess(self, all_premise_hypothesis_tokens: list[list[list[str]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of word lists to the tensors all_token_ids, all_segments and valid_lens."""
        rows = [self._mp_worker(pair) for pair in all_premise_hypothesis_tokens]
        ids, segments, valid_lens = zip(*rows, strict=True) if rows else ([], [], [])
        shape = (len(rows), self.max_len)
        return torch.tensor(ids).view(shape), torch.tensor(segments).view(shape), torch.tensor(valid_lens)

    def _mp_worker(self, premise_hypothesis_tokens: list[list[str]]) -> tuple[list[int], list[int], int]:
        """One pair to its ids and segments, padded to max_len, and its length. (In D2L's code a worker process runs
        it.)"""
        premise, hypothesis = premise_hypothesis_tokens
        self._truncate_pair_of_tokens(premise, hypothesis)
        tokens, segments = get_tokens_and_segments(premise, hypothesis)
        padding = self.max_len - len(tokens)
        ids = [*self.vocab[tokens], *[self._pad_id] * padding]
        return ids, segments + [0] * padding, len(tokens)

    def _truncate_pair_of_tokens(self, p_tokens: list[str], h_tokens: list[str]) -> None:
        """Shorten both lists in place until they fit with `<cls>` and two `<sep>`."""
        while len(p_tokens) + len(h_tokens) > self.max_len - 3:
            (p_tokens if len(p_tokens) > len(h_tokens) else h_tokens).pop()

    # ---- tensors ----

    @property
    def encoded(self) -> EncodedTexts:
        """The examples without padding. Raises ValueError for segments that are not D2L's."""
        encoded = self._encoded
        if self._padded is not None:
            token_ids, segments, valid_lens = self._padded
            position = torch.arange(token_ids.shape[1])
            valid = position < valid_lens[:, None]
            first_lens = (valid & (segments == 0)).sum(1)
            if bool((valid & (segments != (position >= first_lens[:, None]))).any()):
                raise ValueError("all_segments must be 0 for the first text's tokens and 1 for the second's")
            offsets = torch.zeros(len(valid_lens) + 1, dtype=torch.int64)
            torch.cumsum(valid_lens, 0, out=offsets[1:])
            ids, first_lens = token_ids[valid].to(torch.int32), first_lens.to(torch.int32)
            encoded = EncodedTexts(ids, offsets, first_lens, pad_id=self._pad_id, max_len=self.max_len)
        assert encoded is not None
        encoded.labels = self._labels
        return encoded

    @property
    def labels(self) -> Tensor:
        return self._labels

    @labels.setter
    def labels(self, labels: Sequence[Any] | Tensor) -> None:
        self._labels = cast(Tensor, labels_tensor(labels, len(self)))

    all_token_ids, all_segments, valid_lens = map(_column, range(3))

    def padded(self, index: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors of some examples."""
        if self._padded is None:
            return cast(EncodedTexts, self._encoded).to_padded(self.max_len, index)
        rows = torch.from_numpy(index)
        return self._padded[0][rows], self._padded[1][rows], self._padded[2][rows]

    def __len__(self) -> int:
        return len(self.valid_lens)

    def __getitem__(self, index: int | slice) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """One example, or with a slice the tensors of several, as indexing D2L's tensors gives."""
        if isinstance(index, slice):
            indices = np.arange(len(self))[index]
            return self.padded(indices), self.labels[torch.from_numpy(indices)]
        i = int(index)
        i += len(self) if i < 0 else 0
        token_ids, segments, valid_lens = self.padded(np.array([i], np.int64))
        return (token_ids[0], segments[0], valid_lens[0]), self.labels[i]

    def __getitems__(self, indices: Sequence[int]) -> _Batch:
        return _Batch(self, indices)
