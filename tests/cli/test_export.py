"""`bertnli export`: every format from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from helpers.commands import run
from helpers.tiny_tasks import NAMES, PIECES, teacher, texts

from bertnli import WordPieceTokenizer, from_pretrained, load_pretrained_model, save_pretrained


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_pretrained(teacher(), tmp_path / "model", WordPieceTokenizer(PIECES))
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pairs = texts(50)
    assert pairs.second is not None
    assert pairs.labels is not None
    rows = zip(pairs.first, pairs.second, (NAMES[label] for label in pairs.labels), strict=True)
    path = tmp_path / "data.tsv"
    path.write_text("a\tb\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    return path


def test_to_transformers_and_back(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run("export", "--model", model, "--output", tmp_path / "out", capsys=capsys)
    assert (status, err) == (0, "")
    assert f"huggingface: {tmp_path / 'out'}" in out
    assert transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").num_labels == 2
    status, out, err = run(
        "export", "--model", tmp_path / "out", "--output", tmp_path / "back", "--format", "bertnli", capsys=capsys
    )
    assert status == 0, err
    before, after = (from_pretrained(folder)[0].state_dict() for folder in (model, tmp_path / "back"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_to_onnx(tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("export", "--model", model, "--output", tmp_path / "out", "--format", "onnx")
    status, out, err = run(*command, "--int8", "--data", data, "--text-columns", "a,b", "--samples", 40, capsys=capsys)
    assert (status, err) == (0, "")
    assert f"{tmp_path / 'out' / 'model.onnx'}: 40 sequences compared in ONNX Runtime, largest difference of" in out
    assert "the same class in 100.0%" in out
    assert f"{tmp_path / 'out' / 'model_quantized.onnx'}: 40 sequences" in out
    status, out, err = run(*command, "--samples", 7, capsys=capsys)
    assert "model.onnx: 7 random sequences compared" in out
    assert "quantized" not in out


def test_what_cannot_be_exported(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, tokenizer = load_pretrained_model(model)
    save_pretrained(bare, tmp_path / "bare", tokenizer)
    for arguments, message in (
        (("--model", model, "--int8"), "--int8 and --data are for --format onnx; found --format huggingface"),
        (("--model", tmp_path / "bare", "--format", "onnx"), "bare has no output layer of a task; fine-tune it"),
        (("--model", model, "--format", "d2l"), "D2L's format needs a Vocab"),
    ):
        status, _, err = run("export", "--output", tmp_path / "out", *arguments, capsys=capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = run("export", "--model", model, "--format", "onnx", "--output", tmp_path / "out", capsys=capsys)
    assert (status, err) == (2, "bertnli: error: export to ONNX needs onnxruntime: pip install 'bertnli[onnx]'\n")
    assert not (tmp_path / "out").exists()
