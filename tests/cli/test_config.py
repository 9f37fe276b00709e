"""`--config`: a run's own configuration repeats it, and mistakes in a file are named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import run
from helpers.tiny_tasks import PIECES, teacher
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bertnli import WordPieceTokenizer, __version__, from_pretrained, save_pretrained
from bertnli.cli.config import read_toml, run_toml
from bertnli.cli.group import parse


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments of a small run in the current folder, with more options than defaults."""
    monkeypatch.chdir(tmp_path)
    save_pretrained(teacher(), "start", WordPieceTokenizer(PIECES))
    rows = "".join(f"red {a} one\t{a}\t{label}\n" for a in ("red", "green", "blue") for label in ("none", "some"))
    Path("data.tsv").write_text(f"a\tb\tl\n{rows}")
    return ["--model", "start", "--train", "data.tsv", "--dev", "data.tsv", "--text-columns", "a,b", "--label-column",
            "l", "--labels", "none,some", "--epochs", 2, "--batch-size", 2, "--lr", 2e-3, "--seed", 3, "--freeze", 1,
            "--no-keep-best", "--dropout", 0.1, "--quiet"]  # fmt: skip


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def assert_equal(one: str, other: str, expected: bool = True) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first) == expected


def test_a_run_is_repeated_bit_for_bit(start: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *start, "--output", "one", capsys=capsys)[0] == 0
    recorded = read_toml(Path("one/run.toml").read_text())
    assert recorded["command"] == "train"
    assert recorded["version"] == __version__
    assert (recorded["seed"], recorded["lr"], recorded["labels"], recorded["keep_best"], recorded["optimizer"]) == (
        3, 2e-3, ["none", "some"], False, "adamw",
    )  # fmt: skip
    assert not recorded.keys() & {"resume", "overwrite", "quiet", "config", "json"}
    status, _, err = run("train", "--config", "one/run.toml", "--output", "two", "--quiet", capsys=capsys)
    assert status == 0, err
    assert_equal("one", "two")
    again = read_toml(Path("two/run.toml").read_text())
    assert again == recorded | {"output": "two"}
    status, _, err = run(
        "train", "--config", "one/run.toml", "--output", "three", "--seed", 4, "--quiet", capsys=capsys
    )
    assert status == 0, err
    assert_equal("one", "three", expected=False)
    head = from_pretrained("three")[0]
    assert head.provenance["version"] == __version__
    assert head.provenance["run"]["options"]["seed"] == 4


def test_a_distillation_is_repeated(start: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-hiddens", 64, "--teacher-layers", "0,2", "--hidden-layers", "0", "--unlabelled", "data.tsv"]
    teacher = ["--teacher", *start[1:-4], "--epochs", 1, "--quiet", *options]
    status, _, err = run("distill", *teacher, "--output", "one", capsys=capsys)
    assert status == 0, err
    status, _, err = run("distill", "--config", "one/run.toml", "--output", "two", "--quiet", capsys=capsys)
    assert status == 0, err
    assert_equal("one", "two")


def test_the_command_line_replaces_an_alternative(start: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    """--batch-tokens in place of the file's batch_size, --scratch in place of its model."""
    Path("run.toml").write_text('model = "start"\ntrain = "data.tsv"\noutput = "x"\nbatch_size = 8\n')
    args = parse(["train", "--config", "run.toml", "--batch-tokens", "300", "--scratch", "bert.small"])
    assert args is not None
    assert (args.model, args.scratch, args.options.batch_size, args.options.batch_tokens) == (
        None, "bert.small", None, 300,
    )  # fmt: skip
    status, _, err = run("train", "--config", "run.toml", "--model", "x", "--scratch", "bert.small", capsys=capsys)
    assert (status, "give either --model or --scratch" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "run.toml: train has no option 'epoch'; did you mean epochs?"),
        ("batch-size = 3", "train has no option 'batch-size'; did you mean batch_size?"),
        ("epochs = 'three'", "'--epochs': 'three' is not a valid integer"),
        ("epochs = 2.5", "'--epochs': '2.5' is not a valid integer"),
        ("epochs = true", "run.toml: epochs must not be true or false"),
        ("quiet = 1", "run.toml: quiet must be true or false"),
        ("limit = 0", "'--limit': 0 is not in the range x>=1"),
        ("precision = 'bf61'", "'bf61' is not one of 'fp32', 'bf16'; did you mean bf16?"),
        ("train = 'data.tvs'", "data.tvs: no such file or folder; did you mean data.tsv?"),
        ("command = 'distill'", "run.toml is of `bertnli distill`, not of `bertnli train`"),
        ("epochs =", "run.toml: Invalid value (at end of document)"),
        ("epochs = 0", "epochs must be at least 1"),
        ("class_weights = [1, 2]", "class_weights must be"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    text: str, message: str, start: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.toml").write_text(text)
    train = [] if text.startswith("train") else ["--train", "data.tsv"]
    status, _, err = run("train", "--model", "start", "--output", "x", *train, "--config", "run.toml", capsys=capsys)
    assert (status, err.count("\n"), message in err) == (2, 1, True), err


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1).map(tuple),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False), min_size=1),
)


@given(st.dictionaries(st.sampled_from(["lr", "labels", "model", "freeze", "limit"]), VALUES))
def test_what_is_written_is_what_is_read(options: dict[str, Any]) -> None:
    text = run_toml("train", {"resume": True, "task": None, "hidden_layers": (), **options})
    found = read_toml(text)
    assert found.pop("command") == "train"
    assert found.pop("version") == __version__
    assert found == {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def test_figures_as_json(start: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output has JSON lines alone; what is for people is on standard error."""
    status, out, err = run("train", *start, "--output", "one", "--json", capsys=capsys)
    assert status == 0, err
    *epochs, last = map(json.loads, out.splitlines())
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert all(math.isfinite(e["dev_loss"]) for e in epochs)
    assert last["output"] == "one"
    assert last["run"]["options"]["seed"] == 3
    assert "6 training examples" in err
    assert "epoch 2: train loss" in err
    status, out, err = run("export", "--model", "one", "--output", "hf", "--json", capsys=capsys)
    assert (status, json.loads(out)) == (0, {"format": "huggingface", "output": "hf"})
