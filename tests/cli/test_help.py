"""The command line before anything runs: help, version, completion, and what they import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from helpers import ROOT
from helpers.commands import run

import bertnli
from bertnli.checkpoint import sentence_transformers
from bertnli.cli import options
from bertnli.cli.group import cli
from bertnli.data import download
from bertnli.data.snli import Columns
from bertnli.encoder.config import SIZES
from bertnli.tasks.base import HEADS
from bertnli.text.tokenizer import Truncation


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    """Help, the version and errors come in a fraction of a second: no torch, numpy or tqdm."""
    lines = [[], ["--version"], *([name, "--help"] for name in cli.commands), ["train", "--modle", "x"]]
    code = (
        "import sys\nfrom bertnli.cli import main\n"
        f"for line in {lines}:\n"
        "    try:\n        main(line)\n    except SystemExit:\n        pass\n"
        "print('imported', *sys.modules)"
    )
    imported = set(python(code).splitlines()[-1].split())
    assert imported >= {"imported", "bertnli.training.options"}
    assert not imported & {"torch", "numpy", "tqdm", "bertnli._text", "bertnli._ops"}


def test_choices_are_those_of_the_library() -> None:
    own = {name for name, head in HEADS.items() if head.__module__.startswith("bertnli.")}
    assert set(options.TASKS) == own - {"embedding"}  # sentence vectors are not trained
    assert tuple(SIZES) == options.SCRATCH_SIZES
    assert get_args(Truncation) == options.TRUNCATIONS
    assert get_args(Columns) == options.SNLI_COLUMNS
    assert tuple(download.DATA_HUB) == options.DOWNLOADS
    assert set(options.POOLINGS) == set(sentence_transformers._POOLING.values())


@pytest.mark.parametrize("name", cli.commands)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option is under a heading, explained, and the examples are command lines that parse."""
    command = cli.commands[name]
    status, out, err = run(name, "--help", capsys=capsys)
    assert (status, err) == (0, "")
    for param in command.params:
        assert max(param.opts, key=len) in out or param.name == "name"
        assert getattr(param, "help", None), param.name
    assert out.count("Options:") == 1  # that of --help
    examples = str(command.epilog).split("\n\n")[1:]
    assert examples
    for example in examples:
        ((other, found),) = re.findall(r"bertnli ([\w-]+) ?(.*)", example)
        flags = set(re.findall(r"(?<= )--[\w-]+", f" {found}"))
        assert flags <= {opt for param in cli.commands[other].params for opt in param.opts}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys=capsys) == (0, f"bertnli {bertnli.__version__}\n", "")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("bertnli ev", "plain,evaluate"),
        ("bertnli train --prec", "plain,--precision"),
        ("bertnli train --precision b", "plain,bf16"),
        ("bertnli train --train d", "file,d"),
    ],
)
def test_completion(typed: str, expected: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_BERTNLI_COMPLETE": "bash_complete"}
    code = "import sys; sys.argv = ['bertnli']; from bertnli.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **words},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout.splitlines()


def test_nearest_path(tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for typed, nearest in (("runs/demo", "runs/demo"), ("runs/dmeo", "runs/demo"), ("rusn/dmo", "runs/demo"),
                           ("runs/zzz", None), ("q/zzz", None), ("runs/demo/x", None)):  # fmt: skip
        found = options.nearest_path(tmp_path / typed)
        assert found == (None if nearest is None else tmp_path / nearest)
