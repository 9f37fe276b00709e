"""Long texts and pairs as several sequences, each with a window of the long text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertnli.text.batch import ragged_index
from bertnli.text.encoded import EncodedTexts, Index, index_array, labels_tensor, sequences_of
from bertnli.text.tokenizer import Tokenizer

POOLINGS = ("mean", "max")


@dataclass(frozen=True)
class EncodedWindows:
    """N texts or pairs as sequences `<cls> window <sep>` or `<cls> window <sep> other text <sep>` (or the other text
    first); those of an example follow each other.

    encoded   the sequences, each with the label of its example
    begins    int64 [N+1]   example i has the sequences begins[i] to begins[i+1]
    labels    of the examples, [N, ...], or None
    """

    encoded: EncodedTexts
    begins: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.begins) - 1

    def select(self, index: Index) -> EncodedWindows:
        """A copy of some examples, in the order given."""
        chosen = torch.from_numpy(index_array(index))
        windows, begins = sequences_of(self.begins, chosen)
        return EncodedWindows(
            self.encoded.select(windows), begins, None if self.labels is None else self.labels[chosen]
        )

    def pool(self, outputs: Tensor, kind: str) -> Tensor:
        """The "mean" or "max" of each example's rows, of outputs [sequences, C]: [N, C]."""
        return torch.segment_reduce(outputs, kind, lengths=self.begins.diff())


def encode_windows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_len: int,
    stride: int,
    labels: Sequence[Any] | Tensor | None = None,
    second: Sequence[str] | None = None,
) -> EncodedWindows:
    """Encode texts, or pairs, in sequences of at most `max_len` tokens. Each further window of a text begins with the
    last `stride` tokens of the one before. An example that fits is one sequence, as `encode_texts` or `encode_pairs`
    has it.

    second    the second text of each pair (default: none). Of a pair that is too long, the longer text has windows (the
              first, if they are equally long), and each sequence has the other one whole, or, where that is longer than
              half of the `max_len - 3` tokens, so much of it

    Raises ValueError for a stride that leaves no room for further tokens.
    """
    special = 2 if second is None else 3
    budget = max_len - special
    least = budget if second is None else budget - budget // 2  # tokens of a window, unless the example fits
    if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride < least:
        limit = "max_len - 2" if second is None else "half of max_len - 3"
        raise ValueError(f"stride must be an integer from 0 to below {limit} = {least}; found {stride!r}")
    tokens = tokenizer.encode_texts_with_offsets(texts)
    source, first_begins, first_sizes = tokens.ids, tokens.offsets[:-1], tokens.offsets.diff()
    second_begins = second_sizes = torch.zeros_like(first_sizes)
    if second is not None:
        if len(second) != len(tokens):
            raise ValueError(f"{len(tokens)} first texts for {len(second)} second ones")
        others = tokenizer.encode_texts_with_offsets(second)
        second_begins, second_sizes = others.offsets[:-1] + len(source), others.offsets.diff()
        source = torch.cat([source, others.ids])
    longer, other = torch.maximum(first_sizes, second_sizes), torch.minimum(first_sizes, second_sizes)
    other = torch.where(longer + other > budget, other.clamp(max=budget // 2), other)
    room = budget - other
    counts = 1 + ((longer - room).clamp(min=0) + room - stride - 1) // (room - stride)  # windows of each example
    of = torch.arange(len(counts)).repeat_interleave(counts)  # the example of each window
    skipped = ragged_index(torch.zeros_like(counts), counts) * (room - stride)[of]  # tokens before the window
    window, other, splits_first = (
        torch.minimum(room[of], longer[of] - skipped),
        other[of],
        (first_sizes >= second_sizes)[of],
    )
    first = torch.where(splits_first, window, other), first_begins[of] + skipped.where(splits_first, 0)
    rest = torch.where(splits_first, other, window), second_begins[of] + skipped.where(~splits_first, 0)
    lengths = window + other + special
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    ids = torch.full((int(offsets[-1]),), tokenizer.sep_id, dtype=torch.int32)
    ids[offsets[:-1]] = tokenizer.cls_id
    for (sizes, begins), place in ((first, offsets[:-1] + 1), (rest, offsets[:-1] + first[0] + 2)):
        ids[ragged_index(place, sizes)] = source[ragged_index(begins, sizes)]
    given = labels_tensor(labels, len(counts))
    of_windows = None if given is None else given[of]
    encoded = EncodedTexts(ids, offsets, (first[0] + 2).int(), of_windows, pad_id=tokenizer.pad_id, max_len=max_len)
    return EncodedWindows(encoded, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), given)
