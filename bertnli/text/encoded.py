"""Encoded pairs: a ragged store of token ids, and batches of its rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from bertnli import _text
from bertnli.data.files import atomic_path
from bertnli.text.batch import PackedBatch, ragged_index

_FORMAT = "bertnli.EncodedTexts.1"


def labels_tensor(labels: Sequence[Any] | Tensor | None, rows: int) -> Tensor | None:
    """Labels as a tensor [rows, ...]: int64 for integers, float32 for reals. ValueError for another number of them."""
    if labels is None:
        return None
    tensor = torch.as_tensor(labels) if len(labels) else torch.empty(0, dtype=torch.int64)
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"labels must be integers or reals, not {tensor.dtype}")
    if tensor.shape[:1] != (rows,):
        raise ValueError(f"labels must be as many as the rows: found {list(tensor.shape)} for {rows} rows")
    return tensor.to(torch.float32 if tensor.dtype.is_floating_point else torch.int64)


class EncodedTexts:
    """N rows of token ids without padding.

    ids         int32 [total]   row i is ids[offsets[i]:offsets[i+1]], special tokens included
    offsets     int64 [N+1]
    first_lens  int32 [N]       the number of tokens of segment 0, <cls> and the first <sep> included
    labels      int64 or float32, [N, ...] for the rows or [total] for the tokens, or None
    pad_id      the id that padding takes
    max_len     the most tokens that a row was allowed
    dropped     how many rows of the file that they come from had no gold label, and are not here
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
        for name, tensor, dtype in (
            ("ids", ids, torch.int32),
            ("offsets", offsets, torch.int64),
            ("first_lens", first_lens, torch.int32),
        ):
            if tensor.dtype != dtype or tensor.dim() != 1:
                raise ValueError(
                    f"{name} must be a one-dimensional {dtype} tensor, not {tensor.dtype} {tensor.dim()}-d"
                )
        if len(offsets) != len(first_lens) + 1:
            raise ValueError(f"offsets must have {len(first_lens) + 1} elements for {len(first_lens)} rows")
        if labels is not None and labels.shape[:1] != first_lens.shape and labels.shape != ids.shape:
            raise ValueError(
                f"labels must be as many as the rows, or as the tokens: found {list(labels.shape)} for "
                f"{len(first_lens)} rows of {len(ids)} tokens"
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
        return (
            f"EncodedTexts({len(self)} rows, {int(self.offsets[-1] - self.offsets[0])} tokens, max_len={self.max_len})"
        )

    def __getitem__(self, rows: slice) -> EncodedTexts:
        """The rows of a slice; a slice without a step shares the memory."""
        if not isinstance(rows, slice):
            raise TypeError("EncodedTexts takes a slice; use batch([i]) for one row")
        start, stop, step = rows.indices(len(self))
        if step != 1:
            chosen = torch.from_numpy(np.arange(start, stop, step))
            batch = self.batch(chosen)
            ids, offsets, labels = batch.input_ids, batch.cu_seqlens.to(torch.int64), batch.labels
            first_lens = self.first_lens[chosen]
        else:
            stop = max(start, stop)
            offsets = self.offsets[start : stop + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            ids, offsets, labels = self.ids[first:last], offsets - first, self.labels
            first_lens = self.first_lens[start:stop]
            if labels is not None:
                labels = labels[first:last] if self._by_token else labels[start:stop]
        numbers = dict(pad_id=self.pad_id, max_len=self.max_len, dropped=self.dropped)
        return EncodedTexts(ids, offsets, first_lens, labels, **numbers)

    @property
    def lengths(self) -> Tensor:
        """int64 [N]: the number of tokens of each row."""
        return self.offsets.diff()

    @property
    def _by_token(self) -> bool:
        """Whether the labels are the tokens', not the rows'."""
        return self.labels is not None and len(self.labels) != len(self)

    def _arrays(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        return self.ids.numpy(), self.offsets.numpy(), self.first_lens.numpy()

    def batch(self, rows: Sequence[int] | Tensor | range | npt.NDArray[np.int64]) -> PackedBatch:
        """The rows as a packed batch, in the order given. Raises IndexError for a row below 0 or beyond the last."""
        index = index_array(rows)
        input_ids, segment_ids, positions, cu_seqlens, max_seqlen = _text.gather_packed(*self._arrays(), index)
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            segment_ids=torch.from_numpy(segment_ids),
            positions=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=max_seqlen,
            labels=None if self.labels is None else self._labels_of(torch.from_numpy(index)),
        )

    def _labels_of(self, rows: Tensor) -> Tensor:
        assert self.labels is not None
        if not self._by_token:
            return self.labels[rows]
        begins = self.offsets[rows]
        return self.labels[ragged_index(begins, self.offsets[rows + 1] - begins)]

    def padded_rows(self, rows: npt.NDArray[np.int64] | None, max_len: int) -> tuple[Tensor, Tensor, Tensor]:
        """(token_ids, segments, valid_lens) of some rows (None: all), as `to_padded` has them of all."""
        return as_tensors(_text.gather_dense(*self._arrays(), rows, self.pad_id, max_len))

    def to_padded(self, max_len: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(token_ids [N, max_len], segments [N, max_len], valid_lens [N]), all int64, as D2L has them.

        max_len: None means `self.max_len`. Raises ValueError where a row is longer.
        """
        return self.padded_rows(None, self.max_len if max_len is None else max_len)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which appears whole or not at all."""
        tensors = {"ids": self.ids, "offsets": self.offsets, "first_lens": self.first_lens}
        if self.labels is not None:
            tensors["labels"] = self.labels.contiguous()
        metadata = {"format": _FORMAT, "pad_id": str(self.pad_id), "max_len": str(self.max_len)}
        metadata["dropped"] = str(self.dropped)
        with atomic_path(path) as temporary:
            save_file({name: t.clone() if t._is_view() else t for name, t in tensors.items()}, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EncodedTexts:
        """Map a file that `save` wrote. Raises ValueError for a file that is damaged or something else."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError("it holds something else")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            pairs = cls(
                tensors["ids"],
                tensors["offsets"],
                tensors["first_lens"],
                tensors.get("labels"),
                pad_id=int(metadata["pad_id"]),
                max_len=int(metadata["max_len"]),
                dropped=int(metadata.get("dropped", 0)),
            )
            if (
                int(pairs.offsets[0]) != 0
                or int(pairs.offsets[-1]) != len(pairs.ids)
                or bool((pairs.lengths < 0).any())
            ):
                raise ValueError("its offsets do not fit its ids")
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no intact file of encoded pairs: {error}") from None
        return pairs


class HasEncodedTexts(Protocol):
    """What holds encoded pairs beside what else its task needs."""

    pairs: EncodedTexts


def encoded_of(data: EncodedTexts | HasEncodedTexts, name: str) -> EncodedTexts:
    """The encoded pairs that `data` is or holds. Raises TypeError where there are none."""
    pairs = getattr(data, "pairs", data)
    if not isinstance(pairs, EncodedTexts):
        raise TypeError(
            f"{name} must be EncodedTexts or hold them, as an SNLIBERTDataset does; not {type(data).__name__}"
        )
    return pairs


_Int64 = npt.NDArray[np.int64]


def as_tensors(arrays: tuple[_Int64, _Int64, _Int64]) -> tuple[Tensor, Tensor, Tensor]:
    """The same memory as tensors."""
    token_ids, segments, valid_lens = arrays
    return torch.from_numpy(token_ids), torch.from_numpy(segments), torch.from_numpy(valid_lens)


def index_array(rows: Sequence[int] | Tensor | range | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row numbers of any kind as contiguous int64. Raises TypeError for what is no sequence of integers."""
    if isinstance(rows, range):
        return np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
    array = rows.numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"rows must be a sequence of integers, not {array.ndim}-dimensional {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)
