"""`bertnli distill`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_tasks import NAMES, PIECES, teacher, texts

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    WordPieceTokenizer,
    WordTokenizer,
    from_pretrained,
    save_pretrained,
    score,
)
from bertnli.cli import main


def test_unlabelled_sentences_for_a_model_of_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read as `bertnli predict` reads them; a file without any is said to be so."""
    words = WordTokenizer.from_texts(["red . two"], 1)
    bert = BERTModel(BERTConfig(len(words), num_hiddens=16, ffn_num_hiddens=16, num_heads=1, num_layers=1))
    big = BERTClassifier(bert, 2, NAMES)
    save_pretrained(big, tmp_path / "teacher", words)
    (tmp_path / "train.csv").write_text("t,label\nred,none\nred,some\n")
    arguments = ["distill", "--teacher", tmp_path / "teacher", "--train", tmp_path / "train.csv", "--text-columns", "t",
                 "--unlabelled", tmp_path / "more.txt", "--output", tmp_path / "student", "--overwrite", "--epochs", 1,
                 "--num-hiddens", 8, "--num-heads", 1, "--num-layers", 1, "--quiet"]  # fmt: skip
    (tmp_path / "more.txt").write_text("")
    assert main([str(a) for a in arguments]) == 2
    assert "more.txt has no examples" in capsys.readouterr().err
    (tmp_path / "more.txt").write_text("two.\n")
    assert main([str(a) for a in arguments]) == 0
    assert "8 of 8 tokens" in capsys.readouterr().out  # <unk>, four special ones, "red", "two", "."
    arguments[arguments.index("--unlabelled") + 1] = (
        tmp_path / "train.csv"
    )  # a table with the columns of --text-columns
    assert main([str(a) for a in arguments]) == 0
    assert "2 labelled examples, 2 unlabelled" in capsys.readouterr().out


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = texts(60)
    save_pretrained(teacher(), tmp_path / "teacher", WordPieceTokenizer(PIECES))
    rows = zip(data.first, data.second or (), data.labels or (), strict=True)
    table = tmp_path / "train.csv"
    table.write_text("a,b,l\n" + "".join(f"{a},{b},{NAMES[label]}\n" for a, b, label in rows))
    (tmp_path / "more.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(data.first, data.first, strict=True)))
    reading = ["--text-columns", "a,b", "--label-column", "l"]
    common = ["--teacher", tmp_path / "teacher", "--train", table, *reading, "--epochs", 1, "--quiet", "--num-hiddens"]
    arguments = ["distill", *common, 16, "--num-layers", 1, "--unlabelled", tmp_path / "more.tsv", "--dev", table]
    assert main([str(a) for a in [*arguments, "--output", tmp_path / "student"]]) == 0
    out = capsys.readouterr().out
    assert "60 labelled examples, 60 unlabelled" in out
    assert "dev accuracy" in out
    student, tokenizer = from_pretrained(tmp_path / "student")
    assert isinstance(student, BERTClassifier)
    assert student.label_names == NAMES
    assert (student.config.num_hiddens, student.config.vocab_size) == (16, len(tokenizer))
    assert len(tokenizer) == len(PIECES) - 1  # "never" does not occur
    assert main(["evaluate", "--model", str(tmp_path / "student"), "--data", str(table), *reading, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 60
    for width in (64, 32):
        layers = [*common, width, "--teacher-layers", "0,2", "--output", tmp_path / f"layers{width}"]
        assert main([str(a) for a in ["distill", *layers, "--hidden-layers", "0"]]) == 0
        config = from_pretrained(tmp_path / f"layers{width}")[0].config
        assert (config.num_layers, config.num_hiddens) == (2, width)
    # The teacher's classes in another order: the same student, its columns in that order.
    whole = ["distill", *common, 64, "--teacher-layers", "0,1,2", "--output"]
    assert main([str(a) for a in [*whole, tmp_path / "own"]]) == 0
    assert main([str(a) for a in [*whole, tmp_path / "turned", "--labels", ",".join(NAMES[::-1])]]) == 0
    (own, tokenizer), (turned, _) = (from_pretrained(tmp_path / name) for name in ("own", "turned"))
    assert isinstance(own, BERTClassifier)
    assert isinstance(turned, BERTClassifier)
    assert turned.label_names == NAMES[::-1]
    encoded = own.encode(tokenizer, data)
    torch.testing.assert_close(score(turned, encoded).flip(1), score(own, encoded))
