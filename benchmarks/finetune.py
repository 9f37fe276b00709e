"""One contestant of bench_end_to_end.py in a process of its own: an SNLI file on disk to an evaluated model.

    python benchmarks/finetune.py PEER JSON

PEER is a module peers/finetune_*.py, JSON the fields of a Task. Prints one JSON object: accuracy, processor seconds,
peak memory in bytes, and seconds of the stages. Nothing of bertnli is imported here: a peer may have another torch.
"""

from __future__ import annotations

import csv
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

LABELS = ["entailment", "contradiction", "neutral"]


@dataclass
class Task:
    """What all contestants do: one epoch over the training pairs, then the accuracy on the test pairs."""

    data: str  # folder of snli_1.0_train.txt and snli_1.0_test.txt
    folder: str  # Hugging Face checkpoint of the encoder and its tokenizer
    model: str  # "small", which learns from random weights, or "minilm"
    precision: str
    pairs: int | None  # training pairs; None: all
    test_pairs: int | None
    threads: int
    seed: int
    batch_size: int = 32
    max_len: int = 128

    @property
    def lr(self) -> float:
        return 3e-4 if self.model == "small" else 5e-5

    def read(self, split: str) -> tuple[list[str], list[str], list[int]]:
        """Premises, hypotheses (sentence1, sentence2) and labels by Python; lines without a label are dropped."""
        with Path(self.data, f"snli_1.0_{split}.txt").open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            lines = [line for line in table if line["gold_label"] in LABELS][: self.limit(split)]
        first, second = ([line[name] for line in lines] for name in ("sentence1", "sentence2"))
        return first, second, [LABELS.index(line["gold_label"]) for line in lines]

    def limit(self, split: str) -> int | None:
        return self.pairs if split == "train" else self.test_pairs


class Stages:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._start = now - self._start, now


def main() -> None:
    from peers import load

    warnings.simplefilter("ignore")
    task, stages = Task(**json.loads(sys.argv[2])), Stages()
    run: Callable[[Task, Stages], float] = load(sys.argv[1]).build()
    stages.end("import")
    accuracy = run(task, stages)
    stages.end("evaluate")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = {
        "accuracy": accuracy,
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in used),
        "memory": next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")),
        **{f"{name}_seconds": seconds for name, seconds in stages.seconds.items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
