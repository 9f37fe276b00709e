"""Processes that fork or exit while threads exist, and how threads wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import ROOT

FORK = """
import os, signal
import torch
torch.set_num_threads(2)
from helpers.models import make_encoded, make_head
import bertnli

model, encoded = make_head(hidden=64, inner=128), make_encoded([60] * 100)
encoded.labels = torch.zeros(100, dtype=torch.int64)
tokenizer = bertnli.WordTokenizer.from_texts(["a man sleeps"], min_freq=1)
square = torch.rand(500, 500)

def work():  # every operator here shares its work among threads where it can
    outputs = bertnli.score(model, encoded)
    (square @ square).exp().sum()
    bertnli.fit(model, encoded, epochs=1, batch_size=50, progress=False)
    return outputs, bertnli.predict(model, tokenizer, ["a man"] * 3000, ["sleeps"] * 3000)

state = {name: value.clone() for name, value in model.state_dict().items()}
wanted = work()
for _ in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        model.load_state_dict(state)
        outputs, predictions = work()
        equal = torch.allclose(outputs, wanted[0]) and predictions[0].label == wanted[1][0].label
        os._exit(0 if equal and torch.get_num_threads() == 1 else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
assert torch.get_num_threads() == 2
"""

EXIT = """
import threading, time
import bertnli

tokenizer = bertnli.WordPieceTokenizer([*bertnli.WordPieceTokenizer.SPECIAL, "a", "word"])

def encode():  # `encode_pairs` makes tensors too, and PyTorch's own code aborts where it frees them
    while True:
        tokenizer.encode("a word " * 300)

for _ in range(4):
    threading.Thread(target=encode, daemon=True).start()
time.sleep(0.3)
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes() -> None:
    """It has none of its parent's OpenMP threads: it would wait for them forever."""
    done = python(FORK)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_exits_while_daemon_threads_encode() -> None:
    for _ in range(3):
        done = python(EXIT)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("first", "setting", "spin_count"),
    [
        ("", {}, "10000"),
        ("", {"GOMP_SPINCOUNT": "5"}, "5"),
        ("", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import torch", {}, "None"),
    ],
)
def test_threads_spin_shortly_unless_the_user_decides(first: str, setting: dict[str, str], spin_count: str) -> None:
    code = f"{first}\nimport os, bertnli; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | setting, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == spin_count
