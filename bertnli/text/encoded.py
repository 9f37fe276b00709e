"""Encoded texts: a ragged store of token ids, and batches of its sequences."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Subset
from torch.utils.data._utils.collate import default_collate_fn_map

from bertnli import _text
from bertnli.data.arguments import integer, items, path_of
from bertnli.data.columns import as_list
from bertnli.data.files import atomic_path, writing
from bertnli.data.tensors import read_tensors, write_tensors
from bertnli.text.batch import PackedBatch, ragged_index

_FORMAT = "bertnli.EncodedTexts.1"
Index = Sequence[int] | Tensor | range | npt.NDArray[np.int64]


def labels_tensor(labels: Sequence[Any] | Tensor | None, count: int) -> Tensor | None:
    """Labels as a tensor [count, ...]: int64 for integers, float32 for real numbers.

    Raises ValueError for another number of labels, TypeError for other types.
    """
    if labels is None:
        return None
    is_array = isinstance(labels, np.ndarray) and labels.dtype != object
    if not is_array and not (isinstance(labels, Tensor) and labels.dim()):
        labels = as_list(items(labels, "labels", "numbers"))
    try:
        tensor = torch.as_tensor(labels) if len(labels) else torch.empty(0, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError):
        for i, label in enumerate(labels):
            if isinstance(label, str):
                raise TypeError(
                    f"labels[{i}] is {label!r}, not a number; give its index in your class names: "
                    "labels=[names.index(label) for label in labels]"
                ) from None
            if label is None:
                raise TypeError(f"labels[{i}] is None, not a number; leave out the examples without a label") from None
        raise TypeError(f"labels must be numbers, or equally long lists of them; found {labels!r:.60}") from None
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"labels must be integers or reals, not {tensor.dtype}")
    if tensor.shape[:1] != (count,):
        raise ValueError(f"labels must be as many as the sequences: found {list(tensor.shape)} for {count} sequences")
    return tensor.to(torch.float32 if tensor.dtype.is_floating_point else torch.int64)


class EncodedTexts:
    """N sequences of token ids without padding.

    ids         int32 [total]   sequence i is ids[offsets[i]:offsets[i+1]], special tokens included
    offsets     int64 [N+1]
    first_lens  int32 [N]       number of tokens of segment 0, with <cls> and the first <sep>
    labels      int64 or float32, [N, ...] for the sequences or [total] for the tokens, or None
    pad_id      token id of padding
    max_len     most tokens that a sequence was allowed
    dropped     number of rows of the file without a gold label, which are left out
    """

    def __init__(
        self,
        ids: Tensor,
        offsets: Tensor,
        first_lens: Tensor,
        labels: Tensor | None = None,
        *,
        pad_id: int,
        max_len: int,
        dropped: int = 0,
    ) -> None:
        tensors = (ids, offsets, first_lens)
        if ids.dtype != torch.int32 or offsets.dtype != torch.int64 or first_lens.dtype != torch.int32:
            found = ", ".join(str(t.dtype) for t in tensors)
            raise ValueError(f"ids, offsets and first_lens must be int32, int64 and int32 tensors; found {found}")
        if not ids.dim() == offsets.dim() == first_lens.dim() == 1:
            raise ValueError(f"ids, offsets and first_lens must be 1-d; found {[t.dim() for t in tensors]} dimensions")
        if len(offsets) != len(first_lens) + 1:
            raise ValueError(f"offsets must have {len(first_lens) + 1} elements for {len(first_lens)} sequences")
        if labels is not None and labels.shape[:1] != first_lens.shape and labels.shape != ids.shape:
            raise ValueError(
                f"labels must be as many as the sequences, or as the tokens: found {list(labels.shape)} for "
                f"{len(first_lens)} sequences of {len(ids)} tokens"
            )
        self.ids = ids.contiguous()
        self.offsets = offsets.contiguous()
        self.first_lens = first_lens.contiguous()
        self.labels = labels
        self.pad_id = pad_id
        self.max_len = max_len
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.first_lens)

    def __repr__(self) -> str:
        tokens = int(self.offsets[-1] - self.offsets[0])
        return f"EncodedTexts({len(self)} sequences, {tokens} tokens, max_len={self.max_len})"

    def __getitem__(self, part: slice | int) -> EncodedTexts:
        """The sequences of a slice, or the one of an index; without a step they share the memory."""
        if not isinstance(part, slice):
            i = operator.index(part)
            if not -len(self) <= i < len(self):
                raise IndexError(f"there is no sequence {i}; there are {len(self)}")
            part = slice(i % len(self), i % len(self) + 1)
        start, stop, step = part.indices(len(self))
        if step != 1:
            return self.select(range(start, stop, step))
        stop = max(start, stop)
        offsets, labels = self.offsets[start : stop + 1], self.labels
        first, last = int(offsets[0]), int(offsets[-1])
        if labels is not None:
            labels = labels[first:last] if self._labels_tokens else labels[start:stop]
        return self._with(self.ids[first:last], offsets - first, self.first_lens[start:stop], labels)

    def select(self, index: Index) -> EncodedTexts:
        """A copy of some sequences, in the order given. Raises IndexError for an index outside 0 to N - 1."""
        chosen = torch.from_numpy(index_array(index))
        batch = self.batch(chosen)
        return self._with(batch.input_ids, batch.cu_seqlens.to(torch.int64), self.first_lens[chosen], batch.labels)

    def _with(self, *tensors: Any) -> EncodedTexts:
        return EncodedTexts(*tensors, pad_id=self.pad_id, max_len=self.max_len, dropped=self.dropped)

    def __getitems__(self, indices: Sequence[int]) -> LazyItems:
        """What a DataLoader, also one of a `random_split`, makes a PackedBatch of by one gather."""
        return LazyItems(self, indices)

    @property
    def lengths(self) -> Tensor:
        """int64 [N]: the number of tokens of each sequence."""
        return self.offsets.diff()

    @property
    def _labels_tokens(self) -> bool:
        """Whether the labels are those of the tokens, not of the sequences."""
        return self.labels is not None and len(self.labels) != len(self)

    def _arrays(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        return self.ids.numpy(), self.offsets.numpy(), self.first_lens.numpy()

    def batch(self, index: Index, *, example_index: bool = False) -> PackedBatch:
        """Some sequences as a packed batch, in the order given.

        example_index  whether the batch carries `index` too

        Raises IndexError for an index outside 0 to N - 1, ValueError where the store is corrupt.
        """
        index = index_array(index)
        input_ids, segment_ids, positions, cu_seqlens, max_seqlen = _text.gather_packed(*self._arrays(), index)
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            segment_ids=torch.from_numpy(segment_ids),
            positions=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=max_seqlen,
            labels=None if self.labels is None else self._labels_of(torch.from_numpy(index)),
            example_index=torch.from_numpy(index) if example_index else None,
        )

    def _labels_of(self, index: Tensor) -> Tensor:
        assert self.labels is not None
        if not self._labels_tokens:
            return self.labels.index_select(0, index)  # faster than indexing
        begins = self.offsets[index]
        return self.labels[ragged_index(begins, self.offsets[index + 1] - begins)]

    def to_padded(self, max_len: int | None = None, index: Index | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(token_ids [N, max_len], segments [N, max_len], valid_lens [N]), all int64, as D2L has them.

        max_len   length to pad to (default: `self.max_len`)
        index     the sequences to take (default: all)

        Raises ValueError where a sequence is longer, IndexError for an index outside 0 to N - 1.
        """
        index = None if index is None else index_array(index)
        max_len = self.max_len if max_len is None else integer(max_len, "max_len")
        return as_tensors(_text.gather_padded(*self._arrays(), index, self.pad_id, max_len))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `load` reads."""
        tensors = {"ids": self.ids, "offsets": self.offsets, "first_lens": self.first_lens}
        if self.labels is not None:
            tensors["labels"] = self.labels.contiguous()
        metadata = {"format": _FORMAT, "pad_id": str(self.pad_id), "max_len": str(self.max_len)}
        metadata["dropped"] = str(self.dropped)
        with atomic_path(path) as temporary, writing(path_of(path)):
            whole = {name: t.clone() if t._is_view() else t for name, t in tensors.items()}
            write_tensors(temporary, whole, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EncodedTexts:
        """Read a file that `save` wrote. Raises FileNotFoundError, and ValueError for a corrupt or other file."""
        path = path_of(path)
        problem = "is corrupt or not an EncodedTexts file"
        tensors, metadata = read_tensors(path, problem)
        try:
            if metadata.get("format") != _FORMAT:
                raise ValueError("it has another format")
            encoded = cls(
                tensors["ids"],
                tensors["offsets"],
                tensors["first_lens"],
                tensors.get("labels"),
                pad_id=int(metadata["pad_id"]),
                max_len=int(metadata["max_len"]),
                dropped=int(metadata.get("dropped", 0)),
            )
            if (
                int(encoded.offsets[0]) != 0
                or int(encoded.offsets[-1]) != len(encoded.ids)
                or bool((encoded.lengths < 0).any())
            ):
                raise ValueError("its offsets do not fit its ids")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} {problem}: {error}") from None
        return encoded


class LazyItems(Sequence[Any]):
    """Some items of a dataset, made when they are read; a collate function may gather all of `indices` in one call."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        return type(self)(self.dataset, self.indices[i]) if isinstance(i, slice) else self.dataset[self.indices[i]]

    def __iter__(self) -> Iterator[Any]:  # Sequence's own ends without a word at an index that does not exist
        return (self[i] for i in range(len(self)))


def _collate(batch: Sequence[EncodedTexts], *, collate_fn_map: Any = None) -> PackedBatch:
    if isinstance(batch, LazyItems):
        return cast(PackedBatch, batch.dataset.batch(batch.indices))
    raise TypeError(
        "a DataLoader makes batches of EncodedTexts by indices: give it the EncodedTexts, or a Subset of one"
    )


default_collate_fn_map[EncodedTexts] = _collate


class HasEncoded(Protocol):
    """Data that holds its encoded texts beside what else its task needs, as EncodedQuestions does."""

    @property
    def encoded(self) -> EncodedTexts: ...


Encoded = EncodedTexts | HasEncoded | Subset[Any]


def encoded_texts(data: Encoded, name: str) -> EncodedTexts:
    """The encoded texts that `data` is or has as `.encoded`, or of which it is a Subset.

    name   the argument, for the error

    Raises TypeError where there are none.
    """
    data = without_subset(data)
    encoded = getattr(data, "encoded", data)
    if not isinstance(encoded, EncodedTexts):
        raise TypeError(
            f"{name} must be EncodedTexts or have them as .encoded, as an SNLIBERTDataset does; "
            f"not {type(data).__name__}"
        )
    return encoded


def without_subset(data: Any) -> Any:
    """The encoded texts that a Subset of torch.utils.data, as `random_split` makes it, has chosen; other data as is.

    Raises TypeError for a Subset of data whose examples are not its sequences, as EncodedQuestions' are not.
    """
    if not isinstance(data, Subset):
        return data
    dataset = data.dataset
    if not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{type(dataset).__name__} cannot be split; split the examples, then encode each part")
    return encoded_texts(cast(Any, dataset), "the Subset's dataset").select(data.indices)


_Int64 = npt.NDArray[np.int64]


def as_tensors(arrays: tuple[_Int64, _Int64, _Int64]) -> tuple[Tensor, Tensor, Tensor]:
    """The same memory as tensors."""
    token_ids, segments, valid_lens = arrays
    return torch.from_numpy(token_ids), torch.from_numpy(segments), torch.from_numpy(valid_lens)


def index_array(index: Index) -> npt.NDArray[np.int64]:
    """Indices of any kind as a contiguous int64 array. Raises TypeError for anything but a sequence of integers."""
    if isinstance(index, range):
        return np.arange(index.start, index.stop, index.step, dtype=np.int64)
    array = index.numpy() if isinstance(index, Tensor) else np.asarray(index)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"index must be a sequence of integers, not {array.ndim}-dimensional {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)


def sequences_of(begins: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences of some examples, and the begins of these: int64 [N + 1] and [K] to [M] and [K + 1].

    begins    example i has the sequences begins[i] to begins[i + 1]
    """
    counts = begins.diff()[chosen]
    return ragged_index(begins[chosen], counts), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


EncodedPairs = EncodedTexts  # the same class: it holds single texts too
