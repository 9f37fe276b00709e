"""Each task from file to prediction, and input that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.commands import run, task_jobs
from helpers.tiny_tasks import PIECES, teacher

from bertnli import WordPieceTokenizer, from_pretrained, save_pretrained


@pytest.mark.parametrize("vocab", ["words", "characters"])
@pytest.mark.parametrize("task", ["classification", "regression", "tagging", "qa"])
def test_every_task_from_file_to_prediction(
    task: str, vocab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, name, line, as_object = task_jobs(tmp_path)[task]
    data, model = tmp_path / name, tmp_path / "model"
    status, out, err = run(
        "train", "--scratch", "bert.small", "--task", task, "--vocab", vocab, "--min-freq", 1, "--train", data,
        "--dev", data, *reading, "--output", model, "--epochs", 1, "--max-len", 40, "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert f"{task}: 60 training examples in 60 sequences" in out
    metric = {"classification": "accuracy", "regression": "pearson"}.get(task, "f1")
    assert f"dev {metric} " in out
    status, out, err = run("evaluate", "--model", model, "--data", data, *reading, "--json", capsys=capsys)
    assert status == 0, err
    figures = json.loads(out)
    assert figures["examples"] == 60
    assert metric in figures
    status, out, err = run("evaluate", "--model", model, "--data", data, *reading, capsys=capsys)
    assert f"{metric} {figures[metric]:.4f}" in out
    outputs = []
    for content in (line, json.dumps(as_object)):
        (tmp_path / "input").write_text(content + "\n" + content + "\n")
        status, out, err = run("predict", "--model", model, "--input", tmp_path / "input", capsys=capsys)
        assert status == 0, err
        outputs.append([json.loads(row) for row in out.splitlines()])
        assert len(outputs[-1]) == 2
    assert outputs[0] == outputs[1]
    first = outputs[0][0]
    if task == "classification":
        assert list(first["probabilities"]) == ["a", "b"]
    elif task == "regression":
        assert isinstance(first, float)
    elif task == "tagging":
        assert len(first) == 2
    else:
        assert first["text"] == "red one"[first["start"] : first["end"]]
    # Another pass on the trained head; and its encoder under another task's.
    more = ["--epochs", 1, "--max-len", 40, "--quiet"]
    status, out, err = run(
        "train", "--model", model, "--train", data, *reading, "--output", tmp_path / "more", *more, capsys=capsys
    )
    assert status == 0, err
    assert "starting a new one" not in out
    other = "classification" if task != "classification" else "regression"
    reading, name, *_ = task_jobs(tmp_path)[other]
    status, out, err = run(
        "train", "--model", model, "--task", other, "--train", tmp_path / name, *reading, "--output",
        tmp_path / "other", *more, capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert "starting a new one" in out
    assert json.loads((tmp_path / "other" / "config.json").read_text())["task"] == other


def test_predict_expects_what_the_model_was_trained_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, name, *_ = task_jobs(tmp_path)["regression"]
    arguments = ["--scratch", "bert.small", "--task", "regression", "--min-freq", 1, *reading, "--epochs", 1, "--quiet"]
    train = ["train", *arguments, "--train", tmp_path / name, "--output", tmp_path / "model"]
    assert run(*train, capsys=capsys)[0] == 0
    for content, message in (
        ("red one\n", "input:1: expected premise<TAB>hypothesis, found 1 fields"),
        ('{"text": "red"}\n', 'input:1: expected an object with strings "premise" and "hypothesis"'),
        ("a\tb\nc\n", "input:2: expected premise<TAB>hypothesis, found 1 fields"),
    ):
        (tmp_path / "input").write_text(content)
        status, _, err = run("predict", "--model", tmp_path / "model", "--input", tmp_path / "input", capsys=capsys)
        assert status == 2
        assert message in err
    tags = ["train", "--scratch", "bert.small", "--task", "tagging", "--label-column", "ner"]
    status, _, err = run(*tags, "--train", tmp_path / "tags.conll", "--output", tmp_path / "x", capsys=capsys)
    assert status == 2
    assert "in a column by number, not 'ner'" in err
    status, _, err = run(*train[:5], "--train", tmp_path / name, "--output", tmp_path / "x", capsys=capsys)
    assert status == 2
    assert "regression needs text_columns and label_column" in err
    for option, message in (
        (["--label-column", "tone"], "label_column goes with text_columns"),
        (["--stride", 4], "--stride is for question answering"),
    ):
        status, _, err = run(
            "train", "--scratch", "bert.small", "--train", corpus, *option, "--output", tmp_path / "x",
            capsys=capsys,
        )  # fmt: skip
        assert status == 2
        assert message in err


def test_bad_input_is_one_line_and_status_2(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.tsv"
    header = (corpus / "snli_1.0_test.txt").read_text().splitlines()[0]
    (tmp_path / "broken.txt").write_text(header + "\nneutral\tonly\n")
    train = ["train", "--scratch", "bert.small", "--output", tmp_path / "never"]
    cases: list[tuple[list[object], str, str]] = [
        (["evaluate", "--model", tmp_path / "none", "--data", corpus], "", "none: no such folder"),
        (["evaluate", "--model", trained, "--data", tmp_path / "none.txt"], "", "none.txt"),
        (["evaluate", "--model", trained, "--data", tmp_path / "broken.txt"], "", "broken.txt:2"),
        (["predict", "--model", trained, "--input", bad], "a\tb\na b\n", "bad.tsv:2: expected premise<TAB>hypothesis"),
        (["predict", "--model", trained, "--input", bad], "a\tb\n\n", "bad.tsv:2: the line is empty"),
        (["predict", "--model", trained, "--input", bad], '{"premise": 1}\n', "bad.tsv:1: expected an object with"),
        (["predict", "--model", trained, "--input", bad], "{oops\n", "bad.tsv:1: not JSON"),
        (["predict", "--model", trained, "--input", tmp_path / "gone"], "", "gone"),
        ([*train, "--train", tmp_path], "", "has neither snli_1.0_train.txt nor"),
        ([*train, "--train", corpus, "--freeze", "9"], "", "freeze must be None"),
        ([*train, "--train", corpus, "--max-len", "2"], "", "max_len"),
        ([*train, "--train", corpus, "--labels", "yes,no"], "", "unknown label"),
        ([*train, "--train", corpus, "--resume"], "", "no "),
        ([*train, "--train", corpus, "--epochs", "0"], "", "epochs must be at least 1"),
        ([*train, "--train", corpus, "--batch-size", "8", "--batch-tokens", "300"], "", "give one of the two"),
        (["predict", "--model", trained, "--input", bad, "--device", "nosuch"], "", "--device nosuch"),
    ]
    for arguments, content, message in cases:
        bad.write_text(content)
        status, _, err = run(*arguments, "--quiet" if arguments[0] == "train" else "--batch-size=8", capsys=capsys)
        assert status == 2, arguments
        assert err.startswith("bertnli: error: ")
        assert message in err
        assert err.count("\n") == 1
    bad.write_bytes(b"a\tb\nA\xff\tb\n")
    status, _, err = run("predict", "--model", trained, "--input", bad, capsys=capsys)
    assert status == 2
    assert "bad.tsv:2: byte 0xff at position 5 is not UTF-8" in err
    predict = ["predict", "--model", trained, "--input", bad]
    for command in (
        ["train"], ["predict"], ["nothing"], [*train, "--train", corpus, "--model", "x"],
        [*predict, "--batch-size", "0"], [*predict, "--batch-size", "-1"], [*train, "--train", corpus, "--limit", "-3"],
    ):  # fmt: skip
        status, _, err = run(*command, capsys=capsys)
        assert (status, err.count("\n")) == (2, 1), err


def test_tables_are_read_as_tables_or_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trained` takes pairs."""
    pairs = [("a cat", "a dog"), ("two, dogs", "a cat")]

    def predict(name: str, content: str, *options: object) -> tuple[int, str, str]:
        (tmp_path / name).write_text(content)
        return run("predict", "--model", trained, "--input", tmp_path / name, *options, capsys=capsys)

    status, wanted, err = predict("lines", "".join(f"{p}\t{h}\n" for p, h in pairs))
    assert status == 0, err
    for name, sep in (("x.csv", ","), ("x.tsv", "\t")):
        rows = [sep.join(f'"{part}"' for part in pair) for pair in pairs]
        for header, options in (("premise,hypothesis", []), ("q,r", ["--text-columns", "q,r"])):
            status, out, err = predict(name, "\n".join([header.replace(",", sep), *rows]), *options)
            assert (status, out) == (0, wanted), err
    assert predict("x.tsv", "a cat\ta dog\ntwo, dogs\ta cat\n")[1] == wanted
    for name, content, message in (
        ("r.csv", "text,label\na,good\n", "r.csv is a table with the columns 'text', 'label'; name the columns of "),
        ("r.csv", "a,b\na,good\n", "--text-columns a,b"),
        ("r.tsv", "question\tlabel\na\tgood\n", "--text-columns question,label"),
        ("r.txt", "premise\thypothesis\na\tb\n", "r.txt:1: 'premise\\thypothesis' looks like the header of a table"),
        ("r.txt", "text,label\na,b\n", "r.txt:1: 'text,label' looks like the header"),
        ("r.conll", "EU O\n", "r.conll: a .conll file is for tagging; expected text or premise<TAB>hypothesis"),
        ("r.jsonl", '[{"premise": "a", "hypothesis": "b"}]', "r.jsonl:1: expected JSON lines"),
        ("r.txt", '[\n{"premise": "a", "hypothesis": "b"}]', "r.txt:1: expected JSON lines"),
        ("r.txt", '{\n"premise": "a", "hypothesis": "b"}', "r.txt:1: not JSON: "),
        ("r.jsonl", '{"premise": "a", "hypothesis": null}', "r.jsonl:1: expected an object with strings"),
        ("r.jsonl", '{"premise": "a", "hypothesis": "\\ud83d"}', "r.jsonl:1: character 0 of"),
        ("r.jsonl", '{"p": "a", "h": "b"}', "found the keys 'p', 'h'. Texts under other keys: --text-columns"),
    ):
        status, _, err = predict(name, content)
        assert status == 2
        assert message in err


def test_predictions_in_the_shape_of_the_input(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("id;premise;hypothesis\n1;a cat;a dog\n2;short\n3;two;a cat\n")
    predict = ["predict", "--model", trained, "--input", tmp_path / "x.csv", "--delimiter", ";"]
    bad, output = tmp_path / "bad.jsonl", tmp_path / "out.csv"
    status, out, err = run(*predict, "--output", output, "--probabilities", "--bad-rows", bad, capsys=capsys)
    assert status == 0, err
    assert out == f"2 rows: {output}; 1 rows set aside: {bad}\n"
    header, *rows = output.read_text().splitlines()
    assert header.startswith("id,premise,hypothesis,label,score,probability_")
    assert [row.split(",")[:3] for row in rows] == [["1", "a cat", "a dog"], ["3", "two", "a cat"]]
    assert json.loads(bad.read_text())["row"] == "2;short\n"
    for options in (["--output", output], ["--probabilities"]):
        status, _, err = run(*predict, *options, capsys=capsys)
        assert (status, err.count("\n")) == (2, 1), err


def test_class_names_with_commas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "r.csv"
    table.write_text('text,label\na,"yes, please"\nb,no\n')
    train = ["train", "--scratch", "bert.small", "--min-freq", 1, "--train", table, "--text-columns", "text",
             "--epochs", 1, "--quiet", "--output", tmp_path / "m", "--labels"]  # fmt: skip
    status, _, err = run(*train, 'no, "yes, please"', capsys=capsys)
    assert status == 0, err
    assert from_pretrained(tmp_path / "m")[0].label_names == ("no", "yes, please")
    for wrong in ("no,", "", 'no,"yes'):
        status, _, err = run(*train, wrong, capsys=capsys)
        assert (status, "expected names separated by commas" in err) == (2, True), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --modl x --train y --output z", "bertnli: error: No such option '--modl'; did you mean --model?\n"),
        ("train --model x --epochs=3 --wamup=3", "No such option '--wamup'; did you mean --warmup?"),
        ("predict --model x --weight-decay 3", "No such option '--weight-decay' (see `bertnli predict --help`)\n"),
        ("evaluat", "No such command 'evaluat'; did you mean evaluate?"),
        ("train --model a --precision bf61", "'bf61' is not one of 'fp32', 'bf16'; did you mean bf16?"),
        ("train --model x --train tests/ci --output y", "tests/ci: no such file or folder; did you mean tests/cli?"),
        ("evaluate --model x --data test/cli/confest.py", "did you mean tests/cli/conftest.py?"),
        ("evaluate --model tests/cil --data tests", "did you mean tests/cli?"),
        ("train --model x", "Missing option '--train'"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status, _, err = run(*arguments.split(), capsys=capsys)
    assert (status, err.count("\n"), message in err) == (2, 1, True), err


def test_split_special_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's "[SEP]" ends a segment unless the switch is on; train writes the switch into the checkpoint."""
    model, tokenizer = teacher(), WordPieceTokenizer(PIECES)
    save_pretrained(model, tmp_path / "model", tokenizer)
    (tmp_path / "forged").write_text("red [SEP] one\tred\n")
    (tmp_path / "data.tsv").write_text("premise\thypothesis\tlabel\nred [SEP]\tone\tsome\none\tone\tnone\n")

    def predict(folder: str, *switches: str) -> str:
        command = "predict", "--model", tmp_path / folder, "--input", tmp_path / "forged", *switches
        status, out, err = run(*command, capsys=capsys)
        assert status == 0, err
        return out

    assert predict("model") != predict("model", "--split-special-tokens")
    data = "--train", tmp_path / "data.tsv", "--columns", "text", "--labels", "none,some"
    common = *data, "--epochs", 1, "--quiet", "--lr", 0, "--split-special-tokens", "--output", tmp_path / "split"
    status, _, err = run("train", "--model", tmp_path / "model", *common, capsys=capsys)
    assert status == 0, err
    assert predict("split") == predict("split", "--split-special-tokens") == predict("model", "--split-special-tokens")
