"""SNLI's pairs and bertnli's tokenizers, as the peers of the text stage get them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from common import piece, snli

from bertnli import WordTokenizer
from bertnli.text.vocab import Vocab

MAX_LEN = 128
FEW = 2000  # pairs for slow peers
Array = np.ndarray[Any, Any]
Sides = tuple[list[str], list[str]]  # premises, hypotheses


@cache
def pairs(data: str, columns: str, count: int) -> Sides:
    """`count` pairs of "train", or of "dev + test" (whose premises repeat), each string a separate object."""
    first: list[str] = []
    second: list[str] = []
    for split in ("train",) if data == "train" else ("dev", "test"):
        texts = snli(split, columns)
        first += texts.first
        second += texts.second or ()
    times = -(-count // len(first))
    return separate(first * times, count), separate(second * times, count)


def separate(texts: list[str], count: int) -> list[str]:
    return [text.encode().decode() for text in texts[:count]]


@cache
def words() -> WordTokenizer:
    lines = [text.lower().split() for side in pairs("train", "parse", 21_605) for text in side]
    return WordTokenizer(Vocab(lines, min_freq=2, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))


def interleaved(sides: Sides) -> list[str]:
    return [text for pair in zip(*sides, strict=True) for text in pair]


def rows_of_pairs(ids: Array, offsets: Array) -> tuple[Array, Array, Array]:
    """(token ids [N, 128], segments [N, 128], valid lengths [N]) from the ids of the texts p0, h0, p1, h1, ...

    Text i has ids[offsets[i] : offsets[i + 1]], without special tokens. No pair may be too long.
    """
    lens = np.diff(offsets)
    p, h = lens[0::2], lens[1::2]
    total = p + h + 3
    rows = np.arange(len(p))
    out = np.zeros((len(p), MAX_LEN), np.int64)
    flat = out.reshape(-1)
    within = np.arange(len(ids)) - np.repeat(offsets[0:-1:2], p + h)
    flat[np.repeat(rows * MAX_LEN + 1, p + h) + within + (within >= np.repeat(p, p + h))] = ids
    out[:, 0] = piece().cls_id
    flat[rows * MAX_LEN + 1 + p] = piece().sep_id
    flat[rows * MAX_LEN + total - 1] = piece().sep_id
    columns = np.arange(MAX_LEN)
    segments = ((columns >= (p + 2)[:, None]) & (columns < total[:, None])).astype(np.int64)
    return out, segments, total
