"""`bertnli evaluate --predictions` writes what its figures are of; `predict` answers each line as it comes."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import run, task_jobs, tiny_bert

from bertnli import Model, WordPieceTokenizer, read_conll, save_pretrained
from bertnli.cli.texts import Arriving, chunks
from bertnli.tasks.base import HEADS
from bertnli.tasks.question_answering import normalized

WORDS = ["red", "green", "blue", "one", "two", "which", "colour", "?"]
NAMES: dict[str, tuple[str, ...] | None] = {
    "classification": ("a", "b"), "multilabel": ("a", "b", "c"), "tagging": ("O", "B-c"), "regression": None,
    "qa": None,
}  # fmt: skip


def saved(task: str, folder: Path) -> Model:
    torch.manual_seed(0)
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, *WORDS])
    bert, names = tiny_bert(len(tokenizer)), NAMES[task]
    head = HEADS[task](bert, len(names), names) if names else HEADS[task](bert)
    save_pretrained(head, folder, tokenizer)
    return Model(head, tokenizer)


def read(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.fixture
def evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Figures and written file of a task's small job."""
    rng = random.Random(0)
    rows = "".join(f"{rng.choice(WORDS)},{rng.choice(['a', 'a;c', 'b', '[]', ''])}\n" for _ in range(50))
    (tmp_path / "several.csv").write_text("text,kinds\n" + rows)
    several = ["--text-columns", "text", "--label-column", "kinds", "--separator", ";"]
    jobs = {task: (reading, name) for task, (reading, name, *_) in task_jobs(tmp_path).items()}
    jobs["multilabel"] = (several, "several.csv")

    def evaluate(task: str, suffix: str, *more: str) -> tuple[Model, dict[str, Any], Path]:
        model, (reading, name) = saved(task, tmp_path / task), jobs[task]
        if task == "classification":
            with (tmp_path / name).open("a") as file:
                file.write("red,-\n")
        command = ["evaluate", "--model", tmp_path / task, "--data", tmp_path / name, *reading, "--json", "--quiet"]
        output = tmp_path / f"out{suffix}"
        status, out, err = run(*command, "--predictions", output, *more, capsys=capsys)
        assert status == 0, err
        return model, json.loads(out), output

    return evaluate


def test_predictions_of_a_classifier(evaluated: Any) -> None:
    model, figures, output = evaluated("classification", ".csv", "--probabilities")
    rows = read(output)
    assert list(rows[0]) == ["text", "kind", "predicted_label", "score", "probability_a", "probability_b"]
    assert (len(rows), figures["dropped"]) == (60, 1)
    assert sum(r["kind"] == r["predicted_label"] for r in rows) / 60 == pytest.approx(figures["accuracy"])
    for row, expected in zip(rows, model.predict([row["text"] for row in rows]), strict=True):
        assert row["predicted_label"] == expected.label
        assert float(row["score"]) == pytest.approx(expected.probabilities[expected.label], rel=1e-5)


def test_predictions_of_several_classes(evaluated: Any) -> None:
    _, figures, output = evaluated("multilabel", ".jsonl")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert (len(rows), list(rows[0])) == (figures["examples"], ["text", "kinds", "predicted_labels"])
    assert figures["dropped"] > 0
    gold = [set() if row["kinds"] == "[]" else set(row["kinds"].split(";")) for row in rows]
    both = sum(len(g & set(row["predicted_labels"])) for g, row in zip(gold, rows, strict=True))
    given = sum(len(g) + len(row["predicted_labels"]) for g, row in zip(gold, rows, strict=True))
    assert 2 * both / given == pytest.approx(figures["micro_f1"])


def test_predictions_of_a_table_without_header(evaluated: Any) -> None:
    _, figures, output = evaluated("regression", ".tsv")
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    assert (len(rows), {len(row) for row in rows}) == (60, {4})
    assert sum((float(r[2]) - float(r[3])) ** 2 for r in rows) / 60 == pytest.approx(figures["mse"], rel=1e-4)


def test_predictions_of_tags(evaluated: Any, tmp_path: Path) -> None:
    model, figures, output = evaluated("tagging", ".conll")
    given = (tmp_path / "tags.conll").read_text().splitlines()
    lines = output.read_text().splitlines()
    assert [line.rpartition("\t")[0] for line in lines] == given
    gold, found = read_conll(output, NAMES["tagging"], tag=2), read_conll(output, NAMES["tagging"])
    assert gold.tags is not None
    assert found.tags is not None
    pairs = [pair for rows in zip(gold.tags, found.tags, strict=True) for pair in zip(*rows, strict=True)]
    assert sum(a == b for a, b in pairs) / len(pairs) == pytest.approx(figures["accuracy"])
    _, _, output = evaluated("tagging", ".jsonl")
    first = json.loads(output.read_text().splitlines()[0])
    assert list(first) == ["words", "tags", "predicted_tags"]
    assert first["predicted_tags"] == model.predict([first["words"]])[0]


def test_predictions_of_answers(evaluated: Any, tmp_path: Path) -> None:
    _, figures, output = evaluated("qa", ".json")
    answers = json.loads(output.read_text())
    whole = json.loads((tmp_path / "squad.json").read_text())
    qas = [qa for paragraph in whole["data"][0]["paragraphs"] for qa in paragraph["qas"]]
    assert list(answers) == [qa["id"] for qa in qas]
    exact = sum(normalized(answers[qa["id"]]) == normalized(qa["answers"][0]["text"]) for qa in qas)
    assert exact / 60 == pytest.approx(figures["exact_match"])
    _, _, output = evaluated("qa", ".csv")
    rows = read(output)
    assert list(rows[0]) == ["id", "title", "question", "context", "answers", "text", "start", "end", "score"]
    assert [row["text"] for row in rows] == list(answers.values())


def test_predictions_of_snli(trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--model", trained, "--data", corpus, "--json", "--quiet", "--predictions"]
    status, out, err = run(*command, tmp_path / "x.tsv", capsys=capsys)
    assert status == 0, err
    rows = read(tmp_path / "x.tsv", "\t")
    assert len(rows) == 60
    right = sum(row["gold_label"] == row["predicted_label"] for row in rows)
    assert right / 60 == pytest.approx(json.loads(out)["accuracy"])
    for path, options, message in (
        ("x.json", [], "x.json: predictions are written as .csv, .tsv, .jsonl, .parquet; found the suffix '.json'"),
        ("x.csv", ["--encoding", "utf-99"], "'utf-99' is not known to Python"),
    ):
        status, _, err = run(*command, tmp_path / path, *options, capsys=capsys)
        assert (status, message in err) == (2, True), err
    status, _, err = run(*command[:-1], "--probabilities", capsys=capsys)
    assert (status, "--probabilities goes with --predictions" in err) == (2, True)


def test_a_pipe_is_answered_line_by_line(trained: Path) -> None:
    """Whatever the batch size: what is there is computed, without waiting for more. A byte order mark is not text."""
    command = [sys.executable, "-m", "bertnli", "predict", "--model", str(trained)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in (
            '\ufeff{"premise": "a", "hypothesis": "b"}\n',
            '{"premise": "A man", "hypothesis": "A café"}\n',
        ):
            process.stdin.write(text.encode())
            process.stdin.flush()
            assert "label" in json.loads(process.stdout.readline())
        process.stdin.write(b'{"premise": "no", "hypothesis": "line end"}')
        process.stdin.close()
        assert "label" in json.loads(process.stdout.read())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_lines_of_a_pipe(encoding: str) -> None:
    """In parts that end anywhere: a line is there as soon as it is whole, or the input ends."""
    reader, writer = os.pipe()
    arriving = Arriving(reader, encoding)
    content = "é\n\nab".encode(encoding)
    first_line = len("é\n".encode(encoding))
    for i in range(first_line):
        assert not arriving.is_waiting()
        os.write(writer, content[i : i + 1])
    assert arriving.is_waiting()
    assert next(arriving) == "é\n".encode()
    assert not arriving.is_waiting()
    os.write(writer, content[first_line:])
    assert (next(arriving), arriving.is_waiting()) == (b"\n", False)
    os.close(writer)
    assert arriving.is_waiting()
    assert list(arriving) == [b"ab"]
    os.close(reader)


def test_what_is_there_is_taken_together() -> None:
    """And what comes before an error."""
    waiting = iter([True, False, True, True, True])
    items = (int(text) for text in ["1", "2", "3", "4", "5", "6", "x"])
    found = []

    def collect() -> None:
        for chunk in chunks(items, 3, lambda: next(waiting)):
            found.append(chunk)

    with pytest.raises(ValueError, match="invalid literal"):
        collect()
    assert found == [[1, 2], [3, 4, 5], [6]]


def test_encodings_and_delimiters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command that reads texts."""
    saved("classification", tmp_path / "model")
    table = "text;kind\nred é;a\nblue;b\n".encode("latin-1")
    (tmp_path / "x.csv").write_bytes(table)
    (tmp_path / "utf8.csv").write_text("text,kind\nred é,a\nblue,b\n")
    (tmp_path / "lines").write_bytes("red é\nblue\n".encode("latin-1"))
    (tmp_path / "utf8").write_text("red é\nblue\n")
    model, texts = ["--model", tmp_path / "model"], ["--text-columns", "text", "--label-column", "kind"]
    latin = ["--encoding", "latin-1", "--delimiter", ";"]

    def output(*arguments: object) -> str:
        status, out, err = run(*arguments, capsys=capsys)
        assert status == 0, err
        return out

    figures = [
        output("evaluate", *model, "--data", tmp_path / name, *texts, *more, "--quiet").splitlines()[1:]
        for name, more in (("x.csv", latin), ("utf8.csv", []))
    ]
    assert figures[0] == figures[1]
    start = ["train", "--scratch", "bert.small", "--min-freq", 1, "--epochs", 1, "--quiet", *texts, *latin]
    output(*start, "--train", tmp_path / "x.csv", "--output", tmp_path / "trained")
    assert "é" in json.loads((tmp_path / "trained" / "vocab.json").read_text())
    rank = ["rank", *model, "--label", "a", "--query", "red", "--documents"]
    command = ["encode", *model, "--pooling", "mean", "--quiet", "--output", tmp_path / "v.npy", "--input"]
    ranked, vectors = set(), set()
    for name, more in (("x.csv", latin), ("utf8.csv", []), ("lines", latin[:2]), ("utf8", [])):
        ranked.add(output(*rank, tmp_path / name, *more))
        output(*command, tmp_path / name, *more)
        vectors.add((tmp_path / "v.npy").read_bytes())
    assert len(ranked) == len(vectors) == 1
    status, _, err = run(*command, tmp_path / "lines", capsys=capsys)
    assert (status, "byte 0xe9 at position 4 is not UTF-8" in err) == (2, True), err
