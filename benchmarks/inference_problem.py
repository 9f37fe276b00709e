"""The model and the pairs that `bench_inference.py` gives every contestant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import MODELS, snli_lengths
from torch import Tensor

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts

VOCAB_SIZE = 30522
WORDS = ["[PAD]", *(f"w{i}" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += [f"w{i}" for i in range(len(WORDS), VOCAB_SIZE)]
BUCKETS = 8

Run = Callable[[], np.ndarray]


class Padded(NamedTuple):
    """A bucket of pairs, padded to its longest."""

    ids: np.ndarray  # int64 [B, L]
    segments: np.ndarray  # int64 [B, L]
    lengths: np.ndarray  # int64 [B]

    def named(self) -> dict[str, np.ndarray]:
        """The inputs by transformers' names."""
        mask = (np.arange(self.ids.shape[1]) < self.lengths[:, None]).astype(np.int64)
        return {"input_ids": self.ids, "attention_mask": mask, "token_type_ids": self.segments}

    def tensors(self) -> dict[str, Tensor]:
        """`named` as tensors that share its memory."""
        return {name: torch.from_numpy(x) for name, x in self.named().items()}


class Peer(NamedTuple):
    """A library's inference: `scores` [B, 3] of what `prepare`, which is not timed on ids, makes of a bucket."""

    prepare: Callable[[Padded], Any]
    scores: Callable[[Any], np.ndarray]


class Problem:
    """A classifier of a given size, the same in every process; `folder` is for the files that peers export."""

    def __init__(self, shape: str, batch: int, folder: Path) -> None:
        self.batch, self.folder = batch, folder
        sizes = {**MODELS[shape], "max_len": 128, "pretraining_heads": False}
        self.config = BERTConfig.original(VOCAB_SIZE, **sizes)

    @cached_property
    def model(self) -> BERTClassifier:
        torch.manual_seed(0)
        model = BERTClassifier(BERTModel(self.config)).eval()
        with torch.no_grad():
            model.output.weight.mul_(20)  # scores as large as a trained model's
        return model

    def calibration(self) -> list[Padded]:
        """Buckets of pairs for peers that trace or calibrate a model."""
        return [bucket for _, bucket in Pairs(self.batch).buckets()]

    def write_vocabulary(self) -> Path:
        path = self.folder / "vocab.txt"
        path.write_text("\n".join(WORDS), encoding="utf-8")
        return path


class Pairs:
    """Pairs of SNLI's lengths and random tokens; a single pair has 27."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(1)
        self.lengths = np.array(snli_lengths(count) if count > 1 else [27])
        self.sequences = [rng.integers(1000, VOCAB_SIZE, n) for n in self.lengths]
        for ids, n in zip(self.sequences, self.lengths, strict=True):
            ids[0], ids[n // 2 - 1], ids[n - 1] = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[SEP]"))

    def texts(self) -> tuple[str, str]:
        """Premise and hypothesis whose tokens are the first sequence."""
        ids, middle = self.sequences[0], self.lengths[0] // 2
        return " ".join(WORDS[i] for i in ids[1 : middle - 1]), " ".join(WORDS[i] for i in ids[middle:-1])

    def encoded(self) -> EncodedTexts:
        ids = torch.from_numpy(np.concatenate(self.sequences).astype(np.int32))
        offsets = torch.from_numpy(np.cumsum([0, *self.lengths]))
        first = torch.from_numpy((self.lengths // 2).astype(np.int32))
        return EncodedTexts(ids, offsets, first, None, pad_id=0, max_len=128)

    def buckets(self) -> Iterator[tuple[np.ndarray, Padded]]:
        """Up to eight buckets of similar lengths: the sequences' indices, and their padded ids."""
        for index in np.array_split(np.argsort(self.lengths, kind="stable"), min(BUCKETS, len(self.lengths))):
            lengths = self.lengths[index]
            ids, segments = np.zeros((2, len(index), lengths.max()), np.int64)
            for i, sequence in enumerate(index):
                ids[i, : lengths[i]] = self.sequences[sequence]
                segments[i, lengths[i] // 2 : lengths[i]] = 1
            yield index, Padded(ids, segments, lengths)

    def run_from_ids(self, peer: Peer) -> Run:
        """The peer's scores [N, 3] of all pairs, in their order, from prepared buckets."""
        prepared = [(index, peer.prepare(bucket)) for index, bucket in self.buckets()]

        def run() -> np.ndarray:
            scores = np.empty((len(self.lengths), 3), np.float32)
            for index, inputs in prepared:
                scores[index] = peer.scores(inputs)
            return scores

        return run

    def run_from_text(self, peer: Peer, vocabulary: Path) -> Run:
        """The peer's probabilities [1, 3] of the first pair, from its two strings."""
        import tokenizers  # a peer's requirement, not the benchmark's

        encode = tokenizers.BertWordPieceTokenizer(str(vocabulary)).encode
        texts = self.texts()

        def run() -> np.ndarray:
            encoding = encode(*texts)
            ids, segments = np.array([encoding.ids]), np.array([encoding.type_ids])
            scores = peer.scores(peer.prepare(Padded(ids, segments, np.array([len(encoding.ids)]))))
            powers = np.exp(scores - scores.max())
            return np.asarray(powers / powers.sum())

        return run
