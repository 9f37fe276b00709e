"""Running commands in this process, and small jobs of every task."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bertnli import BERTConfig, BERTModel
from bertnli.cli import main
from helpers import ROOT

LABELS = ["entailment", "contradiction", "neutral"]


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def shell(folder: Path, command: str) -> str:
    """Standard output of a command line in a process of its own, where `bertnli` is this checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = re.sub(r"(^|\| )bertnli ", rf"\1{sys.executable} -m bertnli ", command)
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def tiny_bert(vocab_size: int) -> BERTModel:
    return BERTModel(BERTConfig(vocab_size, num_hiddens=8, ffn_num_hiddens=8, num_heads=1, num_layers=1))


def task_jobs(folder: Path) -> dict[str, tuple[list[str], str, str, dict[str, object]]]:
    """Of each task: options of a small job, its training file, a line to predict, and the same as JSON."""
    rng = random.Random(0)
    words = ["red", "green", "blue", "one", "two"]
    texts = [" ".join(rng.choices(words, k=4)) for _ in range(60)]
    (folder / "single.csv").write_text("text,kind\n" + "".join(f"{t},{'ab'['red' in t]}\n" for t in texts))
    (folder / "scores.tsv").write_text("".join(f"{t}\t{t[::-1]}\t{t.count('red')}.5\n" for t in texts))
    (folder / "tags.conll").write_text(
        "".join("".join(f"{w}\t{'B-c' if w == 'red' else 'O'}\n" for w in t.split()) + "\n" for t in texts)
    )
    qas = [{"id": str(i), "question": "which colour?", "answers": [{"answer_start": t.find(t.split()[1]),
            "text": t.split()[1]}]} for i, t in enumerate(texts)]  # fmt: skip
    paragraphs = [{"context": t, "qas": [qa]} for t, qa in zip(texts, qas, strict=True)]
    (folder / "squad.json").write_text(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}))
    table = ["--text-columns", "text", "--label-column", "kind"]
    return {
        "classification": (table, "single.csv", "red one", {"text": "red one"}),
        "regression": (["--text-columns", "1,2", "--label-column", "3"], "scores.tsv", "red one\teno",
                       {"premise": "red one", "hypothesis": "eno"}),
        "tagging": ([], "tags.conll", "red one", {"words": ["red", "one"]}),
        "qa": ([], "squad.json", "which?\tred one", {"question": "which?", "context": "red one"}),
    }  # fmt: skip
