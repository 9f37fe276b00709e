"""Batches without padding: the tokens of B sequences laid end to end, and where each begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of B sequences, T in all, laid end to end.

    input_ids    int32 [T]     token ids
    segment_ids  int32 [T]     0 up to and including the first `<sep>`, then 1
    positions    int32 [T]     0, 1, 2, ... within each sequence
    cu_seqlens   int32 [B+1]   sequence b is the tokens cu_seqlens[b] to cu_seqlens[b+1]
    max_seqlen   int           the longest sequence's number of tokens
    labels       int64 or float32, [B, ...] for the sequences or [T] for the tokens, or None
    example_index  int64 [B]   each sequence's index in its EncodedTexts, -1 for padding, or None

    Two pairs of 4 and 3 tokens:

        input_ids    2 7 3 3   2 8 3        cu_seqlens  0 4 7
        segment_ids  0 0 0 1   0 0 0        max_seqlen  4
        positions    0 1 2 3   0 1 2
    """

    input_ids: Tensor
    segment_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    labels: Tensor | None = None
    example_index: Tensor | None = None

    def __len__(self) -> int:
        return self.cu_seqlens.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on `device`; with `non_blocking`, to a GPU by way of page-locked memory, and nothing waits."""
        source = self._pinned_for(torch.device(device)) if non_blocking else self
        return source._map(lambda t: t.to(device, non_blocking=non_blocking))

    def copy_(self, other: PackedBatch) -> None:
        """Take up the contents of a batch of the same sizes, as `to` does with `non_blocking`."""
        source = other._pinned_for(self.device)
        for name in ("input_ids", "segment_ids", "positions", "cu_seqlens"):
            getattr(self, name).copy_(getattr(source, name), non_blocking=True)
        if self.labels is not None and source.labels is not None:
            self.labels.copy_(source.labels, non_blocking=True)
        if self.example_index is not None and source.example_index is not None:
            self.example_index.copy_(source.example_index, non_blocking=True)

    def _pinned_for(self, device: torch.device) -> PackedBatch:
        return self.pin_memory() if device.type == "cuda" and self.device.type == "cpu" else self

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory; a DataLoader with `pin_memory=True` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, f) -> PackedBatch:  # type: ignore[no-untyped-def]
        return replace(
            self,
            input_ids=f(self.input_ids),
            segment_ids=f(self.segment_ids),
            positions=f(self.positions),
            cu_seqlens=f(self.cu_seqlens),
            labels=None if self.labels is None else f(self.labels),
            example_index=None if self.example_index is None else f(self.example_index),
        )

    def padded(self, tokens: int, sequences: int, ignored: float | None = None) -> PackedBatch:
        """The batch with sequences behind its own that nobody reads, `sequences` and `tokens` of both in all.

        Lengths of those behind differ by one at most, and none is 0; their ids and positions are 0, their labels or
        their tokens' are `ignored`. Nothing that is computed for the batch's own sequences changes, dropout included.
        """
        count, more = sequences - len(self), tokens - len(self.input_ids)
        if not 0 < count <= more:
            raise ValueError(f"{count} more sequences cannot have {more} more tokens")
        zeros = self.input_ids.new_zeros(more)
        ends = torch.arange(1, count + 1, dtype=torch.int32, device=self.device) * more // count
        labels = self.labels
        if labels is not None and ignored is not None:
            behind = count if len(labels) == len(self) else more
            labels = torch.cat([labels, labels.new_full((behind, *labels.shape[1:]), ignored)])
        index = self.example_index
        return PackedBatch(
            input_ids=torch.cat([self.input_ids, zeros]),
            segment_ids=torch.cat([self.segment_ids, zeros]),
            positions=torch.cat([self.positions, zeros]),
            cu_seqlens=torch.cat([self.cu_seqlens, self.cu_seqlens[-1:] + ends]),
            max_seqlen=max(self.max_seqlen, -(-more // count)),
            labels=labels,
            example_index=None if index is None else torch.cat([index, index.new_full((count,), -1)]),
        )

    @classmethod
    def from_padded(cls, token_ids: Tensor, segments: Tensor, valid_lens: Tensor | None = None) -> PackedBatch:
        """Drop the padding of D2L's three tensors.

        token_ids, segments: integer [B, L]; valid_lens: [B], any dtype, or None where every position is valid.
        Raises ValueError where the shapes disagree or a length lies outside 0 to L.
        """
        if token_ids.dim() != 2 or segments.shape != token_ids.shape:
            raise ValueError(
                f"tokens and segments must have one shape [batch, length]; "
                f"found {list(token_ids.shape)} and {list(segments.shape)}"
            )
        for name, ids in (("tokens", token_ids), ("segments", segments)):
            if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
                raise ValueError(f"{name} must be integers; found {ids.dtype}")
        # An id beyond int32 would wrap around to a valid one; clamped, it stays outside every vocabulary.
        token_ids, segments = (
            ids.clamp(-1, 2**31 - 1) if ids.dtype == torch.int64 else ids for ids in (token_ids, segments)
        )
        batch, length = token_ids.shape
        device = token_ids.device
        if valid_lens is None:
            lens = torch.full((batch,), length, dtype=torch.int32, device=device)
        else:
            if valid_lens.shape != (batch,):
                raise ValueError(f"valid_lens must have shape [{batch}]; found {list(valid_lens.shape)}")
            lens = valid_lens.to(device=device, dtype=torch.int32)
        max_seqlen = int(lens.max()) if batch else 0
        if batch and (max_seqlen > length or int(lens.min()) < 0):
            raise ValueError(f"valid_lens must lie between 0 and the padded length {length}")
        positions = torch.arange(length, dtype=torch.int32, device=device).expand(batch, length)
        valid = positions < lens[:, None]  # (B, L)
        cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32, device=device)
        torch.cumsum(lens, 0, out=cu_seqlens[1:], dtype=torch.int32)
        return cls(
            input_ids=token_ids[valid].to(torch.int32),
            segment_ids=segments[valid].to(torch.int32),
            positions=positions[valid],
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
        )

    def pad(self, packed: Tensor, length: int | None = None) -> Tensor:
        """The [T, ...] values as [B, length, ...], zeros in the padding; `length` defaults to `max_seqlen`."""
        return pad(packed, self.cu_seqlens, self.max_seqlen if length is None else length)[0]


def pad_amount(count: int, sizes: int) -> int:
    """How many more make of `count` one of few numbers: `sizes` of them lie between a number and its double."""
    return -count % (1 << max(0, (count // sizes).bit_length() - 1))


def split_batches(rows: Tensor, lengths: Tensor, size: int | None, tokens: int | None) -> list[Tensor]:
    """`rows`, int64 [R], in batches: `size` rows each, or as many as have `tokens` tokens at most, taken in order.

    lengths   int64 [N], the number of tokens of every row; a row that is longer than `tokens` is a batch by itself

    No rows are one batch of none.
    """
    if tokens is None:
        assert size is not None
        return list(torch.split(rows, size))
    ends = lengths[rows].cumsum(0).numpy()
    counts, begin, before = [], 0, 0
    while begin < len(rows):
        end = max(begin + 1, int(np.searchsorted(ends, before + tokens, side="right")))
        counts.append(end - begin)
        begin, before = end, int(ends[end - 1])
    return list(torch.split(rows, counts or [0]))


def ragged_index(begins: Tensor, counts: Tensor) -> Tensor:
    """begins[i], begins[i] + 1, ..., counts[i] of them for each i, end to end; both int64 [N]."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total, device=begins.device) + (begins - ends + counts).repeat_interleave(counts)


def pad(packed: Tensor, cu_seqlens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Spread [T, ...] values over [B, length, ...], zeros in the padding; with the valid positions, [B, length]."""
    valid = torch.arange(length, device=packed.device) < cu_seqlens.diff()[:, None]
    padded = packed.new_zeros((*valid.shape, *packed.shape[1:]))
    token = torch.arange(len(packed), dtype=cu_seqlens.dtype, device=packed.device)
    sequence = torch.searchsorted(cu_seqlens[1:], token, right=True)
    padded[sequence, (token - cu_seqlens[sequence]).long()] = packed  # by `valid` it would wait for the device
    return padded, valid
