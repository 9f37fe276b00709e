"""How time and memory grow with threads, batch, length, vocabulary and file.

    pytest benchmarks/bench_scaling.py [--quick] [-k lengths]

Each size is a record of its own; the page of report.py draws the times over the sizes, with the exponent of the power
that fits them: 1 is linear. Sequences of one length have no padding: beside transformers they show the length at which
packing alone stops paying, since nothing is left of it but the operators.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from common import ROOT, RUNS, snli_lengths

from bertnli import BERTClassifier, EncodedTexts, score
from bertnli.bench import training
from bertnli.bench import transformers as peer
from bertnli.bench.machine import versions_of
from bertnli.bench.measure import classifier, random_pairs, tokenizer_for
from bertnli.bench.race import Contestant, Race, records

VOCAB_SIZE, TOKENS = 30522, 4096
THREADS = (1, 2, 4, 8, 16)
PAIRS = (1, 4, 16, 64, 256, 1024)
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
VOCABULARIES = (1_000, 10_000, 50_000, 250_000)
LINES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)


def pairs_of(lengths: Sequence[int], vocab_size: int = VOCAB_SIZE) -> EncodedTexts:
    """Random tokens, half of each row the first text."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab_size, (sum(lengths),), dtype=torch.int32, generator=generator)
    offsets, lens = torch.tensor([0, *lengths]).cumsum(0), torch.tensor(lengths, dtype=torch.int32)
    labels = torch.arange(len(lengths)) % 3
    return EncodedTexts(ids, offsets, lens // 2, labels, pad_id=0, max_len=512)


def few(sizes: Sequence[int], settings: Any, count: int = 3) -> Sequence[int]:
    return sizes[:count] if settings.quick else sizes


def scorers(head: BERTClassifier, data: EncodedTexts) -> list[Contestant]:
    """bertnli in its precisions, and transformers in groups of 64 sequences of similar lengths."""
    theirs, versions = peer.equal_model(head).eval(), versions_of(("transformers",))
    return [
        *(Contestant("bertnli", p, partial(score, head, data, precision=p)) for p in ("fp32", "bf16", "int8")),
        Contestant("transformers", "fp32", partial(peer.scores_of, theirs, data), versions=versions),
    ]


@contextmanager
def steppers(
    model: str, data: EncodedTexts, vocab_size: int, batches: list[torch.Tensor]
) -> Iterator[list[Contestant]]:
    """Steps with dropout 0.1 and the optimizer's; transformers pads to the longest of the batch."""
    own = training.BertnliLoop(classifier(model, vocab_size), data)
    theirs = peer.equal_model(classifier(model, vocab_size))
    plain = training.PlainLoop(theirs, data, peer.forward_of(theirs, data))
    loops = {"bertnli": own, "transformers": plain}
    try:
        yield [training.contestant(name, loop, batches) for name, loop in loops.items()]
    finally:
        own.end()


@pytest.mark.parametrize("threads", THREADS)
def test_threads(contest: Any, settings: Any, threads: int) -> None:
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("more threads than cores")
    head, data = classifier("minilm"), pairs_of(snli_lengths(128))
    torch.set_num_threads(threads)
    try:
        contest("scores by threads", [Contestant("bertnli", "fp32", partial(score, head, data))], size=threads)
    finally:
        torch.set_num_threads(settings.threads)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("model", ["small", "minilm"])
def test_batch(contest: Any, settings: Any, model: str, pairs: int) -> None:
    if pairs not in few(PAIRS, settings):
        pytest.skip("left out by --quick")
    head, data = classifier(model), pairs_of(snli_lengths(pairs))
    theirs = peer.equal_model(head).eval()
    contestants = [
        *(
            Contestant("bertnli", p, partial(score, head, data, precision=p, batch_size=pairs))
            for p in ("fp32", "int8")
        ),
        Contestant(
            "transformers", "fp32", partial(peer.scores_of, theirs, data), versions=versions_of(("transformers",))
        ),
    ]
    contest("scores by pairs", contestants, model=model, size=pairs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("model", ["minilm", "base"])
def test_lengths(contest: Any, settings: Any, model: str, length: int) -> None:
    """Of all 4,096 tokens (BERT-base: 1,024) in rows of one length."""
    if settings.quick and (model == "base" or length not in LENGTHS[2:6:3]):
        pytest.skip("left out by --quick")
    head, data = classifier(model), pairs_of([length] * max(1, TOKENS // (4 if model == "base" else 1) // length))
    contest("scores by length", scorers(head, data), model=model, size=length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("model", ["minilm", "base"])
def test_training_lengths(contest: Any, settings: Any, model: str, length: int) -> None:
    """A step of the same tokens, with dropout 0.1 and the optimizer's step."""
    if settings.quick and (model == "base" or length not in LENGTHS[2:6:3]):
        pytest.skip("left out by --quick")
    data = pairs_of([length] * max(1, TOKENS // (4 if model == "base" else 1) // length))
    with steppers(model, data, VOCAB_SIZE, [torch.arange(len(data))]) as contestants:
        contest("training step by length", contestants, model=model, size=length)


@pytest.mark.parametrize("size", VOCABULARIES)
def test_vocabulary(contest: Any, settings: Any, size: int) -> None:
    """A step of 32 pairs: the optimizer must not touch the rows of the table that no pair has."""
    if size not in few(VOCABULARIES, settings):
        pytest.skip("left out by --quick")
    data = pairs_of(snli_lengths(32 * 16), size)
    with steppers("small", data, size, training.shuffled(data, 32, 16)) as contestants:
        contest("training step by vocabulary", contestants, model="small", size=size)


ENCODE = """
import resource, sys, time
import bertnli, torch
torch.set_num_threads(int(sys.argv[3]))
tokenizer = bertnli.WordPieceTokenizer.from_file(sys.argv[2])
start = time.perf_counter()
data = tokenizer.encode_file(sys.argv[1])
print(time.perf_counter() - start, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(data))
"""


@pytest.mark.parametrize("lines", LINES)
def test_file(contest: Any, benchmark: Any, settings: Any, lines: int) -> None:
    """A file of SNLI's layout to ids, each time in a process of its own; memory is the whole process's at its peak."""
    if lines not in few(LINES, settings):
        pytest.skip("left out by --quick")
    path, vocabulary = write_lines(lines), RUNS / "scaling_vocab.txt"
    try:

        class Encode(Contestant):
            def seconds(self, count: int) -> list[float]:
                command = [sys.executable, "-c", ENCODE, str(path), str(vocabulary), str(settings.threads)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                taken, memory, found = map(float, done.stdout.split())
                assert found == lines
                self.memory = max(self.memory or 0, int(memory))
                return [taken]

        own = Encode("bertnli", "exact", lambda: None)
        benchmark.pedantic(Race([own], warm=False, calls=1).turn, (own,), rounds=3)
        contest.add(records("scaling", "file to ids by lines", [own], {}, {"size": lines}, settings.threads))
    finally:
        path.unlink()


def write_lines(count: int) -> Path:
    """A file of `count` pairs in SNLI's layout, 50,000 different ones, and the vocabulary of their words beside it."""
    RUNS.mkdir(parents=True, exist_ok=True)
    first, second = random_pairs(50_000)
    tokens = tokenizer_for([*first, *second]).tokens
    (RUNS / "scaling_vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    names = ("gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
    path = RUNS / f"scaling_{count}.txt"
    with path.open("w", encoding="utf-8") as file:
        file.write("\t".join((*names, "sentence1", "sentence2")) + "\n")
        for i in range(count):
            label, pair = ("entailment", "neutral", "contradiction")[i % 3], i % len(first)
            file.write(f"{label}\t\t\t\t\t{first[pair]}\t{second[pair]}\n")
    return path
