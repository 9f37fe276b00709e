"""The documented dropout masks, by a numpy Philox that test_attention.py checks against known answers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-7: counter [..., 4] to words [..., 4], both below 2**32, computed in uint64."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key
    for _ in range(7):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], -1)


def attention_mask(sequence: int, heads: int, queries: int, keys: int, p: float, seed: Tensor) -> Tensor:
    """What `varlen_attention` documents: float64 [heads, queries, keys], 0 or 1 / (1 - p)."""
    head, query, group = np.meshgrid(np.arange(heads), np.arange(queries), np.arange((keys + 3) // 4), indexing="ij")
    counter = np.stack([np.full_like(head, sequence), head, query, group], -1)
    words = philox(counter, (int(seed[0]) % 2**32, int(seed[1]) % 2**32)).reshape(heads, queries, group.shape[2] * 4)
    words = words[..., :keys]
    return torch.from_numpy((words >= max(1, int(p * 2**32))) / (1 - p))


def row_mask(rows: int, width: int, p: float, seed: Tensor) -> Tensor:
    """What `add_norm` documents: float64 [rows, width], 0 or 1 / (1 - p)."""
    row, group = np.meshgrid(np.arange(rows), np.arange((width + 3) // 4), indexing="ij")
    counter = np.stack([row, np.full_like(row, 2**32 - 1), np.zeros_like(row), group], -1)
    words = philox(counter, (int(seed[0]) % 2**32, int(seed[1]) % 2**32)).reshape(rows, -1)[:, :width]
    return torch.from_numpy((words >= max(1, int(p * 2**32))) / (1 - p))
