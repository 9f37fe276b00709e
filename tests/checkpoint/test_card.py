"""The model card beside every saved model says what is known, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.checkpoints import make, save
from helpers.commands import run
from helpers.tiny_tasks import NAMES, PIECES, teacher, texts

from bertnli import (
    BERTClassifier,
    BERTEmbedder,
    Model,
    WordPieceTokenizer,
    export_onnx,
    from_pretrained,
    save_pretrained,
)

LICENSED = "---\nlicense: apache-2.0\ntags:\n- x\n---\n# Base\n"


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter, as YAML has it, and the rest."""
    _, matter, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter), text


def pairs(n: int) -> list[tuple[str, str, str]]:
    data = texts(n)
    assert data.second is not None
    assert data.labels is not None
    return [(a, b, NAMES[label]) for a, b, label in zip(data.first, data.second, data.labels, strict=True)]


def test_a_model_without_a_history(tmp_path: Path) -> None:
    save_pretrained(teacher(), tmp_path / "out", WordPieceTokenizer(PIECES))
    matter, text = card(tmp_path / "out")
    assert matter == {"library_name": "bertnli", "pipeline_tag": "text-classification"}
    for line in ("- Begun from: random weights, or weights of unknown origin", "- Labels: none, some",
                 "- Training: not recorded", "None is stated.", "# out"):  # fmt: skip
        assert line in text
    assert "Figures" not in text


def test_sentence_vectors_and_windows(tmp_path: Path) -> None:
    head, tokenizer = teacher(), WordPieceTokenizer(PIECES)
    head.settings |= {"windows": "max", "stride": 3}
    save_pretrained(head, tmp_path / "windows", tokenizer)
    assert "- Longer texts: windows that share 3 tokens, the max of outputs\n" in card(tmp_path / "windows")[1]
    save_pretrained(BERTEmbedder(head), tmp_path / "vectors", tokenizer, format="huggingface")
    matter, text = card(tmp_path / "vectors")
    assert matter == {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    assert "- Task: embedding\n" in text
    assert "bertnli encode --model FOLDER" in text
    assert "evaluate" not in text


@pytest.mark.parametrize("licensed", [True, False])
def test_a_fine_tuned_model(tmp_path: Path, licensed: bool) -> None:
    save(make("BertModel", vocab_size=17), tmp_path / "base")
    if licensed:
        (tmp_path / "base" / "README.md").write_text(LICENSED)
    bert, tokenizer = from_pretrained(tmp_path / "base")
    model = Model(BERTClassifier(bert, label_names=NAMES), tokenizer)
    path = tmp_path / "train.jsonl"
    rows = [{"premise": a, "hypothesis": b, "label": label} for a, b, label in pairs(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model.fit(path, pairs(20), text_columns=["premise", "hypothesis"], epochs=2, lr=1e-3, progress=False)
    score = model.evaluate(pairs(20))["accuracy"]
    model.save_pretrained(tmp_path / "own")
    # Formats that hold no provenance are written from a folder that does.
    again = Model.from_pretrained(tmp_path / "own")
    again.save_pretrained(tmp_path / "hf", format="huggingface")
    assert isinstance(again.head, BERTClassifier)
    export_onnx(again.head, tmp_path / "onnx", tokenizer, num_samples=2)
    for folder in ("own", "hf", "onnx"):
        matter, text = card(tmp_path / folder)
        assert matter["library_name"] == ("transformers" if folder == "hf" else "bertnli")
        assert matter.get("license") == ("apache-2.0" if licensed else None)
        assert "base_model" not in matter  # a folder is no name on the hub
        assert "- Begun from: `base`" in text
        assert "- Task: classification of pairs of texts" in text
        assert "- Training data: 40 sequences of `train.jsonl`" in text
        assert "- Options: epochs 2, lr 0.001, seed 0, precision fp32" in text
        assert "- Dev data: 20 sequences\n" in text
        assert f"- Dev accuracy: {score:.4f}, epoch " in text
        assert ("`base` is under `apache-2.0`" in text) == licensed
        assert ("The files of `base` state no licence." in text) == (not licensed)
        assert str(tmp_path) not in text
        assert ("bertnli predict" in text) == (folder != "onnx")
    again.fit(pairs(30), epochs=1, progress=False)  # of lists, without dev data
    again.save_pretrained(tmp_path / "own")
    text = card(tmp_path / "own")[1]
    assert "- Training data: 30 sequences\n" in text
    assert "- Figures: not measured" in text
    assert "accuracy" not in text
    head = BERTClassifier(again.head, 3)  # a new head was not trained
    assert head.provenance.keys() <= {"base", "license"}


def test_a_text_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(teacher(), tmp_path, WordPieceTokenizer(PIECES))
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    for names in (NAMES, ("no", "yes")):
        model = teacher()
        model.label_names = names
        save_pretrained(model, tmp_path, WordPieceTokenizer(PIECES))
        assert f"- Labels: {', '.join(names)}" in card(tmp_path)[1]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    save_pretrained(teacher(), tmp_path, WordPieceTokenizer(PIECES))
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    for value in ([1], {"base": 3}, {"other": "x"}, {"run": "x"}):
        settings = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**settings, "provenance": value}))
        (tmp_path / "kept").replace(tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"config\.json: provenance must be an object with the keys base, dev, "):
            from_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "kept")


def test_commands_name_data_and_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tsv").write_text("p\th\tlabel\n" + "".join("\t".join(row) + "\n" for row in pairs(60)))
    columns = ("--text-columns", "p,h", "--epochs", 1, "--quiet")
    data = ("--train", tmp_path / "a.tsv", "--dev", tmp_path / "a.tsv", *columns)
    status, _, err = run("train", "--scratch", "bert.small", *data, "--output", tmp_path / "big", capsys=capsys)
    assert status == 0, err
    sizes = ("--num-hiddens", 32, "--num-layers", 1)
    status, _, err = run(
        "distill", "--teacher", tmp_path / "big", *sizes, *data, "--output", tmp_path / "small", capsys=capsys
    )
    assert status == 0, err
    for folder in ("big", "small"):
        text = card(tmp_path / folder)[1]
        assert "- Training data: 60 sequences of `a.tsv`" in text
        assert "- Dev data: 60 sequences of `a.tsv`" in text
        assert ("- Distilled from: `big`" in text) == (folder == "small")
