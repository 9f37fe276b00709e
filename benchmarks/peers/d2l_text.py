"""D2L's Python: words looked up one by one in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import d2l_oracle
from text_problem import FEW, MAX_LEN, words

NAME = "D2L"
PRECISIONS = ("exact",)
REQUIRES = ()
PAIRS = 5 * FEW


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs, padded to 128."""

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        return tuple(map(torch.tensor, d2l_oracle.encode_dataset(words().vocab, premises, hypotheses, MAX_LEN)))

    return encode


def read_and_encode(path: Path) -> tuple[Any, ...]:
    """The same of a file of SNLI, with the labels."""
    premises, hypotheses, labels = d2l_oracle.read_snli(path)
    return (*build(1)(premises, hypotheses), torch.tensor(labels))
