"""Inference on CPUs beside ONNX Runtime, OpenVINO, CTranslate2, PyTorch's dynamic int8 and `transformers`.

    python benchmarks/bench_inference.py [--shapes small minilm base] [--batch N] [--rounds 7] [--json FILE]

Every contestant has the same weights and scores the same pairs of SNLI's lengths, from token ids to scores of classes.
bertnli runs `score` on encoded pairs, batching included. The peers start from tensors that are padded already, in their
best shape: pairs sorted by length in eight buckets, each padded to its longest. Scores must agree with those of
`transformers` in float32, within the tolerance of the precision, before anything is timed.

A batch of one pair measures the latency, and is measured from the two strings to probabilities too: bertnli runs
`predict`, the peers get their ids from `tokenizers`.

Each contestant has a process of its own, so that no thread pool spins beside another. Contestants alternate, with
short pauses. A ratio is the median over rounds of (a peer's time / bertnli's time). A precision is compared with
the peers of the same or a better precision. A peer that cannot be built is named with the reason.

Requirements, all from the package index: onnx onnxruntime openvino nncf ctranslate2 tokenizers transformers.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, append_json, machine, median_ratio, seconds
from inference_problem import WORDS, Pairs, Problem, Run

from bertnli import WordPieceTokenizer, predict, score

BATCHES = {"small": 512, "minilm": 128, "base": 64}
PRECISIONS = ("fp32", "bf16", "int8")  # from the best to the coarsest
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "int8": 0.15}  # of the largest score
PEERS = [
    *("transformers fp32", "transformers bf16", "torch dynamic int8", "onnxruntime fp32", "onnxruntime int8"),
    *("openvino fp32", "openvino bf16", "openvino int8", "ctranslate2 fp32", "ctranslate2 bf16", "ctranslate2 int8"),
]
EXPORTS = ROOT / "runs" / "inference"  # the peers' files; remove the folder when a peer's version changes


def run_bertnli(problem: Problem, precision: str, pairs: Pairs, from_text: bool) -> Run:
    """bertnli's scores [N, 3] of encoded pairs, or its probabilities [1, 3] of two strings."""
    if not from_text:
        encoded = pairs.encoded()
        return lambda: score(problem.model, encoded, precision=precision, batch_size=1 << 20).numpy()
    tokenizer, texts = WordPieceTokenizer(WORDS), pairs.texts()

    def run() -> np.ndarray:
        (prediction,) = predict(problem.model, tokenizer, *texts, precision=precision)
        return np.array([list(prediction.probabilities.values())])

    return run


def worker(pipe: Connection, name: str, shape: str, threads: int) -> None:
    """Build a contestant, then answer on `pipe` until None is received.

    The first message is None, or why the contestant cannot be built. ("scores", batch, from_text) is answered with the
    scores of that work, ("seconds", calls) with the mean time of its calls.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    library, precision = name.rsplit(" ", 1)
    folder = EXPORTS / shape
    folder.mkdir(parents=True, exist_ok=True)
    problem = Problem(shape, BATCHES[shape], folder)
    with open(os.devnull, "w") as null, redirect_stdout(null), open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # contestants share exported files
        try:
            peer = None
            if library != "bertnli":
                peer = importlib.import_module(f"peers.{library.replace(' ', '_')}").build(problem, precision, threads)
            pipe.send(None)
        except Exception as error:
            reason = str(error).strip().splitlines()
            pipe.send(f"{type(error).__name__}: {reason[0][:160] if reason else ''}")
            return
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        while message := pipe.recv():
            if message[0] == "scores":
                pairs, from_text = Pairs(message[1]), message[2]
                if peer is None:
                    run = run_bertnli(problem, precision, pairs, from_text)
                elif from_text:
                    run = pairs.run_from_text(peer, problem.write_vocabulary())
                else:
                    run = pairs.run_from_ids(peer)
                pipe.send(run())
            else:
                pipe.send(sum(seconds(run) for _ in range(message[1])) / message[1])


class Contestant:
    """A library at a precision, "openvino bf16" say, in a process of its own."""

    def __init__(self, name: str, shape: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.name, self.precision = name, name.rsplit(" ", 1)[1]
        self.process = context.Process(target=worker, args=(other_end, name, shape, threads))
        self.process.start()
        other_end.close()

    def build_error(self) -> str | None:
        """Wait until the contestant is built; the reason if it cannot be."""
        try:
            return self.pipe.recv()  # type: ignore[no-any-return]
        except EOFError:
            return "the process ended"

    def scores(self, batch: int, from_text: bool) -> np.ndarray:
        self.pipe.send(("scores", batch, from_text))
        return np.asarray(self.pipe.recv())

    def seconds(self, calls: int) -> float:
        self.pipe.send(("seconds", calls))
        return float(self.pipe.recv())


@contextmanager
def started(shape: str, threads: int, peers: list[str]) -> Iterator[list[Contestant]]:
    """The contestants that can be built; the first is `transformers` in float32, the reference."""
    names = dict.fromkeys(["transformers fp32", *(f"bertnli {p}" for p in PRECISIONS), *peers])
    contestants = [Contestant(name, shape, threads) for name in names]
    built: list[Contestant] = []
    try:
        for c in contestants:
            if reason := c.build_error():
                print(f"  {c.name} is left out: {reason}", flush=True)
            else:
                built.append(c)
        yield built
    finally:
        for c in contestants:
            with suppress(OSError):  # a process that could not build its contestant has ended
                c.pipe.send(None)
        for c in contestants:
            c.process.join()


def agreeing(contestants: list[Contestant], batch: int, from_text: bool) -> list[Contestant]:
    """The contestants whose scores are within the tolerance of the first one's."""
    results = [(c, c.scores(batch, from_text)) for c in contestants]
    reference = results[0][1]
    errors = [(c, float(np.abs(scores - reference).max() / np.abs(reference).max())) for c, scores in results]
    for c, error in errors:
        if error > TOLERANCE[c.precision]:
            print(f"  {c.name} is left out: its scores differ by {error:.1e} of the largest", flush=True)
    return [c for c, error in errors if error <= TOLERANCE[c.precision]]


def compare(contestants: list[Contestant], rounds: int) -> list[dict[str, Any]]:
    """For each precision bertnli's milliseconds, and the ratios of the peers of the same or a better precision."""
    calls = {c.name: max(1, round(0.1 / c.seconds(1))) for c in contestants}
    times: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(rounds):
        for c in contestants:
            time.sleep(0.1)  # threads of the previous contestant go to sleep: ONNX Runtime's spin for some 30 ms
            if calls[c.name] > 1:
                c.seconds(1)
            times[c.name].append(c.seconds(calls[c.name]))
    rows = []
    for i, precision in enumerate(PRECISIONS):
        reference = times.get(f"bertnli {precision}")
        if reference is None:  # left out by `agreeing`
            continue
        ratios = {
            c.name: median_ratio(times[c.name], reference)
            for c in contestants
            if not c.name.startswith("bertnli") and c.precision in PRECISIONS[: i + 1]
        }
        ratios = dict(sorted(ratios.items(), key=lambda item: item[1]))
        rows.append({"precision": precision, "ms": statistics.median(reference) * 1e3, "ratios": ratios})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--shapes", nargs="+", choices=BATCHES, default=list(BATCHES), help="model sizes (default: all)")
    add("--batch", type=int, nargs="+", help="pairs in a batch (default: 512, 128 or 64 by model size, and 1)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: PyTorch's)")
    add("--rounds", type=int, default=7, help="timed rounds; 0 only exports and checks scores (default: 7)")
    add("--peers", nargs="+", default=PEERS, choices=PEERS, help="libraries to compare with (default: all)")
    add("--json", type=Path, help="file to append the figures to, one JSON object a line")
    args = parser.parse_args()
    about = {"machine": machine(args.threads), "threads": args.threads}
    print(about["machine"])
    for shape in args.shapes:
        batches = args.batch or [BATCHES[shape], 1]
        with started(shape, args.threads, args.peers) as built:
            for batch, from_text in [(b, t) for b in batches for t in (False, True) if b == 1 or not t]:
                contestants = agreeing(built, batch, from_text)
                work = {"shape": shape, "batch": batch, "from": "text" if from_text else "ids"}
                print(f"{shape}, {batch} from {work['from']}: {len(contestants)} contestants agree", flush=True)
                timed = [c for c in contestants if c.name.startswith("bertnli") or c.name in args.peers]
                for row in compare(timed, args.rounds) if args.rounds else []:
                    ratios = "  ".join(f"{name} x{x:.2f}" for name, x in row["ratios"].items())
                    print(f"  {row['precision']} bertnli {row['ms']:9.3f} ms   {ratios}", flush=True)
                    append_json(args.json, [{**about, **work, **row}])


if __name__ == "__main__":
    main()
