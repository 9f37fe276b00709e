"""Readers of tables, tags and questions; and that each complaint names file and line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from bertnli import TextData, read_conll, read_conllu, read_pairs, read_squad, read_table

ROWS = [  # text with what each format must quote; label
    ("plain", "b", "yes"),
    ('with "quotes", a comma', "x", "no"),
    ("ünïcode 中文", "y", "yes"),
    ("dropped", "z", "-"),
    ("", "an empty text is a text", "maybe"),
]


def write(path: Path) -> Path:
    """ROWS as columns id, first, second, gold of the format that the suffix names."""
    rows = [(i, *row) for i, row in enumerate(ROWS)]
    names = ("id", "first", "second", "gold")
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        path.write_text("".join("\t".join(map(str, row)) + "\r\n" for row in (names, *rows)), "utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"data{suffix}")
    data = read_table(path, ["first", "second"], "gold")
    kept = [row for row in ROWS if row[2] != "-"]
    assert list(data.first) == [row[0] for row in kept]
    assert data.second == [row[1] for row in kept]
    assert data.label_names == ("maybe", "no", "yes")
    assert data.labels == [2, 1, 2, 0]
    assert data.dropped == 1
    single = read_table(path, "second", "gold", ("yes", "no", "maybe"))
    assert single.second is None
    assert list(single.first) == [row[1] for row in kept]
    assert single.labels == [0, 1, 0, 2]
    assert list(single[1:3].first) == ["x", "y"]
    assert single[1:3].second is None
    with pytest.raises(ValueError, match=rf"data\{suffix}.*no column 'nope'; the columns are 'id', 'first'"):
        read_table(path, "nope", "gold")
    with pytest.raises(ValueError, match=rf"data\{suffix}:\d: unknown label 'maybe'; expected one of yes, no"):
        read_table(path, "second", "gold", ("yes", "no"))
    with pytest.raises(ValueError, match=rf"data\{suffix}:\d: 'yes' is not a number"):
        read_table(path, "second", "gold", real=True)


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def of(*labels: object, **options: object) -> TextData:
        path.write_text("".join(json.dumps({"t": "a", "l": label}) + "\n" for label in labels))
        return read_table(path, "t", "l", **options)  # type: ignore[arg-type]

    assert of(10, 9, None, -1).label_names == ("9", "10")
    assert of(10, 9, None, -1).dropped == 2
    assert of("b", "a", "b").labels == [1, 0, 1]
    assert of("1", 0, label_names=("no", "yes")).labels == [1, 0]
    assert of("1", "-1", label_names=("-1", "1")).labels == [1, 0]
    assert of("10.0", "1", "1.0", 2.0).label_names == ("1", "1.0", "2.0", "10.0")
    with pytest.raises(ValueError, match=r"x\.jsonl:2: unknown label '0'; expected one of 1, 2"):
        of(1, 0, label_names=("1", "2"))  # a class that the training data lacks is no index
    for bad in (["a"], {"a": 1}, math.nan):
        with pytest.raises(ValueError, match=r"x\.jsonl:2: l is .*, not a label"):
            of("a", bad)
    data = of(1, -1, "2.5", -0.5, real=True)
    assert (data.labels, data.label_names, data.dropped) == ([1.0, -1.0, 2.5, -0.5], (), 0)
    for score in ("nan", "inf", "1e999"):
        with pytest.raises(ValueError, match=rf"x\.jsonl:2: '{score}' is not a number"):
            of(1, score, real=True)
    for none in (["-"], []):
        with pytest.raises(ValueError, match=r"x\.jsonl has no labelled rows"):
            of(*none)
    path.write_text('{"t": "a", "l": "b"}\n\n{"t": "c", "l": "b"}\n\n')
    assert list(read_table(path, "t", "l").first) == ["a", "c"]
    path.write_text('{"t": 5, "l": "a"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1: t is 5, not a text"):
        read_table(path, "t", "l")


def test_rows_without_labels(tmp_path: Path) -> None:
    data = read_table(write(tmp_path / "data.csv"), "first", None)
    assert list(data.first) == [row[0] for row in ROWS]
    assert (data.labels, data.label_names, data.dropped) == (None, (), 0)
    with pytest.raises(ValueError, match=r"no column '2' \(numbers count columns only if all columns"):
        read_table(tmp_path / "data.csv", "2", "gold")


def test_fields_of_any_length(tmp_path: Path) -> None:
    text = "word " * 40_000
    for name, comma in (("a.tsv", "\t"), ("a.csv", ",")):
        csv.field_size_limit(131_072)  # Python's own
        (tmp_path / name).write_text(f"first{comma}gold\n{text}{comma}yes\n")
        assert list(read_table(tmp_path / name, "first", "gold").first) == [text]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'first,gold\n"open,yes\n', r"a\.csv:2: unexpected end of data"),
        ("a.csv", "first,gold\na,yes\nb\n", r"a\.csv:3: expected at least 2 columns, found 1"),
        ("a.csv", 'first,gold\n"two\nlines",yes\nb\n', r"a\.csv:4: expected at least 2"),
        ("a.tsv", "first\tgold\na\tyes\nb\n", r"a\.tsv:3: expected at least 2"),
        ("a.jsonl", '{"first": "a", "gold": 1}\nnope\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: expected a JSON object"),
        ("a.jsonl", '{"first": "a", "gold": 1}\n{"first": "a"}\n', r"a\.jsonl:2: there is no column 'gold'"),
        ("a.tsv", b"first\tgold\n\xff\tyes\n", r"a\.tsv is not UTF-8"),
        ("a.csv", "", r"a\.csv: there is no column 'first'"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name, "first", "gold")


def test_broken_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.PARQUET"):
        (tmp_path / name).write_bytes(b"PAR1junk")
        with pytest.raises(ValueError, match=rf"{name} is corrupt or not a parquet file"):
            read_table(tmp_path / name, "first", "gold")


def test_absent_files(tmp_path: Path) -> None:
    for read in (lambda p: read_table(p, "a", "b"), read_conll, read_conllu, read_squad):
        with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.csv"):
            read(tmp_path / "nothing.csv")
        with pytest.raises(IsADirectoryError, match="name a file in it"):
            read(tmp_path)


def test_mnli(tmp_path: Path) -> None:
    """Its label is the last column, beside columns that SNLI does not have; an unmatched quote is a character."""
    columns = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
               "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"]  # fmt: skip
    row = ["0", "31193", "31193n", "government", '( A ( " dog ) )', "( A cat )", "", "", 'A "dog', "A cat", "n"]
    row.append("neutral")
    path = tmp_path / "multinli_1.0_train.txt"
    path.write_text("\t".join(columns) + "\n" + "\t".join(row) + "\n")
    for columns_, first in (("text", 'A "dog'), ("parse", 'A " dog')):
        data = read_pairs(path, columns_)  # type: ignore[arg-type]
        assert (list(data.first), data.labels) == ([first], [2])
    assert read_table(path, ["sentence1", "sentence2"], "gold_label", ("neutral",)).labels == [0]
    lines = tmp_path / "multinli_1.0_train.jsonl"
    lines.write_text(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    assert list(read_pairs(lines, "text").first) == ['A "dog']


def test_real_tables(data_dir: Path) -> None:
    sst2 = read_table(data_dir / "sst2" / "sentiment-train", "1", "2")
    assert (len(sst2), sst2.label_names, sst2.dropped) == (67349, ("0", "1"), 0)
    assert sst2.first[0].rstrip() == "hide new secretions from the parental units"
    sick = data_dir / "sick" / "SICK_train.txt"
    scores = read_table(sick, ["sentence_A", "sentence_B"], "relatedness_score", real=True)
    assert scores.labels is not None
    assert (len(scores), min(scores.labels), max(scores.labels)) == (4500, 1.0, 5.0)
    entailment = read_table(sick, ["sentence_A", "sentence_B"], "entailment_judgment")
    assert entailment.label_names == ("CONTRADICTION", "ENTAILMENT", "NEUTRAL")


def test_conll(tmp_path: Path, data_dir: Path) -> None:
    train = read_conll(data_dir / "wnut17" / "wnut17train.conll")
    assert (len(train), sum(map(len, train.sentences))) == (3394, 62730)
    assert train.sentences[0][:3] == ["@paulwalk", "It", "'s"]
    test = read_conll(data_dir / "wnut17" / "emerging.test.annotated", train.label_names)
    assert (len(test), test.label_names) == (1287, train.label_names)
    path = tmp_path / "x.conll"
    path.write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\r\nrejects VBZ O\n\n\n# NN O\n", encoding="utf-8")
    data = read_conll(path)
    assert data.sentences == [["EU", "rejects"], ["#"]]
    assert data.label_names == ("B-ORG", "O")
    assert data.tags == [[0, 1], [1]]
    assert read_conll(path, tag=2).label_names == ("NN", "NNP", "VBZ")
    assert data[1:].sentences == [["#"]]
    with pytest.raises(ValueError, match=r"x\.conll:3: unknown label 'B-ORG'; expected one of O"):
        read_conll(path, ("O",))
    path.write_text("EU B-ORG\nrejects 0\n")
    with pytest.raises(ValueError, match=r"x\.conll:2: unknown label '0'; expected one of B-ORG, O"):
        read_conll(path, ("B-ORG", "O"))  # a zero for the letter is no index
    for line in ("b", "b\t"):
        path.write_text(f"a O\n{line}\n")
        with pytest.raises(ValueError, match=r"x\.conll:2: expected a word and a tag; found 'b"):
            read_conll(path)
    with pytest.raises(ValueError, match=r"x\.conll:1: expected a word and a tag; found 'a O'"):
        read_conll(path, tag=-5)
    path.write_text("\n\n")
    with pytest.raises(ValueError, match=r"x\.conll has no sentences"):
        read_conll(path)
    with pytest.raises(ValueError, match="counted from 1"):
        read_conll(path, tag=0)


def test_conllu(tmp_path: Path) -> None:
    rows = ["1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_", "1\tvamos\tir\tVERB\tV1\t_\t0\troot\t_\t_",
            "2\tnos\tnosotros\tPRON\tP1\t_\t1\tobj\t_\t_", "2.1\tx\t_\t_\t_\t_\t_\t_\t_\t_"]  # fmt: skip
    path = tmp_path / "x.conllu"
    path.write_text("# sent_id = 1\n" + "\n".join(rows) + "\n\n# sent_id = 2\n" + rows[1] + "\n\n", encoding="utf-8")
    data = read_conllu(path)
    assert data.sentences == [["vamos", "nos"], ["vamos"]]
    assert data.label_names == ("PRON", "VERB")
    assert data.tags == [[1, 0], [1]]
    assert read_conllu(path, tag="xpos").label_names == ("P1", "V1")
    with pytest.raises(ValueError, match="upos"):
        read_conllu(path, tag="lemma")
    path.write_text("1\ttoo\tshort\n")
    with pytest.raises(ValueError, match=r"x\.conllu:1: expected the ten columns"):
        read_conllu(path)


def test_squad(tmp_path: Path, data_dir: Path) -> None:
    english = read_squad(data_dir / "xquad" / "xquad.en.json")
    assert len(english) == 1190
    assert len(set(english.titles)) == 48
    first = english.titles[0]
    part = english.where(lambda title: title == first)
    assert 0 < len(part) == english.titles.count(first)
    assert part.answers is not None
    for context, answers in zip(part.contexts, part.answers, strict=True):
        for start, text in answers:
            assert context[start : start + len(text)] == text
    assert len(read_squad(data_dir / "xquad" / "xquad.zh.json")) == 1190
    path = tmp_path / "v2.json"
    qas = [{"id": "1", "question": "q", "answers": [{"answer_start": 2, "text": "b"}], "is_impossible": False},
           {"id": "2", "question": "r", "answers": [], "plausible_answers": [], "is_impossible": True}]  # fmt: skip
    whole = {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "a b", "qas": qas}]}]}
    path.write_text(json.dumps(whole))
    data = read_squad(path)
    assert data.answers == [[(2, "b")], []]
    assert (data.ids, data.titles) == (["1", "2"], ["T", "T"])
    del qas[1]["id"]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"v2\.json: question 2 is not as in SQuAD: KeyError\('id'\)"):
        read_squad(path)
    qas[0]["answers"] = [{"answer_start": 1, "text": "b"}]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"v2\.json: question '1' is not as in SQuAD.*'b' at character 1"):
        read_squad(path)
    whole["data"] = [{"title": "T", "paragraphs": []}, {"title": "U"}]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"v2\.json: article 2 is not as in SQuAD: KeyError\('paragraphs'\)"):
        read_squad(path)
    for content in ("[]", "{", '{"data": []}', '{"data": [{"paragraphs": [{}]}]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"v2\.json"):
            read_squad(path)
