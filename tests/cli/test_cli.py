"""The `bertnli` command: its files, its output and its complaints."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTRegressor,
    BERTTagger,
    TextData,
    WordPieceTokenizer,
    WordTokenizer,
    predict,
    read_pairs,
    save_pretrained,
)
from bertnli.cli import main
from bertnli.data.demo import write_demo_corpus

LABELS = ["entailment", "contradiction", "neutral"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_demo_corpus(folder, seed=2, train=300, dev=60, test=60)
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder that `train --scratch` wrote."""
    output = tmp_path_factory.mktemp("trained")
    arguments = ["--scratch", "bert.small", "--train", str(corpus), "--output", str(output), "--epochs", "2"]
    assert main(["train", *arguments, "--lr", "1e-3", "--min-freq", "1", "--quiet"]) == 0
    return output


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_train_writes_its_files(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "config.json", "model.safetensors", "vocab.json", "metrics.jsonl", "curves.png",
    }  # fmt: skip
    epochs = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert all(0 < e["dev_score"] < 1 and e["train_loss"] > 0 for e in epochs)
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((trained / "config.json").read_text())["labels"] == LABELS


def test_train_from_a_checkpoint(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(
        "train", "--model", trained, "--train", corpus / "snli_1.0_train.txt", "--dev", corpus / "snli_1.0_dev.txt",
        "--output", tmp_path / "new" / "run", "--epochs", 1, "--limit", 64, "--freeze", "1", "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert "64 training examples in 64 rows" in out
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
        status, _, err = run("train", *more, *arguments, "--output", tmp_path / "b", capsys=capsys)
        assert status == 0, err


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


def test_names_given_to_evaluate_name_its_figures(
    trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_standard_input_is_answered_batch_by_batch(trained: Path) -> None:
    """A reader at the other end of a pipe is not kept waiting; a byte order mark is not text."""
    command = [sys.executable, "-m", "bertnli", "predict", "--model", str(trained), "--batch-size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'\xef\xbb\xbf{"premise": "A man is sleeping.", "hypothesis": "A man isn\'t."}\n')
        process.stdin.write(b'{"premise": "x", "hypothesis": "y"}\n')
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        process.stdin.close()
        rest = process.stdout.read()
    assert first["label"] in LABELS
    assert rest.count(b"\n") == 1
    assert process.returncode == 0


def test_words_are_set_apart_from_punctuation() -> None:
    from bertnli.text.vocab import Vocab, space_out, space_out_data

    assert space_out("A man's dog isn't sleeping, they're up.").split() == [
        "A", "man", "'s", "dog", "is", "n't", "sleeping", ",", "they", "'re", "up", ".",
    ]  # fmt: skip
    tokens = "a t-shirt ( red ) , is n't it ?"
    assert space_out(tokens).split() == tokens.split()
    tokenizer = WordTokenizer.from_texts(["a man is n't sleeping , they 're up ."], 1)
    torch.manual_seed(0)
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=16, ffn_num_hiddens=16, num_heads=1, num_layers=1))
    model = BERTClassifier(bert)
    apart = ["a man is n't sleeping .", "they 're up , a man ."]
    assert predict(model, tokenizer, "A man isn't sleeping.", "They're up, a man.") == predict(model, tokenizer, *apart)
    with pytest.raises(TypeError, match="hypotheses must be a sequence of str, not one str"):
        predict(model, tokenizer, ["a"], "b")
    data = space_out_data(TextData.of("In the U.S. ... he isn't."), Vocab.of(["u.s.", "..."]))
    assert [text.split() for text in data.first] == [["In", "the", "U.S.", "...", "he", "is", "n't", "."]]


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


def test_a_trained_output_layer_is_kept(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Continuing a classifier of the same classes at learning rate 0 changes nothing; other classes start anew."""
    common = ["--train", corpus, "--limit", 64, "--epochs", 1, "--quiet"]
    run("train", "--model", trained, "--output", tmp_path / "same", "--lr", 0, *common, capsys=capsys)
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
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
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=8, ffn_num_hiddens=8, num_heads=1, num_layers=1))
    save_pretrained(BERTRegressor(bert, 1, ["score"]), tmp_path / "model", tokenizer)
    (tmp_path / "data.csv").write_text("text,label\nred,0.5\ngreen,1.5\n")
    train = ["train", "--model", tmp_path / "model", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    status, out, err = run(*train, "--output", tmp_path / "same", "--lr", 0, "--epochs", 1, "--quiet", capsys=capsys)
    assert status == 0, err
    assert "starting a new one" not in out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "same")]
    assert weights[0] == weights[1]


def test_what_a_first_run_gets_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real numbers taken for classes, rows longer than the model reads, and a rate at which nothing is learnt."""
    rows = ["red,0.5,a", "green,1.5,b", "blue red green blue red,2,a"]
    (tmp_path / "data.csv").write_text("\n".join(["text,label,kind", *rows]) + "\n")
    train = ["train", "--scratch", "bert.small", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    train += ["--min-freq", 1, "--epochs", 1, "--quiet", "--output", tmp_path / "x"]
    for options, message in (
        ([], "has labels such as 0.5: --task regression learns numbers, --task classification 3 classes"),
        (["--label-column", "kind", "--max-len", 513], "--max-len 513: the model reads 512 tokens at most"),
        (
            ["--label-column", "kind", "--lr", "1e30", "--max-grad-norm", 0, "--dev", tmp_path / "data.csv"],
            "in epoch 1: training has diverged",
        ),
        (["--label-column", "kind", "--lr", "1e30", "--epochs", 9, "--warmup", 0.3], "training_state.pt before"),
    ):
        status, _, err = run(*train, *options, capsys=capsys)
        assert (status, message in err) == (2, True), err
    assert not (tmp_path / "x" / "model.safetensors").exists()
    (tmp_path / "x" / "training_state.pt").unlink()
    for options in (["--task", "classification"], ["--label-column", "kind", "--max-len", 4]):
        status, out, err = run(*train, *options, capsys=capsys)
        assert status == 0, err
    assert "classes: a, b\n1 rows are as long as rows may be (4 tokens, --max-len)" in out


def test_predict_reads_columns_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=8, ffn_num_hiddens=8, num_heads=1, num_layers=1))
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
        assert (status, "those of a file" in err) == (2, True)
        arguments[4] = "one,two,id"
        status, _, err = run(*arguments, "--input", tmp_path / "data.csv", capsys=capsys)
        assert (status, "--text-columns names 3; the model takes" in err) == (2, True)
    assert [len(json.loads(line)) for line in outputs[0].splitlines()] == [2, 1]  # tags of words
    status, out, err = run(*arguments[:3], "--input", tmp_path / "data.tsv", capsys=capsys)
    assert (status, out) == (0, outputs[1])


def test_a_model_that_has_diverged_predicts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=8, ffn_num_hiddens=8, num_heads=1, num_layers=1))
    torch.nn.init.constant_(bert.encoder.blks[0].ffn.dense1.weight, float("nan"))
    save_pretrained(BERTClassifier(bert), tmp_path / "model", tokenizer)
    (tmp_path / "data.txt").write_text("red\tgreen\n")
    status, out, err = run("predict", "--model", tmp_path / "model", "--input", tmp_path / "data.txt", capsys=capsys)
    assert (status, out) == (2, "")
    assert "outputs are no numbers (NaN)" in err


def test_a_limit_is_one_on_the_vocabulary_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.csv").write_text("text,label\nred,a\ngreen,b\nblue,a\n")
    train = ["train", "--scratch", "bert.small", "--train", tmp_path / "data.csv", "--text-columns", "text"]
    options = ["--limit", 2, "--min-freq", 1, "--epochs", 1, "--output", tmp_path / "x", "--quiet"]
    status, _, err = run(*train, *options, capsys=capsys)
    assert status == 0, err
    assert {"red", "green", "blue"} & set(json.loads((tmp_path / "x" / "vocab.json").read_text())) == {"red", "green"}


def test_bad_input_is_one_line_and_status_2(
    trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.tsv"
    header = (corpus / "snli_1.0_test.txt").read_text().splitlines()[0]
    (tmp_path / "broken.txt").write_text(header + "\nneutral\tonly\n")
    train = ["train", "--scratch", "bert.small", "--output", tmp_path / "never"]
    cases: list[tuple[list[object], str, str]] = [
        (["evaluate", "--model", tmp_path / "none", "--data", corpus], "", "none is not a folder"),
        (["evaluate", "--model", trained, "--data", tmp_path / "none.txt"], "", "none.txt"),
        (["evaluate", "--model", trained, "--data", tmp_path / "broken.txt"], "", "broken.txt:2"),
        (["predict", "--model", trained, "--input", bad], "a\tb\na b\n", "bad.tsv:2: expected premise<TAB>hypothesis"),
        (["predict", "--model", trained, "--input", bad], "a\tb\n\n", "bad.tsv:2: the line is empty"),
        (["predict", "--model", trained, "--input", bad], '{"premise": 1}\n', "bad.tsv:1: expected an object with"),
        (["predict", "--model", trained, "--input", bad], "{oops\n", "bad.tsv:1: not JSON"),
        (["predict", "--model", trained, "--input", tmp_path / "gone"], "", "gone"),
        ([*train, "--train", tmp_path], "", "tried"),
        ([*train, "--train", corpus, "--freeze", "9"], "", "freeze must be None"),
        ([*train, "--train", corpus, "--max-len", "2"], "", "max_len"),
        ([*train, "--train", corpus, "--labels", "yes,no"], "", "unknown label"),
        ([*train, "--train", corpus, "--resume"], "", "no "),
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
    assert "not UTF-8" in err
    predict = ["predict", "--model", trained, "--input", bad]
    for arguments in (
        ["train"], ["predict"], ["nothing"], [*train, "--train", corpus, "--model", "x"],
        [*predict, "--batch-size", "0"], [*predict, "--batch-size", "-1"], [*train, "--train", corpus, "--limit", "-3"],
        [*train, "--train", corpus, "--batch-size", "8", "--batch-tokens", "300"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        assert stop.value.code == 2


def test_an_interrupted_training_is_resumed(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertnli import cli

    def arguments(output: Path, *more: str) -> list[object]:
        return ["train", "--scratch", "bert.small", "--train", corpus, "--output", output, "--epochs", 2,
                "--limit", 64, "--quiet", *more]  # fmt: skip

    assert run(*arguments(tmp_path / "whole"), capsys=capsys)[0] == 0

    def interrupt(e: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "_print_epoch", interrupt)
        assert run(*arguments(tmp_path / "cut"), capsys=capsys)[0] == 130
    status, _, err = run(*arguments(tmp_path / "cut"), capsys=capsys)
    assert status == 2
    assert "continue it with --resume" in err
    assert run(*arguments(tmp_path / "cut", "--resume"), capsys=capsys)[0] == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert not (tmp_path / "cut" / "training_state.pt").exists()


def test_demo_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(
        "demo", "--output", tmp_path, "--pairs", 300, "--epochs", 1, "--quiet", capsys=capsys
    )  # fmt: skip
    assert status == 0, err
    assert "test accuracy" in out
    assert out.count("    -> ") == 3
    assert {"corpus", "config.json", "model.safetensors", "curves.png", "metrics.jsonl"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_download_of_a_local_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    from bertnli.data import download as hub

    with zipfile.ZipFile(tmp_path / "snli_1.0.zip", "w") as archive:
        archive.writestr("snli_1.0/snli_1.0_test.txt", "x")
    monkeypatch.setitem(hub.DATA_HUB, "SNLI", ((tmp_path / "snli_1.0.zip").as_uri(), None))
    status, out, _ = run("download", "SNLI", "--folder", tmp_path / "to", capsys=capsys)
    assert status == 0
    assert Path(out.strip()) == tmp_path / "to" / "snli_1.0"
    assert (tmp_path / "to" / "snli_1.0" / "snli_1.0_test.txt").exists()


def jobs(folder: Path) -> dict[str, tuple[list[str], str, str, dict[str, object]]]:
    """Of each task: options of a small job, its training file, a line to predict, and the same as JSON."""
    rng = random.Random(0)
    words = ["red", "green", "blue", "one", "two"]
    texts = [" ".join(rng.choices(words, k=4)) for _ in range(60)]
    (folder / "single.csv").write_text("text,kind\n" + "".join(f"{t},{'ab'['red' in t]}\n" for t in texts))
    (folder / "scores.tsv").write_text("".join(f"{t}\t{t[::-1]}\t{t.count('red')}.5\n" for t in texts))
    (folder / "tags.conll").write_text(
        "".join("".join(f"{w}\t{'B-c' if w == 'red' else 'O'}\n" for w in t.split()) + "\n" for t in texts)
    )
    qas = [{"id": str(i), "question": "which colour?", "answers": [{"answer_start": t.find(t.split()[1]),
            "text": t.split()[1]}]} for i, t in enumerate(texts)]  # fmt: skip
    paragraphs = [{"context": t, "qas": [qa]} for t, qa in zip(texts, qas, strict=True)]
    (folder / "squad.json").write_text(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}))
    table = ["--text-columns", "text", "--label-column", "kind"]
    return {
        "classification": (table, "single.csv", "red one", {"text": "red one"}),
        "regression": (["--text-columns", "1,2", "--label-column", "3"], "scores.tsv", "red one\teno",
                       {"premise": "red one", "hypothesis": "eno"}),
        "tagging": ([], "tags.conll", "red one", {"words": ["red", "one"]}),
        "qa": ([], "squad.json", "which?\tred one", {"question": "which?", "context": "red one"}),
    }  # fmt: skip


@pytest.mark.parametrize("vocab", ["words", "characters"])
@pytest.mark.parametrize("task", ["classification", "regression", "tagging", "qa"])
def test_every_task_from_file_to_prediction(
    task: str, vocab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, name, line, as_object = jobs(tmp_path)[task]
    data, model = tmp_path / name, tmp_path / "model"
    status, out, err = run(
        "train", "--scratch", "bert.small", "--task", task, "--vocab", vocab, "--min-freq", 1, "--train", data,
        "--dev", data, *reading, "--output", model, "--epochs", 1, "--max-len", 40, "--quiet", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert f"{task}: 60 training examples in 60 rows" in out
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
    reading, name, *_ = jobs(tmp_path)[other]
    status, out, err = run(
        "train", "--model", model, "--task", other, "--train", tmp_path / name, *reading, "--output",
        tmp_path / "other", *more, capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert "starting a new one" in out
    assert json.loads((tmp_path / "other" / "config.json").read_text())["task"] == other


def test_rows_are_as_long_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_tagger_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its columns are not taken for the tags of the data by the alphabet."""
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "red", "green"])
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=8, ffn_num_hiddens=8, num_heads=1, num_layers=1))
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


def test_predict_expects_what_the_model_was_trained_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, name, *_ = jobs(tmp_path)["regression"]
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
    assert "regression needs --text-columns and --label-column" in err
    for option, message in (
        (["--label-column", "tone"], "--label-column goes with --text-columns"),
        (["--stride", 4], "--stride is for question answering"),
    ):
        status, _, err = run(
            "train", "--scratch", "bert.small", "--train", corpus, *option, "--output", tmp_path / "x",
            capsys=capsys,
        )  # fmt: skip
        assert status == 2
        assert message in err


def test_characters_of_chinese(data_dir: Path) -> None:
    """Every character of its own training text is a token; nothing is unknown but what is rare."""
    data = read_pairs(data_dir / "ocnli" / "train.10k.json", "text")
    texts = [*data.first, *(data.second or ())]
    tokenizer = WordPieceTokenizer.of_characters(texts, 1)
    encoded = tokenizer.encode_texts(texts, 512)
    assert int((encoded.ids == tokenizer.unk_id).sum()) == 0
    assert tokenizer.tokenize("我们OK了") == ["我", "们", "o", "##k", "了"]
    rare = WordPieceTokenizer.of_characters(texts, 5)
    assert 0 < int((rare.encode_texts(texts, 512).ids == rare.unk_id).sum()) < 0.01 * len(encoded.ids)
