"""What the command takes from the process it runs in: locale, `torchrun`, threads; and what the CPU cannot do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.commands import run, tiny_bert
from helpers.evaluations import accuracies, pretend

from bertnli import BERTClassifier, WordPieceTokenizer, ops, save_pretrained
from bertnli.training import loop
from bertnli.training.resume import write_state


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier whose classes have names that are not ASCII."""
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    save_pretrained(BERTClassifier(tiny_bert(len(tokenizer)), 2, ("café", "日本")), tmp_path / "model", tokenizer)
    (tmp_path / "data.tsv").write_text("red\tcafé\ngreen\t日本\n", encoding="utf-8")
    return tmp_path / "model"


def command(*arguments: str | Path, environment: dict[str, str], text: str = "") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bertnli", *map(str, arguments)],
        input=text.encode(),
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )


def test_output_is_utf_8_whatever_the_locale(model: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("predict", "--model", model, environment=environment, text="red\ngreen\n")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.decode("utf-8").splitlines():
        assert list(json.loads(line)["probabilities"]) == ["café", "日本"]
        assert "café" in line
    done = command("predict", "--model", "nulle-part-é", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert "nulle-part-é" in done.stderr.decode("utf-8")


def test_commands_that_do_not_train_wait_for_no_other_process(model: Path) -> None:
    """A script under `torchrun` may run them in one of its processes."""
    environment = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = command("predict", "--model", model, environment=environment, text="red\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    reading: list[str | Path] = ["--data", model.parent / "data.tsv", "--text-columns", "1", "--label-column", "2"]
    done = command("evaluate", "--model", model, *reading, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 2


def test_threads(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    (model.parent / "in").write_text("red\n")
    predict = ["predict", "--model", model, "--input", model.parent / "in"]
    assert run(*predict, "--threads", 3, capsys=capsys)[0] == 0
    assert run(*predict, capsys=capsys)[0] == 0
    assert given == [3]


def test_a_precision_that_is_not_used_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = ["--text-columns", "1", "--label-column", "2"]
    train = ["train", "--model", model, "--train", tmp_path / "data.tsv", *reading, "--epochs", 1, "--quiet"]
    evaluate = ["evaluate", "--model", model, "--data", tmp_path / "data.tsv", *reading]
    for able in (False, True):
        monkeypatch.setattr(ops, "cpu_multiplies_bf16", lambda able=able: able)
        monkeypatch.setattr(ops, "cpu_isa", lambda able=able: "amx" if able else "plain")
        for precision in ("fp32", "bf16"):
            told = precision == "bf16" and not able
            if told or precision == "fp32":  # bfloat16 products of PyTorch take long where they are not fast
                output = tmp_path / f"{able}-{precision}"
                status, out, err = run(*train, "--output", output, "--precision", precision, capsys=capsys)
                assert status == 0, err
                assert out.count("no fast bfloat16 products: bf16 runs in fp32") == told
            status, _, err = run(*evaluate, "--precision", precision, capsys=capsys)
            assert status == 0, err
            assert err.count("no bfloat16 instructions: bf16 rounds the weights, products run in fp32") == told


def test_the_kept_epoch_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data.tsv"
    data = ["--train", file, "--dev", file, "--text-columns", "1", "--label-column", "2"]
    for name, scores, more, told in (
        ("earlier", [0.5, 0.75, 0.5], (), True),
        ("last", [0.25, 0.5, 0.75], (), False),
        ("none", [0.5, 0.75, 0.5], ("--no-keep-best",), False),
    ):
        pretend(monkeypatch, accuracies(scores))
        train = ["train", "--model", model, *data, "--epochs", 3, "--output", tmp_path / name, "--quiet", *more]
        status, out, err = run(*train, capsys=capsys)
        assert status == 0, err
        assert out.count("kept the weights of epoch 2, whose dev accuracy is the best: 0.7500") == told
        assert out.count("kept the weights") == told


def test_sigterm_says_what_is_saved(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_kill(*arguments: Any) -> None:
        write_state(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "write_state", write_and_kill)
    reading: list[str | Path] = ["--train", model.parent / "data.tsv", "--text-columns", "1", "--label-column", "2"]
    with pytest.raises(SystemExit) as ended:
        run("train", "--model", model, *reading, "--output", tmp_path / "out", "--epochs", 3, "--quiet", capsys=capsys)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "bertnli: terminated: " in (err := capsys.readouterr().err)
    assert "--resume" in err
