"""`bertnli evaluate`, `predict` and `download`."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.commands import LABELS, run, tiny_bert

from bertnli import (
    BERTClassifier,
    BERTRegressor,
    BERTTagger,
    WordPieceTokenizer,
    read_pairs,
    save_pretrained,
)
from bertnli.data import download as hub
from bertnli.data import progress


def test_evaluate_prints_the_figures(trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("evaluate", "--model", trained, "--data", corpus, "--json", capsys=capsys)
    assert status == 0
    figures = json.loads(out)
    assert figures["examples"] == 60
    assert figures["labels"] == LABELS
    assert sum(map(sum, figures["confusion"])) == 60
    assert figures["accuracy"] == pytest.approx(sum(figures["confusion"][i][i] for i in range(3)) / 60)
    assert set(figures["per_class"]["neutral"]) == {"precision", "recall", "f1", "support"}
    status, out, _ = run("evaluate", "--model", trained, "--data", corpus / "snli_1.0_test.txt", capsys=capsys)
    assert status == 0
    assert f"accuracy {figures['accuracy']:.4f}" in out
    assert out.count("\n") == 7


def test_evaluate_shows_progress(
    trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    evaluate = ["evaluate", "--model", trained, "--data", corpus, "--batch-size", 30]
    assert [line.split(",")[0] for line in run(*evaluate, capsys=capsys)[2].splitlines()] == [
        "evaluate: 50% of 60 sequences", "evaluate: 100% of 60 sequences",
    ]  # fmt: skip
    assert run(*evaluate, "--quiet", capsys=capsys)[2] == ""


def test_labels_name_the_figures(trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--labels` says what the model's classes are: the figures bear those names, in that order.

    The model's own names in another order are the same classes, whose figures do not change.
    """
    names = ["neutral", "contradiction", "entailment"]
    own = json.loads(run("evaluate", "--model", trained, "--data", corpus, "--json", capsys=capsys)[1])
    status, out, _ = run(
        "evaluate", "--model", trained, "--data", corpus, "--json", "--labels", ",".join(names), capsys=capsys
    )
    assert status == 0
    figures = json.loads(out)
    assert figures["labels"] == list(figures["per_class"]) == names
    labels = read_pairs(corpus / "snli_1.0_test.txt").labels
    assert labels is not None
    assert [sum(row) for row in figures["confusion"]] == [labels.count(LABELS.index(name)) for name in names]
    assert figures["per_class"] == own["per_class"]
    assert figures["loss"] == pytest.approx(own["loss"])
    status, _, err = run("evaluate", "--model", trained, "--data", corpus, "--labels", "yes,no", capsys=capsys)
    assert status == 2
    assert "2 names of classes (yes, no); the model has 3" in err


def test_predict_keeps_the_order_of_its_input(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read_pairs(corpus / "snli_1.0_test.txt")
    assert data.second is not None
    assert data.labels is not None
    rows = list(zip(data.first, data.second, strict=True))
    (tmp_path / "pairs.tsv").write_text("".join(f"{p}\t{h}\n" for p, h in rows))
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"premise": p, "hypothesis": h}) + "\r\n" for p, h in rows)
    )
    outputs = []
    for name, extra in (("pairs.tsv", []), ("pairs.jsonl", []), ("pairs.tsv", ["--batch-size", 1])):
        status, out, err = run("predict", "--model", trained, "--input", tmp_path / name, *extra, capsys=capsys)
        assert status == 0, err
        outputs.append([json.loads(line) for line in out.splitlines()])
    labels = [[row["label"] for row in output] for output in outputs]
    assert labels[0] == labels[1] == labels[2]
    assert len(labels[0]) == 60
    for row in outputs[0]:
        assert list(row["probabilities"]) == LABELS
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    status, out, _ = run("evaluate", "--model", trained, "--data", corpus, "--json", capsys=capsys)
    right = sum(LABELS[label] == guess for label, guess in zip(data.labels, labels[0], strict=True))
    assert right / 60 == pytest.approx(json.loads(out)["accuracy"])


def test_predict_reads_standard_input(trained: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bertnli", "predict", "--model", str(trained), "--input", "-"],
        input="Un café ☕\tA cup .\nA\tB\n".encode(), capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_somebody_who_types_is_answered_line_by_line(trained: Path) -> None:
    """Not only at the end of the input."""
    controller, terminal = os.openpty()
    arguments = ["zero-shot", "--labels", "red,green", "--model", str(trained)]
    with subprocess.Popen(
        [sys.executable, "-m", "bertnli", *arguments], stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in ("A man is sleeping .\tA man is asleep .\n", "A dog .\tA cat .\n"):
            os.write(controller, line.encode())
            assert "label" in json.loads(process.stdout.readline())
        os.write(controller, b"\x04")  # the end of the input
        assert process.wait(60) == 0
        assert b"Ctrl-D" in process.stderr.read()
    os.close(controller)
    os.close(terminal)


@pytest.mark.parametrize("source", ["--text-columns", "--columns"])
def test_sentences_become_words_for_a_model_of_words(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training, evaluating and predicting split "sleeping." alike."""
    header = "gold_label\tsentence1\tsentence2\n"
    rows = ["entailment\tA man is sleeping.\tA man isn't awake.\n", "neutral\tA dog sleeps.\tA dog, too.\n"]
    (tmp_path / "train.txt").write_text(header + "".join(rows * 4))
    table = ["sentence1,sentence2", "--label-column", "gold_label"] if source == "--text-columns" else ["text"]
    model = tmp_path / "model"
    status, _, err = run(
        "train", "--scratch", "bert.small", "--train", tmp_path / "train.txt", "--output", model, source, *table,
        "--min-freq", 1, "--epochs", 1, "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    words = set(json.loads((model / "vocab.json").read_text()))
    assert {"sleeping", ".", ",", "is", "n't"} <= words
    assert not {"sleeping.", "dog,", "isn't"} & words
    status, out, _ = run("evaluate", "--model", model, "--data", tmp_path / "train.txt", source, *table, "--json",
                         capsys=capsys)  # fmt: skip
    loss = json.loads(out)["loss"]
    (tmp_path / "in.tsv").write_text("".join(row.split("\t", 1)[1] for row in rows))
    _, out, _ = run("predict", "--model", model, "--input", tmp_path / "in.tsv", capsys=capsys)
    lines = [json.loads(line)["probabilities"] for line in out.splitlines()]
    own = [lines[0]["entailment"], lines[1]["neutral"]]
    assert loss == pytest.approx(-sum(map(math.log, own)) / 2, rel=1e-4)


def test_predict_reads_columns_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    bert = tiny_bert(len(tokenizer))
    (tmp_path / "data.csv").write_text('id,one,two\n1,"red, red",green\n2,green,\n')
    (tmp_path / "data.tsv").write_text("red, red\tgreen\ngreen\t\n")
    outputs = []
    for name, model in (("tagger", BERTTagger(bert, 2, ("a", "b"))), ("classifier", BERTClassifier(bert))):
        save_pretrained(model, tmp_path / name, tokenizer)
        columns = "one,two" if name == "classifier" else "one"
        arguments = ["predict", "--model", tmp_path / name, "--text-columns", columns]
        status, out, err = run(*arguments, "--input", tmp_path / "data.csv", capsys=capsys)
        assert status == 0, err
        outputs.append(out)
        status, _, err = run(*arguments, capsys=capsys)
        assert (status, "are for a table in a file" in err) == (2, True)
        arguments[4] = "one,two,id"
        status, _, err = run(*arguments, "--input", tmp_path / "data.csv", capsys=capsys)
        assert (status, "3 text columns (one, two, id); the model takes" in err) == (2, True)
    assert [len(json.loads(line)) for line in outputs[0].splitlines()] == [2, 1]  # tags of words
    status, out, err = run(*arguments[:3], "--input", tmp_path / "data.tsv", capsys=capsys)
    assert (status, out) == (0, outputs[1])


@pytest.mark.parametrize(("bias", "kind"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_a_model_that_has_diverged_gives_nothing(
    bias: float, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    model = BERTClassifier(tiny_bert(len(tokenizer)))
    torch.nn.init.constant_(model.output.bias, bias)
    save_pretrained(model, tmp_path / "model", tokenizer)
    (tmp_path / "data.tsv").write_text("red\tgreen\tneutral\n")
    (tmp_path / "in.tsv").write_text("red\tgreen\n")
    for command in (
        ["predict", "--input", tmp_path / "in.tsv"],
        ["evaluate", "--data", tmp_path / "data.tsv", "--text-columns", "1,2", "--label-column", "3", "--json"],
    ):
        status, out, err = run(*command, "--model", tmp_path / "model", capsys=capsys)
        assert (status, out) == (2, "")
        assert f"the model's outputs are {kind}: its training diverged" in err


def test_a_figure_that_is_undefined_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The correlation with a constant. JSON has no NaN."""
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    save_pretrained(BERTRegressor(tiny_bert(len(tokenizer))), tmp_path / "model", tokenizer)
    (tmp_path / "data.tsv").write_text("red\t1\ngreen\t1\n")
    reading = ["--text-columns", "1", "--label-column", "2"]
    evaluate = ["evaluate", "--model", tmp_path / "model", "--data", tmp_path / "data.tsv", *reading]
    status, out, err = run(*evaluate, "--json", capsys=capsys)
    assert status == 0, err
    assert "NaN" not in out
    figures = json.loads(out)
    assert figures["pearson"] is figures["spearman"] is None
    assert figures["mse"] > 0
    assert "pearson undefined" in run(*evaluate, capsys=capsys)[1]
    status, _, err = run(
        "train", "--model", tmp_path / "model", "--train", tmp_path / "data.tsv", "--dev", tmp_path / "data.tsv",
        *reading, "--epochs", 2, "--output", tmp_path / "out", "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["dev_score"] for line in lines] == [None, None]
    assert not any("NaN" in line for line in lines)


def test_sequences_are_as_long_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--max-len travels with the model: a word beyond 128 that decides is read in evaluation and prediction too."""
    rng = random.Random(0)
    lines = [("x " * 130 + word, word) for word in (rng.choice(("red", "green")) for _ in range(40))]
    data = tmp_path / "long.tsv"
    data.write_text("".join(f"{text}\t{word}\n" for text, word in lines))
    reading = ["--text-columns", "1", "--label-column", "2"]
    status, _, err = run(
        "train", "--scratch", "bert.small", "--train", data, *reading, "--output", tmp_path / "model", "--epochs", 1,
        "--min-freq", 1, "--max-len", 140, "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    seen = []
    for more in ([], ["--max-len", 140], ["--max-len", 128]):
        out = run("evaluate", "--model", tmp_path / "model", "--data", data, *reading, "--json", *more, capsys=capsys)[
            1
        ]
        seen.append(json.loads(out)["loss"])
    assert seen[0] == seen[1] != seen[2]
    (tmp_path / "input").write_text("".join(f"{text}\n" for text, _ in lines[:20]))
    out = run("predict", "--model", tmp_path / "model", "--input", tmp_path / "input", capsys=capsys)[1]
    assert len(set(out.splitlines())) == 2  # cut at 128 they were all the same


def test_a_tagger_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its columns are not taken for the tags of the data by the alphabet."""
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    bert = tiny_bert(len(tokenizer))
    tagger = BERTTagger(bert, 2)
    with torch.no_grad():
        tagger.output.bias[0] = 1e3  # everything is of the first column
    save_pretrained(tagger, tmp_path / "model", tokenizer)
    (tmp_path / "tags.conll").write_text("red O\ngreen B-x\n")
    arguments = ["evaluate", "--model", tmp_path / "model", "--data", tmp_path / "tags.conll", "--json"]
    status, _, err = run(*arguments, capsys=capsys)
    assert status == 2
    assert "the model does not name its tags: give --labels" in err
    for names, recall in (("O,B-x", 0), ("B-x,O", 1)):
        status, out, err = run(*arguments, "--labels", names, capsys=capsys)
        assert status == 0, err
        assert json.loads(out)["recall"] == recall


def test_download_of_a_local_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "snli_1.0.zip", "w") as archive:
        archive.writestr("snli_1.0/snli_1.0_test.txt", "x")
    monkeypatch.setitem(hub.DATA_HUB, "SNLI", ((tmp_path / "snli_1.0.zip").as_uri(), None))
    status, out, _ = run("download", "SNLI", "--folder", tmp_path / "to", capsys=capsys)
    assert status == 0
    assert Path(out.strip()) == tmp_path / "to" / "snli_1.0"
    assert (tmp_path / "to" / "snli_1.0" / "snli_1.0_test.txt").exists()
