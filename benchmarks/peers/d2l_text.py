"""D2L's Python: words looked up one by one, in this process or in four."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from helpers import d2l_oracle
from text_problem import MAX_LEN, words


def encode(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.tensor, d2l_oracle.encode_dataset(words().vocab, premises, hypotheses, MAX_LEN)))


def _encode_pair(pair: tuple[str, str]) -> Any:
    return d2l_oracle.encode_pair(words().vocab, *pair, MAX_LEN)


def encode_in_pool(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    """As D2L has it: four processes, one pair a task."""
    with multiprocessing.Pool(4) as pool:
        rows = pool.map(_encode_pair, list(zip(premises, hypotheses, strict=True)))
    return tuple(torch.tensor(list(column)) for column in zip(*rows, strict=True))


def read_and_encode(path: Path) -> tuple[torch.Tensor, ...]:
    premises, hypotheses, labels = d2l_oracle.read_snli(path)
    return (*encode(premises, hypotheses), torch.tensor(labels))
