"""What `train` and `distill` do to --output, and what is said and kept when a write fails."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.commands import run, tiny_bert

from bertnli import BERTClassifier, WordPieceTokenizer, save_pretrained
from bertnli.cli import main, training_run
from bertnli.data.locks import lock

WORDS = ["red", "green", "blue", "one"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"{a} {b},{'x' if a == 'red' else 'y'}\n" for a in WORDS for b in WORDS))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    torch.manual_seed(0)
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, *WORDS])
    save_pretrained(BERTClassifier(tiny_bert(len(tokenizer)), 2, ("x", "y")), tmp_path / "start", tokenizer)
    return tmp_path / "start"


def train(start: Path, table: Path, output: Path, *more: object) -> list[object]:
    reading = ["--text-columns", "text", "--label-column", "label"]
    options = ["--epochs", 2, "--batch-size", 4, "--quiet"]
    return ["train", "--model", start, "--train", table, *reading, *options, "--output", output, *more]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_into_one_folder_is_refused(
    start: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    distill = ["distill", "--teacher", start, *train(start, table, output)[3:], "--num-hiddens", 8, "--num-layers", 1]
    demo = ["demo", "--pairs", 8, "--epochs", 1, "--quiet", "--output", output]
    with lock(output / ".lock", output):
        for command in (train(start, table, output), distill, demo):
            status, out, err = run(*command, capsys=capsys)
            assert (status, out) == (2, "")
            assert err == (
                f"bertnli: error: {output} is in use: process {os.getpid()} writes it; wait until that ends, or name "
                "another output\n"
            )
    assert run(*train(start, table, output), capsys=capsys)[0] == 0
    assert content(output).keys() >= {"config.json", "metrics.jsonl", "model.safetensors", "vocab.txt"}
    assert not any(name.startswith(".") for name in content(output))


def test_a_model_is_replaced_only_when_told_to(
    start: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(*train(start, table, output), capsys=capsys)[0] == 0
    before = content(output)
    status, _, err = run(*train(start, table, output, "--seed", 1), capsys=capsys)
    assert (status, content(output)) == (2, before)
    assert "out/config.json is another run's: name another --output, or replace its model with --overwrite" in err
    status, _, err = run("demo", "--pairs", 8, "--quiet", "--output", output, capsys=capsys)
    assert (status, content(output)) == (2, before)
    assert "config.json is a model's, and not a demo's" in err
    assert run(*train(start, table, output, "--seed", 1, "--overwrite"), capsys=capsys)[0] == 0
    assert content(output)["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize("way", ["same", "relative", "link"])
def test_the_model_that_is_read_is_not_replaced_by_accident(
    way: str, start: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (start.parent / "link").symlink_to(start)
    monkeypatch.chdir(start.parent)
    output = {"same": start, "relative": Path("link/../start"), "link": Path("link")}[way]
    before = content(start)
    status, _, err = run(*train(start, table, output), capsys=capsys)
    assert (status, content(start)) == (2, before)
    assert f"--output {output} is the folder of --model, whose model would be replaced" in err
    status, _, err = run("distill", "--teacher", start, *train(start, table, output)[3:], capsys=capsys)
    assert (status, content(start)) == (2, before)
    assert "is the folder of --teacher" in err
    assert run(*train(start, table, output, "--overwrite"), capsys=capsys)[0] == 0
    assert content(start)["model.safetensors"] != before["model.safetensors"]


def test_an_interrupted_run_is_continued_or_replaced(
    start: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(*train(start, table, tmp_path / "whole"), capsys=capsys)[0] == 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for more in ([], ["--overwrite"]):
        shutil.rmtree(output, ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(training_run, "print_epoch", interrupt)
            status, _, err = run(*train(start, table, output), capsys=capsys)
        assert (status, err.count("\n")) == (130, 1)
        assert "out/training_state.pt: continue with --resume" in err
        assert list(content(output)) == ["training_state.pt"]
        status, _, err = run(*train(start, table, output, *more), capsys=capsys)
        assert status == (0 if more else 2)
        if not more:
            assert "is of an interrupted run: continue it with --resume, or remove it (--overwrite does)" in err
            assert run(*train(start, table, output, "--resume"), capsys=capsys)[0] == 0
        whole = content(tmp_path / "whole")
        assert content(output)["model.safetensors"] == whole["model.safetensors"]
        assert content(output).keys() == whole.keys()
    status, _, err = run(*train(start, table, tmp_path / "none", "--resume"), capsys=capsys)
    assert (status, (tmp_path / "none").exists()) == (2, False)
    assert "training_state.pt to resume" in err


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("place", ["state", "checkpoint"])
def test_a_full_disk_is_one_line_and_loses_no_epoch(
    place: str, start: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The second epoch's state, or the result, does not fit. Once there is room, --resume gives what a run gives."""
    output = tmp_path / "out"
    assert run(*train(start, table, tmp_path / "whole"), capsys=capsys)[0] == 0
    command = train(start, table, output)
    limit = file_size_limit(1000)
    epochs = []

    def fill_disk(*epoch: object) -> None:
        epochs.append(epoch)
        if len(epochs) == (1 if place == "state" else 2):
            limit.__enter__()

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "print_epoch", fill_disk)
        status = main([str(a) for a in command])
    limit.__exit__(None, None, None)
    err = capsys.readouterr().err
    file = "training_state.pt" if place == "state" else "model.safetensors"
    assert (status, err.count("\n")) == (2, 1), err
    assert re.search(rf"^bertnli: error: .*cannot write.*out/{file}.*; the run is saved in .*continue with", err)
    assert list(content(output)) == ["training_state.pt"]
    assert run(*command, "--resume", capsys=capsys)[0] == 0
    assert content(output)["model.safetensors"] == content(tmp_path / "whole")["model.safetensors"]


@pytest.mark.parametrize("error", ["read-only", "no space", "too small"])
def test_that_output_can_be_written_is_tried_first(
    error: str, start: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    monkeypatch.setattr(training_run, "print_epoch", lambda *_: pytest.fail("it trained"))
    if error == "read-only":
        output = Path("/proc/out")
    elif error == "too small":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with file_size_limit(0) if error == "no space" else file_size_limit(10**9):
        status = main([str(a) for a in train(start, table, output)])
    out, err = capsys.readouterr()
    assert (status, err.count("\n")) == (2, 1), err
    assert str(output) in err
    assert "epoch" not in out
    assert not output.exists()


def test_a_folder_that_vanishes_is_made_again(
    start: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    monkeypatch.setattr(training_run, "print_epoch", lambda *_: shutil.rmtree(output))
    status, _, err = run(*train(start, table, output), capsys=capsys)
    assert status == 0, err
    assert (output / "model.safetensors").exists()


@pytest.mark.parametrize("after", [0, 1])
def test_out_of_memory_is_one_line(
    after: int, start: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loss, calls = BERTClassifier.loss, []

    def greedy(self: BERTClassifier, *args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) > 4 * after:
            torch.empty(10**15)
        return loss(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(BERTClassifier, "loss", greedy)
    status, _, err = run(*train(start, table, tmp_path / "out"), capsys=capsys)
    assert (status, err.count("\n")) == (2, 1), err
    assert "out of memory: use a smaller --batch-size, --batch-tokens or --max-len" in err
    assert err.endswith("continue with --resume\n" if after else "; nothing was saved\n")


def test_predictions_before_a_bad_line_are_printed(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["red one", "green", "blue"]
    for bad, message in (("", "the line is empty"), ("a\tb\tc", "expected .*, found 3 fields")):
        (tmp_path / "in.txt").write_text("\n".join([*lines, bad, "one"]) + "\n")
        for size in (1, 2, 3, 256):
            status, out, err = run(
                "predict", "--model", start, "--input", tmp_path / "in.txt", "--batch-size", size, capsys=capsys
            )
            assert (status, out.count("\n")) == (2, 3)
            assert re.search(rf"in\.txt:4: {message}", err)


def test_standard_output_that_is_full_is_one_line(start: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("red one\n" * 5)
    command = [sys.executable, "-m", "bertnli", "predict", "--model", str(start), "--input", str(tmp_path / "in.txt")]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "No space left on device" in result.stderr


def test_a_name_to_download_is_not_looked_for_in_the_new_output(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*train(Path("bert.small"), table, Path("bert.small")), capsys=capsys)
    assert (status, Path("bert.small").exists()) == (2, False)
    assert "--output bert.small is the folder of --model" in err
