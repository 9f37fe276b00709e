"""`bertnli pretrain`: from text to an encoder, and on to a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import run
from safetensors.torch import load_file

from bertnli import BERTModel, from_pretrained
from bertnli.cli.config import read_toml


def test_from_text_to_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("A red fox ran. It saw a blue bird. The bird sang!\nOne is red. Two is blue.\n" * 8)
    pretrain = ["pretrain", "--scratch", "bert.small", "--vocab", "pieces", "--min-freq", 1, "--train", "text.txt"]
    pretrain += ["--dev", "text.txt", "--whole-words", "--epochs", 2, "--lr", 1e-3, "--max-len", 32, "--quiet"]
    status, out, err = run(*pretrain, "--output", "bert", "--keep", 1, capsys=capsys)
    assert status == 0, err
    assert "16 paragraphs of text.txt in 24 sequences" in out
    assert "dev masked_accuracy" in out
    bert, tokenizer = from_pretrained("bert")
    assert isinstance(bert, BERTModel)
    assert bert.mlm is not None
    assert isinstance(from_pretrained(next(Path("bert/checkpoints").iterdir()))[0], BERTModel)
    assert len(tokenizer) == bert.config.vocab_size
    assert json.loads(Path("bert/config.json").read_text())["provenance"]["run"]["metric"] == "masked_accuracy"
    assert read_toml(Path("bert/run.toml").read_text())["whole_words"] is True
    status, _, err = run("pretrain", "--config", "bert/run.toml", "--output", "again", "--quiet", capsys=capsys)
    assert status == 0, err
    one, other = (load_file(Path(folder) / "model.safetensors") for folder in ("bert", "again"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    go_on = ["pretrain", "--model", "bert", "--train", "text.txt", "--epochs", 1, "--quiet", "--output", "more"]
    status, _, err = run(*go_on, capsys=capsys)
    assert status == 0, err
    Path("data.csv").write_text("text,label\nred,a\nblue,b\n")
    table = ["--train", "data.csv", "--text-columns", "text", "--epochs", 1, "--quiet"]
    status, _, err = run("train", "--model", "more", *table, "--output", "task", capsys=capsys)
    assert status == 0, err
    go_on[2] = "task"
    status, _, err = run(*go_on, "--overwrite", capsys=capsys)
    assert (status, "task is a model of a task; pretraining goes on from an encoder with its heads" in err) == (
        2,
        True,
    ), err
