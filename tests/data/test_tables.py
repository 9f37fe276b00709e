"""Readers of tables, tags and questions; and that each complaint names file and line."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert of("10.0", "1", "1.0", 2.0).label_names == ("1", "2", "10")
    assert of(1.0, "+1", "1e0", "01", 1, "0.50", -0.0).label_names == ("0", "0.5", "1")
    assert of(12345678901234567890, 12345678901234567891).label_names[1].endswith("891")
    with pytest.raises(ValueError, match=r"x\.jsonl:2: unknown label '0'; expected one of 1, 2"):
        of(1, 0, label_names=("1", "2"))  # a class that the training data lacks is no index
    for bad in (["a"], {"a": 1}):
        with pytest.raises(ValueError, match=r"x\.jsonl:2: l is .*, not a label"):
            of("a", bad)
    data = of(1, -1, "2.5", -0.5, real=True)
    assert (data.labels, data.label_names, data.dropped) == ([1.0, -1.0, 2.5, -0.5], (), 0)
    assert of(1, None, "", "nan", math.nan, real=True).dropped == 4
    for score in ("inf", "1e999"):
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
        ("a.csv", "", r"a\.csv:1: expected a header with the columns 'first', 'gold'; found nothing"),
        ("a.csv", "first;gold\nx;yes\n", r"a\.csv:1: .* separated by ';': give it as the delimiter\); the columns are"),
        (
            "a.csv",
            "first,gold\na,yes\nb\n",
            r"a\.csv:3: expected 2 columns, as in the first row; found 1; quote a text",
        ),
        ("a.csv", "first,gold\na,yes\nlong, and dull,no\n", r"a\.csv:3: expected 2 columns, .* found 3; quote a text"),
        ("a.csv", 'first,gold\n"two\nlines",yes\nb\n', r"a\.csv:4: expected 2 columns"),
        ("a.tsv", "first\tgold\na\tyes\nb\n", r"a\.tsv:3: expected 2 columns, as in the first row; found 1$"),
        ("a.tsv", "first\tgold\na\tyes\t\n", r"a\.tsv:2: expected 2 columns, as in the first row; found 3$"),
        ("a.csv", "first,gold,first\na,yes,b\n", r"a\.csv:1: the column 'first' is repeated"),
        ("a.csv", "first,gold\na,yes\nfirst,gold\nb,no\n", r"a\.csv:3: the header is repeated"),
        (
            "a.jsonl",
            '{"first": "a", "first": "b", "gold": 1}\n',
            r"a\.jsonl:1: the key 'first' is repeated at column 16",
        ),
        ("a.jsonl", '[\n{"first": "a", "gold": 1}\n]', r"a\.jsonl:1: expected JSON lines .*found a JSON array"),
        ("a.json", '{\n "first": "a",\n "gold": 1\n}', r"a\.json:1: expected JSON lines .*found indented JSON"),
        ("a.jsonl", '{"first": "a", "gold": 1}\n[]\n', r"a\.jsonl:2: expected a JSON object, as JSON lines have"),
        ("a.jsonl", '{"first": null, "gold": 1}\n', r"a\.jsonl:1: first is None, not a text"),
        (
            "a.jsonl",
            '{"first": "a", "gold": 1}\n{"first": "b\\ud83d", "gold": 1}\n',
            r"a\.jsonl:2: a lone surrogate is no text at column 19",
        ),
        ("a.jsonl", '{"first": "a", "gold": 1}\nnope\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: expected JSON lines"),
        ("a.jsonl", '{"first": "a", "gold": 1}\n{"first": "a"}\n', r"a\.jsonl:2: there is no column 'gold'"),
        ("a.tsv", b"first\tgold\n\xff\tyes\n", r"a\.tsv:2: byte 0xff at position 11 is not UTF-8"),
        (
            "a.csv",
            b"first,gold\n" + b"ok,good\n" * 5000 + b"caf\xe9,bad\n",
            r"a\.csv:5002: byte 0xe9 at position 40014 is",
        ),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name, "first", "gold")


@pytest.mark.parametrize("sep", [",", "\t"])
@pytest.mark.parametrize(
    "header", ["text,label", "review,sentiment", "Sentence,Class", "s,stars", "words,intent", "utterance,speech_act"]
)
def test_a_header_is_no_example(tmp_path: Path, header: str, sep: str) -> None:
    path = tmp_path / ("a.csv" if sep == "," else "a.tsv")
    rows = ["a fine film,good", "dull and long,bad"] * 8
    path.write_text("\n".join([header, *rows]).replace(",", sep))
    for columns, label_names in (("1", None), (["1"], ("bad", "good"))):
        with pytest.raises(ValueError, match=rf"{path.name}:1: .* looks like a header"):
            read_table(path, columns, "2", label_names)
    path.write_text("\n".join([header, "a,1", "b c,0", "d,"]).replace(",", sep))
    with pytest.raises(ValueError, match=rf"{path.name}:1: .* looks like a header"):
        read_table(path, "1", "2", real=True)
    path.write_text("\n".join(["yes,neither", *rows]).replace(",", sep))
    assert read_table(path, "1", "2", ("good", "bad", "neither")).labels[:2] == [2, 0]  # type: ignore[index]
    path.write_text("\n".join(rows).replace(",", sep))
    assert read_table(path, "1", "2").label_names == ("bad", "good")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_what_is_no_label(tmp_path: Path, suffix: str) -> None:
    """Whole numbers that pandas wrote beside a missing value are read as before."""
    path = tmp_path / f"x{suffix}"
    nothing = [-1, -1.0, "-1", "-1.0", "nan", "NaN", "", "-", *([None, math.nan] if suffix == ".jsonl" else [])]
    for label in nothing:
        rows = [("a", 1), ("b", "0.0"), ("c", label), ("d", "1.0")]
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps({"t": text, "l": value}) + "\n" for text, value in rows))
        else:
            comma = "," if suffix == ".csv" else "\t"
            path.write_text(f"t{comma}l\n" + "".join(f"{text}{comma}{value}\n" for text, value in rows))
        data = read_table(path, "t", "l")
        assert list(data.first) == ["a", "b", "d"]
        assert (data.labels, data.label_names, data.dropped) == ([1, 0, 1], ("0", "1"), 1)
        if str(label) in ("-1", "-1.0"):
            assert read_table(path, "t", "l", ("-1", "0", "1")).labels == [2, 1, 0, 2]
        elif label in ("nan", "-"):
            assert read_table(path, "t", "l", ("0", "1", str(label))).labels == [1, 0, 2, 1]


FIELDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t"))


@settings(deadline=None)
@given(st.lists(st.tuples(FIELDS, FIELDS)), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(",\t"))
def test_quoted_tables_are_read_as_the_csv_module_does(
    rows: list[tuple[str, str]], quoting: Literal[0, 1], sep: str
) -> None:
    rows = [row for row in rows if row != ("first", "second")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.csv" if sep == "," else "x.tsv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=sep, quoting=quoting).writerows([("first", "second"), *rows])
        if rows:
            data = read_table(path, ("first", "second"), None)
            assert list(zip(data.first, data.second or (), strict=True)) == rows


def test_quotes_that_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    for texts in (
        ['"Hello" he said', '"plain"'],
        ['a "b" c', "d"],
        ['6" disc', '"'],
    ):
        path.write_text("text\tlabel\n" + "".join(f"{text}\tgood\n" for text in texts))
        assert list(read_table(path, "text", "label").first) == texts
    path.write_text('text\tlabel\n"a\tb"\tgood\n""\tbad\n')
    assert list(read_table(path, "text", "label").first) == ["a\tb", ""]
    path.write_text('text\tlabel\n"open\tgood\nx\tgood\nshut"\tgood\n')
    with pytest.raises(ValueError, match=r"x\.tsv:2: the quote may be a character, or around a text"):
        read_table(path, "text", "label")


def test_an_empty_line_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text\na\n""\n\n')
    assert list(read_table(path, "text", None).first) == ["a", ""]
    path.write_text("text\na\n\nb\n")
    with pytest.raises(ValueError, match=r"x\.csv:3: the line is empty"):
        read_table(path, "text", None)


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
    for line in ("b", "b\t", "b O x", "# id 7", "#tag", "# "):
        path.write_text(f"a O\n{line}\n")
        with pytest.raises(
            ValueError, match=rf"x\.conll:2: expected a word in column 1 and a tag .*; found '{line[0]}"
        ):
            read_conll(path)
    with pytest.raises(ValueError, match=r"x\.conll:1: expected a word in column 1 and a tag in column -5 of 2; found"):
        read_conll(path, tag=-5)
    comments = "# id 77-ab\tdomain=en\n# text\n#begin document (x); part 0\n"
    path.write_text(comments + "EU _ _ B-ORG\nrejects _ _ O\n#end document\n".replace("#", "\n#"))
    assert (read_conll(path).sentences, read_conll(path).label_names) == ([["EU", "rejects"]], ("B-ORG", "O"))
    path.write_text("# id 77-ab\nEU B-ORG\n\n#ff\tO\n#\tB-ORG\n")
    assert read_conll(path).sentences == [["EU"], ["#ff", "#"]]
    path.write_text("# 77-ab\nEU B-ORG\n")
    with pytest.raises(ValueError, match=r"x\.conll:1: '# 77-ab' could be a comment or a word"):
        read_conll(path)
    path.write_text("word tag\nEU B-ORG\n")
    with pytest.raises(ValueError, match=r"x\.conll:1: 'word tag' looks like a header"):
        read_conll(path)
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
    with pytest.raises(ValueError, match=r"x\.conllu: column 1 counts the words; read CoNLL-U by read_conllu"):
        read_conll(path, tag=4)
    for line in ("1\ttoo\tshort", rows[1] + "\tx", "a" + rows[1], rows[0][:-2]):
        path.write_text(f"# text\n{line}\n")
        with pytest.raises(ValueError, match=r"x\.conllu:2: expected the ten columns"):
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
    qas[1]["id"] = 1
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"v2\.json: .*qas\[1\]\.id is '1', as data\[0\].*qas\[0\]\.id; ids must"):
        read_squad(path)
    del qas[1]["id"]
    path.write_text(json.dumps(whole))
    with pytest.raises(
        ValueError, match=r"v2\.json: data\[0\]\.paragraphs\[0\]\.qas\[1\]\.id is missing: .*keys question, "
    ):
        read_squad(path)
    qas[0]["answers"] = [{"answer_start": 1, "text": "b"}]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"qas\[0\]\.answers\[0\]: the context does not have 'b' at character 1"):
        read_squad(path)
    whole["data"] = [{"title": "T", "paragraphs": []}, {"title": "U"}]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"v2\.json: data\[1\]\.paragraphs is missing: "):
        read_squad(path)
    for content in ("[]", "{", '{"data": []}', '{"data": [{"paragraphs": [{}]}]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"v2\.json"):
            read_squad(path)


NO_ANSWER: list[dict[str, object]] = [
    {}, {"answers": None}, {"answers": []}, {"answers": {"text": [], "answer_start": []}}, {"answers": [None]},
    {"answers": {"text": [""], "answer_start": [-1]}}, {"answers": [{"text": "", "answer_start": -1}]}, {"answers": {}},
    {"answers": [{"text": None, "answer_start": None}]},
    {"answers": [{"text": "b", "answer_start": 2}], "is_impossible": True},
]  # fmt: skip


def squad(path: Path, context: object = "a b", **question: object) -> Path:
    """A file of one question."""
    qas = [{"id": "1", "question": "q", **question}]
    path.write_text(json.dumps({"data": [{"title": None, "paragraphs": [{"context": context, "qas": qas}]}]}))
    return path


def test_spellings_of_answers(tmp_path: Path) -> None:
    for spelled in NO_ANSWER:
        data = read_squad(squad(tmp_path / "x.json", **spelled))
        assert (data.answers, list(data.titles)) == ([[]], [""]), spelled
    one: object
    for one in (
        [{"text": "b", "answer_start": 2.0}],
        {"text": ["b"], "answer_start": [2]},
        {"text": "b", "answer_start": 2},
    ):
        assert read_squad(squad(tmp_path / "x.json", answers=one, is_impossible=False)).answers == [[(2, "b")]]
    cases: list[tuple[dict[str, object], str]] = [
        ({"question": None}, r"qas\[0\]\.question is not as in SQuAD: expected a text, found null"),
        ({"context": None}, r"paragraphs\[0\]\.context is not as in SQuAD: expected a text, found null"),
        ({"id": None}, r"qas\[0\]\.id is not"),
        ({"question": "\ud83d"}, r"qas\[0\]\.question: character 0 .*lone surrogate"),
        ({"is_impossible": "False"}, r"is_impossible is not as in SQuAD: expected true or false"),
        ({"answers": "b"}, r"answers is not as in SQuAD: expected a list"),
        ({"answers": [{"answer_start": 2}]}, r"answers\[0\]\.text is missing"),
        ({"answers": [{"text": "b"}]}, r"answers\[0\]\.answer_start is missing"),
        ({"answers": [{"text": "b", "answer_start": None}]}, r"answers\[0\] is not as in SQuAD"),
        ({"answers": [{"text": "b", "answer_start": -1}]}, r"answers\[0\]: the context does not have"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            read_squad(squad(tmp_path / "x.json", **changes))
