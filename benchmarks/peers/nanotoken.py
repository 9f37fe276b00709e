"""nanotoken, whose ragged ids become rows of pairs by numpy."""

from __future__ import annotations

from functools import cache
from typing import Any

import nanotoken
import numpy as np
from common import minilm_folder
from text_problem import MAX_LEN, piece


@cache
def tokenizer() -> Any:
    return nanotoken.Tokenizer(str(minilm_folder() / "tokenizer.json"))


def encode_ragged(texts: list[str], threads: int) -> Any:
    return tokenizer().encode_batch(texts, add_special_tokens=False, parallel=threads > 1)


def encode_padded(texts: list[str], threads: int) -> tuple[np.ndarray, ...]:
    """(token_ids, segments, valid_lens) of the pairs p0, h0, p1, h1, ..., none of which may be too long."""
    ragged = encode_ragged(texts, threads)
    ids, offsets = np.asarray(ragged.ids), np.asarray(ragged.offsets)
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
