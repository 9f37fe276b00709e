"""What the benchmarks of the text stage share: SNLI's pairs, bertnli's tokenizers, and the timing of contestants."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from common import SNLI, minilm_folder

from bertnli.data.snli import read_snli
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

MAX_LEN = 128
FEW = 2000  # pairs for slow peers
Work = Callable[[], Any]
Sides = tuple[list[str], list[str]]  # premises, hypotheses


@cache
def pairs(data: str, columns: str, count: int) -> Sides:
    """`count` pairs of "train", or of "dev + test" (whose premises repeat), each string a separate object."""
    sides: Sides = ([], [])
    for split in ("train",) if data == "train" else ("dev", "test"):
        for side, texts in zip(sides, read_snli(SNLI, split=split, columns=columns)[:2], strict=True):
            side.extend(texts)
    times = -(-count // len(sides[0]))
    return tuple([text.encode().decode() for text in (side * times)[:count]] for side in sides)  # type: ignore[return-value]


@cache
def piece() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(minilm_folder() / "vocab.txt")


@cache
def words() -> WordTokenizer:
    lines = [text.lower().split() for side in pairs("train", "parse", 21_605) for text in side]
    return WordTokenizer(Vocab(lines, min_freq=2, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))


def measure(contestants: dict[str, tuple[int, Work]], rounds: int = 7) -> dict[str, dict[str, float]]:
    """{name: nanoseconds a pair, and how many times as long as the first contestant}, medians over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    for round_ in range(rounds + 1):  # the first is to warm up
        for name, (n, work) in contestants.items():
            begin = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - begin
            del result
            if round_:
                times[name].append(seconds / n)
    reference = next(iter(times.values()))
    return {
        name: {
            "ns_a_pair": statistics.median(t) * 1e9,
            "ratio": statistics.median(a / b for a, b in zip(t, reference, strict=True)),
        }
        for name, t in times.items()
    }


def interleaved(sides: tuple[list[str], list[str]]) -> list[str]:
    return [text for pair in zip(*sides, strict=True) for text in pair]
