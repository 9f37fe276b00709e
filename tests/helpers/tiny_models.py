"""Tiny classifiers, and random pairs that they can learn."""

from __future__ import annotations

from typing import Any

import torch

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    EncodedTexts,
)

VOCAB = 40
SIZES: dict[str, Any] = dict(num_hiddens=24, ffn_num_hiddens=40, num_heads=3, num_layers=3, max_len=20)


def pairs(n: int = 90, seed: int = 0, classes: int = 3) -> EncodedTexts:
    """Random rows whose label can be learnt: it is decided by whether a token of the first text returns."""
    g = torch.Generator().manual_seed(seed)
    rows, first = [], []
    labels = torch.randint(0, classes, (n,), generator=g)
    for label in labels.tolist():
        p = torch.randint(4, VOCAB - 3, (int(torch.randint(2, 9, (1,), generator=g)),), generator=g)
        h = torch.randint(4, VOCAB - 3, (int(torch.randint(2, 7, (1,), generator=g)),), generator=g)
        h[0] = VOCAB - 1 - label
        rows.append(torch.cat([torch.tensor([1]), p, torch.tensor([2]), h, torch.tensor([2])]).int())
        first.append(len(p) + 2)
    lengths = torch.tensor([0] + [len(r) for r in rows])
    return EncodedTexts(
        torch.cat(rows), lengths.cumsum(0), torch.tensor(first, dtype=torch.int32), labels, pad_id=0, max_len=20
    )


def classifier(original: bool = False, dropout: float = 0.0, seed: int = 0) -> BERTClassifier:
    torch.manual_seed(seed)
    make = BERTConfig.original if original else BERTConfig
    return BERTClassifier(BERTModel(make(VOCAB, dropout=dropout, **SIZES)))
