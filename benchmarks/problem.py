"""The model and the pairs that the peers of bench_inference.py get: files and numpy arrays, nothing of bertnli.

A problem's folder is a Hugging Face checkpoint of a classifier with one output (config.json, model.safetensors,
tokenizer.json, vocab.txt) beside `pairs.json`: {"texts": [[premise, hypothesis], ...], "ids": [[...], ...], "first":
[tokens of the first segment, ...]}. Peers keep what they export there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BUCKETS = 8
ONE_PAIR = 27  # tokens of the pair that is scored alone

Array = np.ndarray[Any, Any]
Run = Callable[[], Array]


class Padded(NamedTuple):
    """A bucket of pairs, padded to its longest."""

    ids: Array  # int64 [B, L]
    segments: Array  # int64 [B, L]
    lengths: Array  # int64 [B]

    def named(self) -> dict[str, Array]:
        """The inputs by transformers' names."""
        mask = (np.arange(self.ids.shape[1]) < self.lengths[:, None]).astype(np.int64)
        return {"input_ids": self.ids, "attention_mask": mask, "token_type_ids": self.segments}

    def tensors(self) -> dict[str, Any]:
        """`named` as tensors that share its memory."""
        import torch

        return {name: torch.from_numpy(x) for name, x in self.named().items()}


class Peer(NamedTuple):
    """A library's inference: `logits` [B, 1] of what `prepare`, which is not timed on ids, makes of a bucket."""

    prepare: Callable[[Padded], Any]
    logits: Callable[[Any], Array]
    buckets: int = BUCKETS


class Problem:
    """A classifier with one output; `folder` is for the files that peers export, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def _pairs(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "pairs.json").read_text(encoding="utf-8"))
        return found

    def pairs(self, count: int) -> Pairs:
        """The first pairs; a single one has 27 tokens if any has."""
        known = self._pairs
        first = 0
        if count == 1:
            first = min(range(len(known["ids"])), key=lambda i: abs(len(known["ids"][i]) - ONE_PAIR))
        part = slice(first, first + count)
        return Pairs([(a, b) for a, b in known["texts"][part]], known["ids"][part], known["first"][part])

    def calibration(self) -> list[Padded]:
        """Buckets of pairs for peers that trace or calibrate a model."""
        return [bucket for _, bucket in self.pairs(128).buckets(BUCKETS)]

    def torch_model(self, attention: str = "sdpa") -> Any:
        """The model of transformers, in eval mode."""
        import transformers

        kind = transformers.AutoModelForSequenceClassification
        return kind.from_pretrained(self.folder, attn_implementation=attention).eval()


class Pairs:
    """Texts, and their ids with special tokens."""

    def __init__(self, texts: list[tuple[str, str]], ids: list[list[int]], first: list[int]) -> None:
        self.texts, self.ids, self.first = texts, ids, first
        self.lengths = np.array([len(row) for row in ids])

    def buckets(self, count: int) -> Iterator[tuple[Array, Padded]]:
        """Up to `count` buckets of similar lengths: the pairs' indices, and their padded ids."""
        for index in np.array_split(np.argsort(self.lengths, kind="stable"), min(count, len(self.ids))):
            yield index, self.padded(index)

    def padded(self, index: Array) -> Padded:
        lengths = self.lengths[index]
        ids, segments = np.zeros((2, len(index), lengths.max()), np.int64)
        for row, i in enumerate(index):
            ids[row, : lengths[row]] = self.ids[i]
            segments[row, self.first[i] : lengths[row]] = 1
        return Padded(ids, segments, lengths)

    def run_from_ids(self, peer: Peer) -> Run:
        """The peer's logits [N, 1] of all pairs, in their order, from prepared buckets."""
        prepared = [(index, peer.prepare(bucket)) for index, bucket in self.buckets(peer.buckets)]

        def run() -> Array:
            logits = np.empty((len(self.ids), 1), np.float32)
            for index, inputs in prepared:
                logits[index] = peer.logits(inputs)
            return logits

        return run

    def run_from_text(self, peer: Peer, problem: Problem) -> Run:
        """The peer's logits [N] from strings, by `tokenizers` and buckets of similar lengths."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(problem.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(128)

        def run() -> Array:
            encoded = tokenizer.encode_batch_fast(self.texts)
            found = Pairs(self.texts, [e.ids for e in encoded], [e.type_ids.count(0) for e in encoded])
            logits = np.empty(len(encoded), np.float32)
            for index, bucket in found.buckets(-(-len(encoded) // 32)):
                logits[index] = peer.logits(peer.prepare(bucket))[:, 0]
            return logits

        return run


def logit(probability: Array) -> Array:
    """The logits of a library that gives their sigmoids only."""
    return np.asarray(np.log(probability / (1 - probability)))
