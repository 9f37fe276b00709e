"""Long texts as several sequences, each a window of the text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertnli.text.batch import ragged_index
from bertnli.text.encoded import EncodedTexts, labels_tensor
from bertnli.text.tokenizer import Tokenizer

POOLINGS = ("mean", "max")


@dataclass(frozen=True)
class EncodedWindows:
    """N texts as sequences `<cls> window <sep>`; those of a text follow each other.

    encoded   the sequences, each with the label of its text
    begins    int64 [N+1]   text i has the sequences begins[i] to begins[i+1]
    labels    of the texts, [N, ...], or None
    """

    encoded: EncodedTexts
    begins: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.begins) - 1

    def pool(self, outputs: Tensor, kind: str) -> Tensor:
        """The "mean" or "max" of each text's rows, of outputs [sequences, C]: [N, C]."""
        return torch.segment_reduce(outputs, kind, lengths=self.begins.diff())


def encode_windows(
    tokenizer: Tokenizer, texts: Sequence[str], max_len: int, stride: int, labels: Sequence[Any] | Tensor | None = None
) -> EncodedWindows:
    """Encode texts in sequences of at most `max_len` tokens. Each further window of a text begins with the last
    `stride` tokens of the one before. A text that fits is one sequence, as `encode_texts` has it.

    Raises ValueError for a stride that leaves no room for further tokens.
    """
    room = max_len - 2
    if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride < room:
        raise ValueError(f"stride must be an integer from 0 to below max_len - 2 = {room}; found {stride!r}")
    tokens = tokenizer.encode_texts_with_offsets(texts)
    lengths = tokens.offsets.diff()
    counts = 1 + ((lengths - room).clamp(min=0) + room - stride - 1) // (room - stride)  # windows of each text
    begins = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    nth = ragged_index(torch.zeros_like(counts), counts)  # of each window within its text
    starts = tokens.offsets[:-1].repeat_interleave(counts) + nth * (room - stride)
    sizes = torch.minimum(starts + room, tokens.offsets[1:].repeat_interleave(counts)) - starts
    offsets = torch.cat([sizes.new_zeros(1), (sizes + 2).cumsum(0)])
    ids = torch.full((int(offsets[-1]),), tokenizer.sep_id, dtype=torch.int32)
    ids[offsets[:-1]] = tokenizer.cls_id
    ids[ragged_index(offsets[:-1] + 1, sizes)] = tokens.ids[ragged_index(starts, sizes)]
    given = labels_tensor(labels, len(lengths))
    of_windows = None if given is None else given.repeat_interleave(counts, 0)
    encoded = EncodedTexts(ids, offsets, (sizes + 2).int(), of_windows, pad_id=tokenizer.pad_id, max_len=max_len)
    return EncodedWindows(encoded, begins, given)
