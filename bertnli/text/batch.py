"""Batches without padding: the tokens of B sequences one after another, and where each begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of B sequences, T in all, one after another.

    input_ids       int32 [T]     token ids
    segment_ids     int32 [T]     0 up to and including the first `<sep>`, then 1
    positions       int32 [T]     0, 1, 2, ... within each sequence
    cu_seqlens      int32 [B+1]   sequence b has the tokens from cu_seqlens[b] to cu_seqlens[b+1]
    max_seqlen      int           number of tokens of the longest sequence
    labels          int64 or float32, [B, ...] for the sequences or [T] for the tokens, or None
    example_index   int64 [B]     index of each sequence in its EncodedTexts, -1 for padding, or None

    Two pairs of 5 and 6 tokens (2 is `<cls>`, 3 is `<sep>`):

        input_ids    2 7 3 8 3   2 9 3 5 6 3        cu_seqlens  0 5 11
        segment_ids  0 0 0 1 1   0 0 0 1 1 1        max_seqlen  6
        positions    0 1 2 3 4   0 1 2 3 4 5
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
        """The same batch on `device`; `non_blocking` copies to a GPU from page-locked memory, without waiting."""
        source = self._pinned_for(torch.device(device)) if non_blocking else self
        return source._map(lambda t: t.to(device, non_blocking=non_blocking))

    def copy_(self, other: PackedBatch) -> None:
        """Overwrite this batch with one of the same sizes, copied as by `to(device, non_blocking=True)`."""
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
        """The same batch in page-locked memory. A DataLoader with `pin_memory=True` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, f: Callable[[Tensor], Tensor]) -> PackedBatch:
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
        """Append padding sequences, up to `sequences` and `tokens` in all.

        They have ids and positions 0, lengths that differ by one at most, and the label `ignored`. What is computed
        for the other sequences stays equal, dropout included. Raises ValueError if a padding sequence would be empty.
        """
        count, more = sequences - len(self), tokens - len(self.input_ids)
        if not 0 < count <= more:
            raise ValueError(f"{count} more sequences cannot have {more} more tokens")
        zeros = self.input_ids.new_zeros(more)
        ends = torch.arange(1, count + 1, dtype=torch.int32, device=self.device) * more // count
        labels = self.labels
        if labels is not None and ignored is not None:
            added = count if len(labels) == len(self) else more
            labels = torch.cat([labels, labels.new_full((added, *labels.shape[1:]), ignored)])
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

        token_ids, segments   integer [B, L]
        valid_lens            [B] of any dtype; None where every position is valid

        Raises ValueError where the shapes disagree or a length is outside 0 to L.
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
        traced = torch.compiler.is_exporting()  # then nothing may depend on values
        max_seqlen = length if traced else int(lens.max()) if batch else 0
        if not traced and batch and (max_seqlen > length or int(lens.min()) < 0):
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

    @classmethod
    def from_huggingface(
        cls, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> PackedBatch:
        """Drop the padding of what a tokenizer of `transformers` returns.

        input_ids        integer [B, L]
        attention_mask   [B, L], 1 for tokens and 0 for padding, which must be on the right
        token_type_ids   integer [B, L] (default: all 0)

            inputs = tokenizer(premises, hypotheses, padding=True, return_tensors="pt")
            logits = model(PackedBatch.from_huggingface(**inputs))

        Raises ValueError for other shapes, and for a mask that is not ones followed by zeros.
        """
        if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"input_ids and attention_mask must have one shape [batch, length]; "
                f"found {list(input_ids.shape)} and {list(attention_mask.shape)}"
            )
        valid_lens = attention_mask.ne(0).sum(1)
        expected = torch.arange(input_ids.shape[1], device=input_ids.device) < valid_lens[:, None]
        wrong = (attention_mask != expected).any(1)
        if wrong.any():
            raise ValueError(
                f"attention_mask must be ones followed by zeros in each row; row {int(wrong.int().argmax())} is not. "
                'For padding on the left, make the tokenizer with padding_side="right"'
            )
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return cls.from_padded(input_ids, segments, valid_lens)

    def pad(self, packed: Tensor, length: int | None = None) -> Tensor:
        """Values [T, ...] as [B, length, ...] with zeros in the padding (length: `max_seqlen` by default)."""
        return pad(packed, self.cu_seqlens, self.max_seqlen if length is None else length)[0]


def pad_amount(count: int, sizes: int) -> int:
    """How much to add to `count` for a bucket size; there are `sizes` bucket sizes from a number to its double."""
    return -count % (1 << max(0, (count // sizes).bit_length() - 1))


def split_batches(order: Tensor, lengths: Tensor, size: int | None, tokens: int | None) -> list[Tensor]:
    """Split `order`, int64 [R], into batches: of `size` sequences each, or of as many as have at most `tokens` tokens.

    lengths   int64 [N], number of tokens of each sequence. One that is longer than `tokens` is a batch by itself

    An empty order gives one empty batch.
    """
    if tokens is None:
        assert size is not None
        return list(torch.split(order, size))
    ends = lengths[order].cumsum(0).numpy()
    counts, begin, before = [], 0, 0
    while begin < len(order):
        end = max(begin + 1, int(np.searchsorted(ends, before + tokens, side="right")))
        counts.append(end - begin)
        begin, before = end, int(ends[end - 1])
    return list(torch.split(order, counts or [0]))


def ragged_index(begins: Tensor, counts: Tensor) -> Tensor:
    """The indices begins[i] to begins[i] + counts[i] - 1 for each i, one after another; both int64 [N]."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total, device=begins.device) + (begins - ends + counts).repeat_interleave(counts)


def pad(packed: Tensor, cu_seqlens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Values [T, ...] as [B, length, ...] with zeros in the padding; and the mask of valid positions [B, length]."""
    valid = torch.arange(length, device=packed.device) < cu_seqlens.diff()[:, None]
    padded = packed.new_zeros((*valid.shape, *packed.shape[1:]))
    token = torch.arange(packed.shape[0], dtype=cu_seqlens.dtype, device=packed.device)
    sequence = torch.searchsorted(cu_seqlens[1:], token, right=True)
    padded[sequence, (token - cu_seqlens[sequence]).long()] = packed  # indexing by `valid` would wait for the device
    return padded, valid
