"""`bertnli train` and `demo`: files, output, and the model that a run starts from."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import LABELS, run, tiny_bert
from safetensors.torch import load_file

from bertnli import (
    BERTRegressor,
    WordPieceTokenizer,
    save_pretrained,
)
from bertnli.cli import train as train_command
from bertnli.cli import training_run
from bertnli.cli.config import read_toml


def test_train_writes_its_files(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "config.json", "model.safetensors", "vocab.json", "README.md", "metrics.jsonl", "report.html",
        "run.toml", "training_state.pt",
    }  # fmt: skip
    epochs = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert all(0 < e["dev_score"] < 1 and e["train_loss"] > 0 for e in epochs)
    assert (trained / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((trained / "config.json").read_text())["labels"] == LABELS


def test_train_from_a_checkpoint(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(
        "train", "--model", trained, "--train", corpus / "snli_1.0_train.txt", "--dev", corpus / "snli_1.0_dev.txt",
        "--output", tmp_path / "new" / "run", "--epochs", 1, "--limit", 64, "--freeze", "1", "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert "64 training examples in 64 sequences" in out
    assert "60 dev examples" in out
    assert (tmp_path / "new" / "run" / "model.safetensors").exists()


def test_numbers_in_a_dev_file_are_refused_until_classes_are_named(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained from scratch the classes are SNLI's; a checkpoint with classes, or --labels, says what numbers are."""
    lines = (corpus / "snli_1.0_dev.txt").read_text().splitlines(keepends=True)
    index = {name: str(i) for i, name in enumerate(LABELS)}
    numbered = [lines[0], *(index.get(line.split("\t")[0], "-") + line[line.index("\t") :] for line in lines[1:])]
    dev = tmp_path / "dev.txt"
    dev.write_text("".join(numbered))
    arguments: list[object] = [
        "--train", corpus / "snli_1.0_train.txt", "--dev", dev, "--epochs", 1, "--limit", 8, "--quiet",
    ]  # fmt: skip
    scratch: list[object] = ["--scratch", "bert.small", "--min-freq", 1]
    status, _, err = run("train", *scratch, *arguments, "--output", tmp_path / "a", capsys=capsys)
    assert (status, "dev.txt:2: the label is the number" in err) == (2, True), err
    for more in ([*scratch, "--labels", ",".join(LABELS)], ["--model", trained]):
        status, _, err = run("train", *more, *arguments, "--output", tmp_path / "b", "--overwrite", capsys=capsys)
        assert status == 0, err


def assert_equal_weights(one: Path, other: Path) -> None:
    """The weights of two checkpoints are equal (their fingerprints of settings may differ)."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_trained_output_layer_is_kept(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Continuing a classifier of the same classes at learning rate 0 changes nothing; other classes start anew."""
    common = ["--train", corpus, "--limit", 64, "--epochs", 1, "--quiet"]
    run("train", "--model", trained, "--output", tmp_path / "same", "--lr", 0, *common, capsys=capsys)
    assert_equal_weights(tmp_path / "same", trained)
    names = "contradiction,neutral,entailment"
    status, out, _ = run(
        "train", "--model", trained, "--output", tmp_path / "other", "--labels", names, *common, capsys=capsys
    )
    assert status == 0
    assert "starting a new one" in out
    assert json.loads((tmp_path / "other" / "config.json").read_text())["labels"] == names.split(",")


def test_a_regressors_output_layer_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one with a name, which no file of numbers has."""
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    bert = tiny_bert(len(tokenizer))
    save_pretrained(BERTRegressor(bert, 1, ["score"]), tmp_path / "model", tokenizer)
    (tmp_path / "data.csv").write_text("text,label\nred,0.5\ngreen,1.5\n")
    train = ["train", "--model", tmp_path / "model", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    status, out, err = run(*train, "--output", tmp_path / "same", "--lr", 0, "--epochs", 1, "--quiet", capsys=capsys)
    assert status == 0, err
    assert "starting a new one" not in out
    assert_equal_weights(tmp_path / "model", tmp_path / "same")


def test_what_a_first_run_gets_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real numbers taken for classes, examples longer than the model reads, and a learning rate that diverges."""
    rows = ["red,0.5,a", "green,1.5,b", "blue red green blue red,2,a"]
    (tmp_path / "data.csv").write_text("\n".join(["text,label,kind", *rows]) + "\n")
    train = ["train", "--scratch", "bert.small", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    train += ["--min-freq", 1, "--epochs", 1, "--quiet", "--output", tmp_path / "x", "--overwrite"]
    for options, message in (
        ([], "has labels such as 0.5: --task regression learns numbers, --task classification 3 classes"),
        (["--label-column", "kind", "--max-len", 513], "--max-len 513: the model reads 512 tokens at most"),
        (
            ["--label-column", "kind", "--lr", "1e30", "--max-grad-norm", 0, "--dev", tmp_path / "data.csv"],
            "training diverged. Lower the learning rate (--lr, now 1e+30)",
        ),
        (["--label-column", "kind", "--lr", "1e30", "--epochs", 9, "--warmup", 0.3], "training_state.pt"),
    ):
        status, _, err = run(*train, *options, capsys=capsys)
        assert (status, message in err) == (2, True), err
    assert not (tmp_path / "x" / "model.safetensors").exists()
    (tmp_path / "x" / "training_state.pt").unlink()
    for more in (["--task", "classification"], ["--label-column", "kind", "--max-len", 4]):
        status, out, err = run(*train, *more, capsys=capsys)
        assert status == 0, err
    assert "classes: a, b\n1 examples have 4 tokens, the most that --max-len allows" in out


def test_a_nearly_empty_vocabulary_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of few texts, few words occur five times."""
    (tmp_path / "data.csv").write_text("text,label\n" + "red one,a\nred two,b\n" * 3 + "red three,a\nred four,b\n")
    train = ["train", "--scratch", "bert.small", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    train += ["--epochs", 1, "--quiet", "--overwrite", "--output", tmp_path / "x"]
    message = "the vocabulary of 6 tokens lacks 50% of the words of --train: lower --min-freq (now 5), or use --vocab"
    for more, told in (([], True), (["--min-freq", 3], False)):  # then only "three" and "four" are unknown
        status, _, err = run(*train, *more, capsys=capsys)
        assert (status, message in err, err.count("\n")) == (0, told, told), err


def test_evaluations_within_an_epoch(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--eval-steps prints and keeps them, --keep their best models, --log their figures."""
    train = ["train", "--model", trained, "--train", corpus, "--output", tmp_path / "x", "--limit", 64, "--epochs", 1]
    train += ["--eval-steps", 3, "--keep", 1, "--log", "tensorboard", "--batch-size", 16, "--lr", 0, "--quiet"]
    status, out, err = run(*train, capsys=capsys)
    assert status == 0, err
    kept = tmp_path / "x" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["step-3", "step-4"]  # the best, of equals, and the last
    assert len(list((tmp_path / "x" / "tensorboard").iterdir())) == 1
    assert read_toml((tmp_path / "x" / "run.toml").read_text())["log"] == ["tensorboard"]
    assert_equal_weights(kept / "step-3", trained)
    lines = [json.loads(line) for line in (tmp_path / "x" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    for line in lines:
        assert f"step {line['step']}: dev loss {line['loss']:.3f}, dev accuracy {line['score']:.4f}" in out
    (kept / "step-3").rename(kept / "step-1")
    again = ["train", "--config", tmp_path / "x" / "run.toml", "--overwrite", "--quiet"]
    status, out, err = run(*again, capsys=capsys)
    assert status == 0, err
    assert sorted(path.name for path in kept.iterdir()) == ["step-3", "step-4"]  # not those of the run before


def test_the_limit_applies_to_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.csv").write_text("text,label\nred,a\ngreen,b\nblue,a\n")
    train = ["train", "--scratch", "bert.small", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    options = ["--limit", 2, "--min-freq", 1, "--epochs", 1, "--output", tmp_path / "x", "--quiet"]
    status, _, err = run(*train, *options, capsys=capsys)
    assert status == 0, err
    assert {"red", "green", "blue"} & set(json.loads((tmp_path / "x" / "vocab.json").read_text())) == {"red", "green"}


def test_one_class_is_nothing_to_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where -1, which says that there is no label, is a class."""
    data = tmp_path / "polarity.csv"
    data.write_text("text,label\nred,1\ngreen,-1\n")
    train = ["train", "--scratch", "bert.small", "--train", data, "--text-columns", "text", "--output", tmp_path / "x"]
    status, _, err = run(*train, "--min-freq", 1, "--epochs", 1, "--quiet", capsys=capsys)
    assert status == 2
    assert "every label of" in err
    assert "is '1': there is nothing to learn" in err
    status, out, err = run(*train, "--min-freq", 1, "--epochs", 1, "--quiet", "--labels=-1,1", capsys=capsys)
    assert status == 0, err
    assert "2 training examples" in out


def test_an_interrupted_training_is_resumed(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(output: Path, *more: str) -> list[object]:
        return ["train", "--scratch", "bert.small", "--train", corpus, "--output", output, "--epochs", 2,
                "--limit", 64, "--quiet", *more]  # fmt: skip

    assert run(*arguments(tmp_path / "whole"), capsys=capsys)[0] == 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "print_epoch", interrupt)
        assert run(*arguments(tmp_path / "cut"), capsys=capsys)[0] == 130
    status, _, err = run(*arguments(tmp_path / "cut"), capsys=capsys)
    assert status == 2
    assert "continue it with --resume" in err
    assert run(*arguments(tmp_path / "cut", "--resume", "--discard-state"), capsys=capsys)[0] == 0
    # Not the weights' bytes: the metadata in the file have no fixed order.
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert len({(tmp_path / name / "config.json").read_bytes() for name in ("whole", "cut")}) == 1
    assert (tmp_path / "whole" / "training_state.pt").exists()
    assert not (tmp_path / "cut" / "training_state.pt").exists()
    status, _, err = run(*arguments(tmp_path / "cut", "--resume"), capsys=capsys)
    assert (status, "to resume: the run is done, with --discard-state" in err) == (2, True)


def test_a_run_that_is_done_goes_on_for_more_epochs(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a constant learning rate it ends as a longer run does."""

    def arguments(output: Path, epochs: int, *more: str) -> list[object]:
        return ["train", "--scratch", "bert.small", "--train", corpus, "--output", output, "--epochs", epochs,
                "--limit", 64, "--schedule", "constant", "--warmup", 0, "--quiet", *more]  # fmt: skip

    assert run(*arguments(tmp_path / "whole", 3), capsys=capsys)[0] == 0
    assert run(*arguments(tmp_path / "more", 1), capsys=capsys)[0] == 0
    status, _, err = run(*arguments(tmp_path / "more", 3), capsys=capsys)
    assert (status, "or give it more --epochs with --resume" in err) == (2, True)
    config = ["--config", str(tmp_path / "more" / "run.toml")]
    status, out, err = run("train", *config, "--resume", "--epochs", 3, capsys=capsys)
    assert status == 0, err
    assert "continuing after step 2, in epoch 2" in err
    assert "epoch 1:" not in out
    assert_equal_weights(tmp_path / "more", tmp_path / "whole")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("more", "whole")]
    shown = [[{**json.loads(line), "seconds": 0, "pairs_per_second": 0} for line in each] for each in lines]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 3


def test_folds_are_measured_before_the_model_is_trained(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They change nothing of it, and are in the report."""

    def arguments(output: Path, *more: object) -> list[object]:
        return ["train", "--model", trained, "--train", corpus, "--output", output, "--epochs", 1, "--limit", 48,
                "--quiet", *more]  # fmt: skip

    assert run(*arguments(tmp_path / "plain"), capsys=capsys)[0] == 0
    status, out, err = run(*arguments(tmp_path / "folds", "--folds", 3, "--json"), capsys=capsys)
    assert status == 0, err
    folds = [line for line in map(json.loads, out.splitlines()) if "fold" in line]
    assert [line["fold"] for line in folds] == [1, 2, 3]
    mean = sum(line["accuracy"] for line in folds) / 3
    assert f"3 folds: loss {sum(line['loss'] for line in folds) / 3:.4f} ± " in err
    assert f"accuracy {mean:.4f} ± " in err
    assert "checkpoint, folds.jsonl, metrics.jsonl, " in err
    page = tmp_path / "folds" / "report.html"
    assert "Cross-validation in 3 folds" in page.read_text()
    with monkeypatch.context() as patch:  # a continued run knows them
        patch.setattr(train_command, "cross_validate", lambda *_, **__: pytest.fail("the folds were trained again"))
        status, out, err = run(*arguments(tmp_path / "folds", "--folds", 3, "--json", "--resume"), capsys=capsys)
        assert status == 0, err
        assert [line for line in map(json.loads, out.splitlines()) if "fold" in line] == folds
        assert f"<td>{mean:.4f}</td>" in page.read_text()
    assert_equal_weights(tmp_path / "folds", tmp_path / "plain")


def test_demo_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(
        "demo", "--output", tmp_path, "--pairs", 300, "--epochs", 1, "--quiet", capsys=capsys
    )  # fmt: skip
    assert status == 0, err
    assert "test accuracy" in out
    assert out.count("    -> ") == 3
    assert {"corpus", "config.json", "model.safetensors", "report.html", "metrics.jsonl"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_a_report_without_matplotlib_says_so(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run(
        "train", "--model", trained, "--train", corpus, "--output", tmp_path, "--epochs", 1, "--limit", 8, "--quiet",
        capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert f"checkpoint, metrics.jsonl, run.toml and report.html: {tmp_path}" in out
    assert "Not drawn: matplotlib is missing" in (tmp_path / "report.html").read_text()


def test_a_calibrated_run_shows_its_own_figures(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those in the report are of the saved model."""
    train = ["train", "--model", trained, "--train", corpus, "--output", tmp_path / "x", "--epochs", 2, "--lr", "1e-3"]
    status, out, err = run(*train, "--calibrate", "--quiet", capsys=capsys)
    assert status == 0, err
    assert re.search(r"calibrated: outputs divided by \d", out)
    dev = corpus / "snli_1.0_dev.txt"
    out = run("evaluate", "--model", tmp_path / "x", "--data", dev, "--json", capsys=capsys)[1]
    figures = json.loads(out)
    page = (tmp_path / "x" / "report.html").read_text()
    shown = dict(re.findall(r"<div>(\w+)<b>([\d.]+)</b></div>", page[page.index("Evaluation on the dev data") :]))
    assert shown["loss"] == f"{figures['loss']:.4f}"
    assert shown["accuracy"] == f"{figures['accuracy']:.4f}"
    assert "at temperature 1.00, the best here" in page
