"""Predictions in the shape of the input: every column, every row, in order, and those of `predict`."""

from __future__ import annotations

import datetime
import json
import re
from decimal import Decimal
from pathlib import Path

import pandas
import pyarrow as pa
import pytest
import torch
from helpers.tiny_tasks import NAMES, PIECES, WORDS
from pyarrow import parquet

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTQuestionAnswering,
    BERTRegressor,
    BERTTagger,
    WordPieceTokenizer,
    predict,
)
from bertnli.inference.files import predict_file

TOKENIZER = WordPieceTokenizer(PIECES)
FRAME = pandas.DataFrame({
    "id": [f"0{i}" for i in range(9000)],
    "premise": [WORDS[i % 8] + ', "x"\n' for i in range(9000)],
    "hypothesis": [WORDS[i % 5] for i in range(9000)],
    "label": ["gold"] * 9000,
})  # fmt: skip


def bert() -> BERTModel:
    torch.manual_seed(0)
    sizes = dict(num_hiddens=8, ffn_num_hiddens=8, num_heads=2, num_layers=1, max_len=16)
    return BERTModel(BERTConfig.original(len(PIECES), **sizes, pretraining_heads=False))


def write(path: Path, frame: pandas.DataFrame) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


def read(path: Path) -> pandas.DataFrame:
    if path.suffix == ".jsonl":
        return pandas.read_json(path, lines=True, dtype=False)
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    return pandas.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype={"id": str})


def test_progress_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bertnli.data.progress._LINE_SECONDS", 0.0)
    source, model = write(tmp_path / "in.csv", FRAME), BERTClassifier(bert(), 2, NAMES).eval()
    predict_file(model, TOKENIZER, source, tmp_path / "out.csv")
    assert capsys.readouterr().err == ""
    predict_file(model, TOKENIZER, source, tmp_path / "out.csv", progress=True)
    assert re.search(r"^predict: 9,000 rows, [0-9,]+ rows/s\n$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("given", "written"), [(".csv", ".csv"), (".jsonl", ".parquet"), (".parquet", ".jsonl"), (".csv", ".tsv")]
)
def test_tables_keep_their_shape(tmp_path: Path, given: str, written: str) -> None:
    model = BERTClassifier(bert(), 2, NAMES).eval()
    source, output = write(tmp_path / f"in{given}", FRAME), tmp_path / f"out{written}"
    assert predict_file(model, TOKENIZER, source, output, probabilities=True) == (9000, 0)
    found = read(output)
    assert list(found) == [*FRAME, "predicted_label", "score", "probability_none", "probability_some"]
    assert all(found[name].tolist() == FRAME[name].tolist() for name in FRAME)
    expected = predict(model, TOKENIZER, FRAME["premise"].tolist(), FRAME["hypothesis"].tolist())
    assert found["predicted_label"].tolist() == [p.label for p in expected]
    torch.testing.assert_close(
        torch.tensor(found["score"]), torch.tensor([max(p.probabilities.values()) for p in expected]).double()
    )


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    model = BERTRegressor(bert()).eval()
    (tmp_path / "x.jsonl").write_text('{"text": "red", "id": 1}\nno\n{"text": null}\n{"text": "blue", "more": [2]}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: not JSON"):
        predict_file(model, TOKENIZER, tmp_path / "x.jsonl", tmp_path / "out.jsonl", text_columns=["text"])
    assert not (tmp_path / "out.jsonl").exists()
    files = tmp_path / "x.jsonl", tmp_path / "out.jsonl"
    assert predict_file(model, TOKENIZER, *files, text_columns=["text"], bad_rows=tmp_path / "bad.jsonl") == (2, 2)
    rows, bad = (
        [json.loads(line) for line in (tmp_path / n).read_text().splitlines()] for n in ("out.jsonl", "bad.jsonl")
    )
    assert [row.pop("score") for row in rows] == pytest.approx(predict(model, TOKENIZER, ["red", "blue"]))
    assert rows == [{"text": "red", "id": 1}, {"text": "blue", "more": [2]}]
    assert [(row["line"], row["error"][:12]) for row in bad] == [(2, "not JSON: ex"), (3, "text is None")]


def test_other_outputs_and_columns_are_refused(tmp_path: Path) -> None:
    model = BERTRegressor(bert())
    (tmp_path / "x.csv").write_text("a,b\nred,blue\n")
    with pytest.raises(ValueError, match=r"written as .csv, .tsv, .jsonl, .parquet; found the suffix '.xlsx'"):
        predict_file(model, TOKENIZER, tmp_path / "x.csv", tmp_path / "x.xlsx", text_columns=["a"])
    with pytest.raises(ValueError, match=r"x\.csv has the columns 'a', 'b', and not the model's; name its columns"):
        predict_file(model, TOKENIZER, tmp_path / "x.csv", tmp_path / "y.csv")
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"x\.csv has no rows"):
        predict_file(model, TOKENIZER, tmp_path / "x.csv", tmp_path / "y.csv", text_columns=["a"])


def test_columns_of_other_types_stay(tmp_path: Path) -> None:
    """Dates, decimals and lists of a .parquet file are not read, but written as they were."""
    table = pa.table({
        "text": ["red", "blue"] * 3000,
        "day": [datetime.date(2020, 1, 2), None] * 3000,
        "price": pa.array([Decimal("1.50"), None] * 3000, pa.decimal128(9, 2)),
        "small": pa.array([1, 2] * 3000, pa.int8()),
        "list": [[1.5], []] * 3000,
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=1000)
    model = BERTRegressor(bert()).eval()
    for suffix in (".parquet", ".jsonl", ".csv"):
        predict_file(model, TOKENIZER, tmp_path / "in.parquet", tmp_path / f"out{suffix}", text_columns=["text"])
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.drop_columns("score").equals(table)
    assert found["score"].to_pylist()[:2] == pytest.approx(predict(model, TOKENIZER, ["red", "blue"]))
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()[:2])
    assert first | {"score": 0} == {
        "text": "red", "day": "2020-01-02", "price": "1.50", "small": 1, "list": [1.5], "score": 0,
    }  # fmt: skip
    assert (second["day"], second["price"], second["list"]) == (None, None, [])
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("red,2020-01-02,1.50,1,[1.5],")


def test_parquet_of_values_of_different_types(tmp_path: Path) -> None:
    model = BERTRegressor(bert()).eval()
    rows = [{"text": "red", "x": None}] * 70_000
    for last, error in (("late", None), (3, "different types .*write .jsonl instead")):
        lines = [*map(json.dumps, rows), json.dumps({"text": "blue", "x": last})]
        (tmp_path / "x.jsonl").write_text("\n".join(lines))
        files = tmp_path / "x.jsonl", tmp_path / "out.parquet"
        if error is not None:
            with pytest.raises(ValueError, match=error):
                predict_file(model, TOKENIZER, *files, text_columns=["text"])
        else:
            assert predict_file(model, TOKENIZER, *files, text_columns=["text"]) == (70_001, 0)
            assert parquet.read_table(files[1])["x"].to_pylist()[-2:] == [None, "late"]


SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "t", "paragraphs": [
            {"context": "red one two", "qas": [{"id": "a", "question": "which?", "answers": []},
                                               {"id": 7, "question": "one?", "more": [1]}]},
            {"context": "blue é", "qas": [{"id": "é", "question": "two?", "answers": []}]},
        ]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
def test_squad(indent: int | None, tmp_path: Path) -> None:
    model = BERTQuestionAnswering(bert()).eval()
    model.settings["stride"] = 1
    (tmp_path / "in.json").write_text(json.dumps(SQUAD, indent=indent))
    expected = predict(model, TOKENIZER, ["which?", "one?", "two?"], ["red one two", "red one two", "blue é"])
    for name in ("out.json", "out.squad.json", "out.jsonl"):
        assert predict_file(model, TOKENIZER, tmp_path / "in.json", tmp_path / name) == (3, 0)
    answers = json.loads((tmp_path / "out.json").read_text())
    assert list(answers.items()) == list(zip(["a", "7", "é"], [answer.text for answer in expected], strict=True))
    whole = json.loads((tmp_path / "out.squad.json").read_text())
    qas = [qa for paragraph in whole["data"][0]["paragraphs"] for qa in paragraph["qas"]]
    assert [qa.pop("prediction") for qa in qas] == [pytest.approx(vars(answer)) for answer in expected]
    assert whole == SQUAD
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["context"], row["text"]) for row in rows] == list(
        zip(["a", "7", "é"], ["red one two", "red one two", "blue é"], answers.values(), strict=True)
    )
    repeated = json.dumps(SQUAD).replace('"a"', '"7"')
    (tmp_path / "in.json").write_text(repeated)
    with pytest.raises(ValueError, match=r"qas\[1\]\.id is '7', as .*; ids must differ"):
        predict_file(model, TOKENIZER, tmp_path / "in.json", tmp_path / "out.json")
    (tmp_path / "x.json").write_text('{"question": "which?", "context": "red"}\n' * 2)  # JSON lines
    assert predict_file(model, TOKENIZER, tmp_path / "x.json", tmp_path / "x.csv") == (2, 0)


CONLL = "-DOCSTART- -X- O\n\n# a comment of words\nred NN O\none CD O\n\n\ntwo  CD  O"
CONLLU = """# text = red one
1-2\tredone\t_\t_\t_\t_\t_\t_\t_\t_
1\tred\tred\tADJ\t_\t_\t2\tamod\t_\t_
2\tone\tone\tNUM\t_\t_\t0\troot\t_\tSpaceAfter=No

"""


def test_conll(tmp_path: Path) -> None:
    model = BERTTagger(bert(), 2, ("X", "Y")).eval()
    (a, b), (c,) = predict(model, TOKENIZER, [["red", "one"], ["two"]])
    (tmp_path / "in.conll").write_bytes(CONLL.encode("utf-16"))
    files = tmp_path / "in.conll", tmp_path / "out.conll"
    assert predict_file(model, TOKENIZER, *files, encoding="utf-16") == (2, 0)
    assert files[1].read_text() == CONLL.replace("NN O", f"NN O {a}").replace("CD O", f"CD O {b}") + f" {c}\n"
    (tmp_path / "words.conll").write_text("red\none\n")
    predict_file(model, TOKENIZER, tmp_path / "words.conll", files[1])
    assert files[1].read_text() == f"red {a}\none {b}\n"
    (tmp_path / "in.conllu").write_text(CONLLU)
    files = tmp_path / "in.conllu", tmp_path / "out.conllu"
    assert predict_file(model, TOKENIZER, *files) == (1, 0)
    expected = CONLLU.replace("amod\t_\t_", f"amod\t_\tPredicted={a}").replace("=No", f"=No|Predicted={b}")
    assert files[1].read_text() == expected
    with pytest.raises(
        ValueError, match=r"written as .csv, .tsv, .jsonl, .parquet, .conllu; found the suffix '.conll'"
    ):
        predict_file(model, TOKENIZER, files[0], tmp_path / "out.conll")
    with pytest.raises(ValueError, match="predictions have none"):
        predict_file(model, TOKENIZER, files[0], tmp_path / "out.csv", probabilities=True)
