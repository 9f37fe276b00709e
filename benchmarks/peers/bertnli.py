"""bertnli itself: `score` of encoded pairs, and `CrossEncoder.predict` of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import Array, Padded, Peer, Problem

NAME = "bertnli"
PRECISIONS = ("fp32", "bf16", "int8")
REQUIRES = ()


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import torch

    from bertnli import EncodedTexts, Model, score

    head = Model.from_pretrained(problem.folder, device="cpu").head

    def prepare(bucket: Padded) -> EncodedTexts:
        valid = np.arange(bucket.ids.shape[1]) < bucket.lengths[:, None]
        ids = torch.from_numpy(bucket.ids[valid].astype(np.int32))
        offsets = torch.from_numpy(np.cumsum([0, *bucket.lengths]))
        first = torch.from_numpy((bucket.lengths - bucket.segments.sum(1)).astype(np.int32))
        return EncodedTexts(ids, offsets, first, None, pad_id=0, max_len=128)

    def logits(encoded: EncodedTexts) -> Array:
        return score(head, encoded, precision=precision, batch_size=1 << 20).numpy().reshape(-1, 1)

    return Peer(prepare, logits, buckets=1)


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    from bertnli import CrossEncoder

    return CrossEncoder(problem.folder, precision=precision, device="cpu").predict
