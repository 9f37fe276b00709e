"""Memory of the text stage, and its speed on inputs made to be slow: parts of bench_text.py."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, SNLI, minilm_folder
from text_problem import Work, pairs, piece

from bertnli.text.wordpiece import WordPieceTokenizer

# The peak is the process's own, from a mark on: a child's ru_maxrss begins with its parent's.
PEAK = """
def mark():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
"""
MEMORY = """
import sys
sys.path[:0] = [{root!r}]
from bertnli.data.snli import read_pairs
from bertnli.text.wordpiece import WordPieceTokenizer
tokenizer = WordPieceTokenizer.from_file({vocab!r})
tokenizer.encode_texts(["a"])
if {strings}:
    data = read_pairs({path!r}, "text")
    sides = list(data.first), list(data.second)
    del data
before = mark()
if {strings}:
    pairs = tokenizer.encode_pairs(*sides, num_threads={threads})
else:
    pairs = tokenizer.encode_file({path!r}, columns="text", num_threads={threads})
own = sum(t.numel() * t.element_size() for t in (pairs.ids, pairs.offsets, pairs.first_lens))
print(len(pairs), own, peak() - before)
"""


def memory() -> dict[str, Any]:
    """550,000 pairs of SNLI's training subset, repeated: what the result takes and what was needed, in bytes."""
    lines = (SNLI / "snli_1.0_train.txt").read_bytes().splitlines(keepends=True)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.txt"
        body = lines[1:]
        path.write_bytes(b"".join([lines[0], *(body * 26)[:550_000]]))
        size = path.stat().st_size
        for strings in (False, True):
            for threads in (1, 2):
                script = PEAK + MEMORY.format(
                    root=str(ROOT),
                    vocab=str(minilm_folder() / "vocab.txt"),
                    path=str(path),
                    threads=threads,
                    strings=strings,
                )
                run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
                rows, own, peak = map(int, run.stdout.split())
                name = f"from {'str' if strings else 'a file'}, {threads} thread"
                out[name] = {"pairs": rows, **({} if strings else {"file": size}), "result": own, "peak": peak}
    return out


def adversarial() -> dict[str, Any]:
    """Megabytes a second; memory beyond the result (and a window of the file); a byte's time beside ordinary text's."""
    rng = random.Random(0)
    line = "the quick brown fox "

    def hexadecimal() -> list[str]:
        return [" ".join(f"{rng.getrandbits(40):x}" for _ in range(20)) for _ in range(100_000)]

    def invented() -> list[str]:
        return [" ".join("".join(rng.choices("etaoinshrdlu", k=6)) for _ in range(20)) for _ in range(100_000)]

    inputs: dict[str, tuple[int, Callable[[], list[str]]]] = {
        "ordinary": (1 << 30, lambda: [f"{a} {b}" for a, b in zip(*pairs("train", "text", 100_000), strict=True)]),
        "2,000,000 distinct numbers": (1 << 30, hexadecimal),
        "2,000,000 distinct words": (1 << 30, invented),
        "words of 10 MB": (1 << 30, lambda: ["a" * 10_000_000, "\u00e9" * 5_000_000]),
        "one line of 1 GB": (1 << 30, lambda: [line * 50_000_000]),
        "one line of 1 GB, cut to 128": (128, lambda: [line * 50_000_000]),
        "only punctuation": (1 << 30, lambda: ["." * 100 for _ in range(50_000)]),
    }
    scope: dict[str, Any] = {}
    exec(PEAK, scope)
    out = {}

    def seconds(work: Work) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    ordinary: tuple[int, Work] | None = None

    def run(name: str, size: int, held: int, work: Work) -> None:
        nonlocal ordinary
        work()  # (the cache is full of this text, or not)
        before, times = scope["mark"](), []
        for _ in range(3 if size < 10**8 else 1):
            begin = time.perf_counter()
            encoded = work()
            times.append(time.perf_counter() - begin)
            tokens = len(encoded.ids)
            del encoded
        out[name] = {
            "MB_a_second": size / min(times) / 1e6,
            "ns_a_token": min(times) / max(1, tokens) * 1e9,
            "tokens": tokens,
            "growth_beyond_result_MB": max(0, scope["peak"]() - before - 4 * tokens - held) / 1e6,
        }
        ordinary = ordinary or (size, work)
        if size < 10**8:
            turns = [seconds(work) / size / (seconds(ordinary[1]) / ordinary[0]) for _ in range(7)]
            out[name]["times_ordinary_a_byte"] = statistics.median(turns)
        print(name, out[name], flush=True)

    for name, (limit, make) in inputs.items():
        texts, tokenizer = make(), WordPieceTokenizer(piece().tokens)
        size = sum(len(text.encode()) for text in texts[:2]) if len(texts) <= 2 else sum(map(len, texts))
        run(name, size, 0, lambda t=texts, k=tokenizer, n=limit: k.encode_texts(t, n, num_threads=1))
        del texts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line.txt"
        with path.open("w") as file:
            file.write("label\tpremise\thypothesis\nneutral\t")
            for _ in range(500):
                file.write(line * 100_000)
            file.write("\tthe fox\n")
        size = path.stat().st_size
        run("a file with a line of 1 GB", size, size, lambda: piece().encode_file(path, 128, num_threads=1))
    return out
