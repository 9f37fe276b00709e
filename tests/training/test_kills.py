"""Runs that are killed at random moments and continued: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch
from helpers.commands import tiny_bert

from bertnli import BERTClassifier, WordPieceTokenizer, save_pretrained
from bertnli.cli import main, training_run

WORDS = ["red", "green", "blue", "one"]
KILLS = 50


def child(arguments: list[str]) -> int:
    """Run a command in a forked process; its number."""
    number = os.fork()
    if number == 0:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            os._exit(main(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    return number


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking a process with threads
def test_fifty_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "write_report", lambda *_, **__: None)  # drawing takes longer than the training
    torch.manual_seed(0)
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, *WORDS])
    save_pretrained(BERTClassifier(tiny_bert(len(tokenizer)), 2, ("x", "y")), tmp_path / "start", tokenizer)
    table = tmp_path / "train.csv"
    table.write_text("text,label\n" + "".join(f"{a} {b},{'x' if a == 'red' else 'y'}\n" for a in WORDS for b in WORDS))
    common = ["train", "--model", str(tmp_path / "start"), "--train", str(table), "--dev", str(table)]
    common += ["--text-columns", "text", "--epochs", "3", "--batch-size", "4", "--quiet", "--no-keep-best"]
    common += ["--eval-steps", "3", "--save-steps", "1"]

    def arguments(output: Path) -> list[str]:
        resume = ["--resume"] if (output / "training_state.pt").exists() else []
        return [*common, "--output", str(output), *resume]

    assert main(arguments(tmp_path / "whole")) == 0  # here, so that the children need not import anything
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    rng, kills, runs, left, seconds = random.Random(0), 0, 0, 0, 1.0
    while kills < KILLS:
        output, started = tmp_path / f"run{runs}", time.perf_counter()
        number = child(arguments(output))
        time.sleep(rng.uniform(0, seconds))
        os.kill(number, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(number, 0)[1]):
            kills += 1
            seconds *= 1.02
            left += sum(path.name.endswith(".bertnli.tmp") for path in output.glob(".*"))
        else:
            seconds = 0.7 * (time.perf_counter() - started)
        if kills == KILLS or (output / "metrics.jsonl").exists():
            runs += 1
            check(output, whole, arguments(output))
    print(f"{kills} kills in {runs} runs left {left} temporary files, which the next runs removed")


def check(output: Path, whole: dict[str, bytes], arguments: list[str]) -> None:
    """The run's files, once it is done, are those of a run that was not killed, and no others."""
    if not (output / "metrics.jsonl").exists() or (output / ".lock").exists():  # killed, perhaps while it cleaned up
        assert os.waitpid(child([*arguments, "--overwrite"]), 0)[1] == 0
    found = {path.name: path.read_bytes() for path in output.iterdir()}
    assert found.keys() == whole.keys()
    assert found["model.safetensors"] == whole["model.safetensors"]
    assert found["config.json"] == whole["config.json"]
