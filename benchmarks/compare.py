"""Two commits or checkouts of this package beside each other: is the newer one as fast?

    python benchmarks/compare.py OLD NEW [--processes 3] [--rounds 15] [--work inference training text] [--json FILE]

OLD and NEW are commits, which are checked out and built in runs/bench/checkouts, or folders of checkouts that are built
already. Each runs in a process of its own, in turns, on the same inputs; outputs must agree before anything is timed.
The ratio of a pair of processes is the median over the rounds of (time of NEW / time of OLD); below 1 the newer one is
faster. Two processes of the same code may differ by a tenth, by where their memory lies, so several pairs are run one
after the other: a figure is the median of the pairs' ratios, with its 95 % confidence interval by a bootstrap of pairs
and rounds. The exit status is 1 if an interval lies wholly above 1.05. Only public names are used, so that the
checkouts may differ in everything else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

# hidden, feed-forward, heads, layers
SHAPES = {"small": (256, 512, 4, 2), "minilm": (384, 1536, 12, 6)}
VOCABULARY = 30522
REGRESSION = 1.05  # a ratio above it is one
Job = tuple[int, Callable[[], Any]]  # how many runs make one timing, and the run


def snli_like(pairs: int, seed: int = 0) -> Any:
    """Random tokens in sequences of SNLI's lengths (mean 27 tokens), with labels of three classes."""
    import torch

    import bertnli

    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.normal(27, 8, pairs).round(), 9, 90).astype(np.int64) if pairs > 1 else np.array([27])
    ids = (rng.zipf(1.3, int(lengths.sum())) % (VOCABULARY - 1000) + 1000).astype(np.int32)
    offsets = np.concatenate([[0], lengths.cumsum()])
    first = (lengths // 2 + 1).astype(np.int32)
    labels = torch.from_numpy(rng.integers(0, 3, pairs))
    arrays = [torch.from_numpy(x) for x in (ids, offsets, first)]
    return bertnli.EncodedPairs(arrays[0], arrays[1], arrays[2], labels, pad_id=0, max_len=128)


def classifier(shape: str) -> Any:
    """A model of the original BERT's variant with random weights."""
    import torch

    import bertnli

    hidden, inner, heads, layers = SHAPES[shape]
    torch.manual_seed(0)
    config = bertnli.BERTConfig.original(
        VOCABULARY, num_hiddens=hidden, ffn_num_hiddens=inner, num_heads=heads, num_layers=layers, max_len=128,
        pretraining_heads=False,
    )  # fmt: skip
    return bertnli.BERTClassifier(bertnli.BERTModel(config), 3).eval()


def inference_jobs() -> dict[str, Job]:
    import bertnli

    def score(model: Any, data: Any, precision: str) -> Any:
        return bertnli.score(model, data, precision=precision).numpy()

    jobs: dict[str, Job] = {}
    for shape, pairs, precision, repeats in (
        ("small", 1, "fp32", 200),
        ("small", 1, "int8", 200),
        ("small", 512, "fp32", 2),
        ("small", 512, "int8", 2),
        ("minilm", 1, "fp32", 20),
        ("minilm", 128, "fp32", 1),
    ):
        model, data = classifier(shape), snli_like(pairs)
        jobs[f"score, {shape}, {pairs} pairs, {precision}"] = (
            repeats,
            partial(score, model, data, precision),
        )
    model, data = classifier("small"), snli_like(1)

    def alternate() -> Any:
        return np.concatenate([bertnli.score(model, data, precision=p).numpy() for p in ("fp32", "int8")])

    jobs["score, small, 1 pairs, fp32 and int8 in turn"] = (20, alternate)
    return jobs


def training_jobs() -> dict[str, Job]:
    import bertnli

    def steps(shape: str, pairs: int, count: int, **options: Any) -> Callable[[], Any]:
        data = snli_like(pairs * count)

        def run() -> Any:
            options.setdefault("batch_size", pairs)
            history = bertnli.fit(classifier(shape), data, epochs=1, progress=False, seed=1, **options)
            return np.array(history.losses)

        return run

    return {
        "train, small, 16 pairs a step": (1, steps("small", 16, 48)),
        "train, small, 32 pairs a step": (1, steps("small", 32, 32)),
        "train, small, 512 pairs a step": (1, steps("small", 512, 4)),
        "train, minilm, 32 pairs a step": (1, steps("minilm", 32, 4)),
    }


def text_jobs() -> dict[str, Job]:
    import torch

    import bertnli

    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 10))) for _ in range(20000)]
    draws = rng.zipf(1.2, 100_000 * 20) % len(words)
    texts = [" ".join(words[i] for i in row) for row in draws.reshape(-1, 10)]
    premises, hypotheses = texts[::2], texts[1::2]
    by_words = bertnli.WordTokenizer.from_texts(texts, 1)
    letters = [chr(97 + i) for i in range(26)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *words]
    pieces = bertnli.WordPieceTokenizer(list(dict.fromkeys(tokens)))
    encoded = by_words.encode_pairs(premises, hypotheses)
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(0))

    def checksum(data: Any) -> Any:
        return np.array([len(data.ids), int(data.ids.long().sum()), int(data.offsets.sum())])

    def batches() -> Any:
        return np.array([int(encoded.batch(order[i : i + 32]).input_ids.sum()) for i in range(0, 20_000, 32)])

    return {
        "encode 100,000 pairs, words": (1, lambda: checksum(by_words.encode_pairs(premises, hypotheses))),
        "encode 100,000 pairs, WordPiece": (1, lambda: checksum(pieces.encode_pairs(premises, hypotheses))),
        "encode 32 pairs, WordPiece": (200, lambda: checksum(pieces.encode_pairs(premises[:32], hypotheses[:32]))),
        "encode 100,000 pairs, padded": (1, lambda: pieces.encode_padded(premises, hypotheses)[0].sum().numpy()),
        "20,000 pairs to batches of 32": (1, batches),
    }


WORK = {"inference": inference_jobs, "training": training_jobs, "text": text_jobs}


def serve(pipe: Connection, checkout: str, works: list[str], match: str, threads: int) -> None:
    """Answer each job's name with its seconds; before that, once, with all jobs' outputs."""
    sys.path.insert(0, checkout)
    import torch

    import bertnli

    assert Path(bertnli.__file__).resolve().is_relative_to(Path(checkout).resolve()), bertnli.__file__
    torch.set_num_threads(threads)
    jobs = {name: job for work in works for name, job in WORK[work]().items() if match in name}
    pipe.send({name: job() for name, (_, job) in jobs.items()})
    while (name := pipe.recv()) is not None:
        repeats, job = jobs[name]
        begun = time.perf_counter()
        for _ in range(repeats):
            job()
        pipe.send((time.perf_counter() - begun) / repeats)


def measure(a: argparse.Namespace) -> dict[str, np.ndarray]:
    """The times [rounds, 2] of each job, in seconds, of a new pair of processes: OLD's and NEW's."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for checkout in (a.old, a.new):
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(there, checkout, a.work, a.match, a.threads), daemon=True))
        processes[-1].start()
        pipes.append(here)
    before, after = (pipe.recv() for pipe in pipes)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=2e-3, atol=2e-3, err_msg=name)
    found = {}
    for name in before:
        times = np.zeros((a.rounds + 1, 2))
        for turn, row in enumerate(times):
            for side in (0, 1) if turn % 2 else (1, 0):
                pipes[side].send(name)
                row[side] = pipes[side].recv()
        found[name] = times[1:]  # the first round warms up
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return found


def checkout_of(name: str) -> str:
    """The folder of a checkout, built in place: `name` itself, or one that is made of the commit `name`."""
    if Path(name, "bertnli").is_dir():
        return str(Path(name).resolve())
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        found = subprocess.run([*git, "rev-parse", "--verify", f"{name}^{{commit}}"], capture_output=True, check=True)
    except subprocess.CalledProcessError:
        sys.exit(f"{name}: neither a folder of a checkout nor a commit")
    commit = found.stdout.decode().strip()
    folder = root / "runs" / "bench" / "checkouts" / commit[:12]
    if not folder.exists():
        subprocess.run([*git, "worktree", "add", "--detach", str(folder), commit], check=True)
    if not list((folder / "bertnli").glob("_ops*.so")):
        print(f"building {name} in {folder}", flush=True)
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True)
    return str(folder)


def interval(pairs: list[np.ndarray]) -> tuple[float, float]:
    """The 95 % confidence interval of the median of the pairs' medians; `pairs` are their rounds' ratios."""
    rng = np.random.default_rng(0)
    drawn = [
        np.median([np.median(rng.choice(pairs[i], len(pairs[i]))) for i in rng.integers(len(pairs), size=len(pairs))])
        for _ in range(2000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="the older commit, or the folder of a checkout that is built in place")
    parser.add_argument("new", help="the newer one")
    parser.add_argument("--processes", type=int, default=3, help="pairs of processes, one after the other (default: 3)")
    parser.add_argument("--rounds", type=int, default=15, help="timings of a job in each process (default: 15)")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), help="what to run (default: all)")
    parser.add_argument("--match", default="", help="only jobs whose name has this text (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default: 2)")
    parser.add_argument("--json", type=Path, help="file that gets one JSON object a job appended")
    a = parser.parse_args()
    # As bertnli sets it where it is imported before torch. Threads that spin for long take time from the other process:
    # the second of two equal ones was a quarter slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    a.old, a.new = checkout_of(a.old), checkout_of(a.new)
    runs = [measure(a) for _ in range(a.processes)]
    print(f"{'':46} {'old, ms':>9} {'new, ms':>9} {'new/old':>8}  95 % interval")
    status = 0
    for name in runs[0]:
        old, new = 1e3 * np.median([np.median(run[name], 0) for run in runs], 0)
        ratios = [run[name][:, 1] / run[name][:, 0] for run in runs]
        ratio, (low, high) = float(np.median([np.median(r) for r in ratios])), interval(ratios)
        slower = low > REGRESSION
        status |= slower
        print(f"{name:46} {old:9.3f} {new:9.3f} {ratio:8.3f}  {low:.3f} to {high:.3f}{'  SLOWER' * slower}")
        if a.json is not None:
            with open(a.json, "a", encoding="utf-8") as file:
                row = {"job": name, "old_ms": old, "new_ms": new, "ratio": ratio, "ratio_low": low, "ratio_high": high}
                file.write(json.dumps(row) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
