"""Predictions in the shape of the input: every column, every row, in order, and those of `predict`."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest
import torch
from helpers.tiny_tasks import NAMES, PIECES, WORDS

from bertnli import BERTClassifier, BERTConfig, BERTModel, BERTRegressor, WordPieceTokenizer, predict
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
