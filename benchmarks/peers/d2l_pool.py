"""D2L's Python as the book has it: four processes, one pair a task."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
from helpers import d2l_oracle
from text_problem import FEW, MAX_LEN, words

NAME = "D2L, Pool(4)"
PRECISIONS = ("exact",)
REQUIRES = ()
PAIRS = 5 * FEW


def _encode_pair(pair: tuple[str, str]) -> Any:
    return d2l_oracle.encode_pair(words().vocab, *pair, MAX_LEN)


def build(threads: int) -> Callable[[list[str], list[str]], Any]:
    """(token ids, segments, valid lengths) of pairs, padded to 128."""

    def encode(premises: list[str], hypotheses: list[str]) -> tuple[Any, ...]:
        with multiprocessing.get_context("fork").Pool(4) as pool:
            rows = pool.map(_encode_pair, list(zip(premises, hypotheses, strict=True)))
        return tuple(torch.tensor(list(column)) for column in zip(*rows, strict=True))

    return encode
