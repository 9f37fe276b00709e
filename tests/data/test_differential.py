"""Readers against readers that we did not write, and against each other: equal values, equal refusals."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertnli import TextData, WordPieceTokenizer, read_conll, read_pairs, read_table

Outcome = tuple[list[str], list[str], list[int], int] | str

WORDS = [
    "a",
    "b c",
    "",
    " ",
    '"',
    '""',
    'say "x"',
    '"x"',
    "é",
    "中文",
    "\u2028",
    "\x85",
    "\x1c",
    "\x0c",
    "\0",
    "'",
    ",",
    "\ufeff",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=3).map("".join)
LABELS = ["yes", "no", " yes", "YES", "", "-", "nan", "NaN", "None"]
LABELS += ["-1", "-1.0", "0", "1", "1.0", "+1", "01", "1e0", "10", "-0", "2.5"]
CLASSES: list[tuple[str, ...]] = [("no", "yes"), ("0", "1"), ("1", "10", "2.5"), ("-1", "1"), ("nan", "-", "yes")]
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def outcome(read: Callable[[], TextData]) -> Outcome:
    try:
        data = read()
    except ValueError as error:
        return "refused: " + str(error)
    return list(data.first), list(data.second or ()), data.labels or [], data.dropped


def assert_readers_agree(content: str, suffix: str, classes: tuple[str, ...]) -> Outcome:
    """The extension's reader of pairs, `encode_file` and `read_table` on one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        path.write_bytes(content.encode())
        ours = outcome(lambda: read_pairs(path, "text", classes))
        table = outcome(lambda: read_table(path, ("premise", "hypothesis"), "label", classes))
        if isinstance(ours, str) or isinstance(table, str):
            assert isinstance(ours, str), f"read_pairs takes what read_table does not: {table}"
            assert isinstance(table, str), f"read_table takes what read_pairs does not: {ours}"
            assert str(path) in ours
            assert str(path) in table
        assert isinstance(ours, str) or ours == table
        tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "x", '"'])
        if isinstance(ours, str):
            with pytest.raises(ValueError, match=re.escape(ours.removeprefix("refused: "))):
                tokenizer.encode_file(path, columns="text", label_names=classes)
        else:
            encoded = tokenizer.encode_file(path, columns="text", label_names=classes)
            assert (encoded.ids == tokenizer.encode_pairs(ours[0], ours[1]).ids).all()
            assert encoded.labels is not None
            assert (encoded.labels.tolist(), encoded.dropped) == (ours[2], ours[3])
    return ours


def as_tsv(rows: list[list[str]], quoting: Any, end: str) -> str:
    if quoting is None:
        return "".join("\t".join(row) + end for row in rows)
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", quoting=quoting, lineterminator=end).writerows(rows)
    return file.getvalue()


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(LABELS), TEXTS, TEXTS), max_size=5),
    st.sampled_from([None, None, csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    LINE_ENDS,
    st.sampled_from(CLASSES),
    st.sampled_from(["", "", "", "\t", "\n", "x\n", " \n", '"', "label\tpremise\thypothesis\n", "\ufeff", "\r"]),
    st.integers(0, 200),
)
@example([("yes", '"a b"', "c")], None, "\n", ("no", "yes"), "", 0)
@example([("yes", '"a\tb"', "c")], csv.QUOTE_ALL, "\n", ("no", "yes"), "", 0)
def test_tab_separated_pairs(
    rows: list[tuple[str, ...]], quoting: Any, end: str, classes: tuple[str, ...], more: str, where: int
) -> None:
    content = as_tsv([["label", "premise", "hypothesis"], *map(list, rows)], quoting, end)
    where = min(where, len(content))
    assert_readers_agree(content[:where] + more + content[where:], ".tsv", classes)


JSON_LABELS: list[Any] = [
    *LABELS,
    None,
    True,
    False,
    1,
    0,
    -1,
    1.0,
    -1.0,
    1e0,
    2.5,
    10,
    float("nan"),
    float("inf"),
    [1],
]
JSON_TEXTS = TEXTS | st.sampled_from([None, 1, "\ud83d", "\ud83d\ude42", ["a"]])
OTHERS = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXTS | st.just("\udc00"),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "é", "\ud800"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(JSON_LABELS), JSON_TEXTS, JSON_TEXTS, OTHERS), max_size=4),
    st.booleans(),
    LINE_ENDS,
    st.sampled_from(CLASSES),
    st.sampled_from(
        ["", "", "", ",", "{", "}", "\n", " ", "\u00a0", "null", '"label": 1,', '"é": 1, "\\u00e9": 2,', "\\"]
    ),
    st.integers(0, 200),
)
@example([("yes", "a", "b", {"a": {"a": 1}})], True, "\n", ("no", "yes"), '"a": 1,', 1)
def test_json_lines_of_pairs(
    rows: list[tuple[Any, ...]], ascii: bool, end: str, classes: tuple[str, ...], more: str, where: int
) -> None:
    names = ("label", "premise", "hypothesis", "x")
    dumped = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=ascii) for row in rows]
    content = "".join(line + end for line in dumped).encode(errors="replace").decode()
    where = min(where, len(content))
    assert_readers_agree(content[:where] + more + content[where:], ".jsonl", classes)


def test_pairs_read_values() -> None:
    """The comparison above compares something: files that both readers take."""
    tsv = 'label\tpremise\thypothesis\n yes\t"a"\tb\n-1.0\ta\tb\nnan\ta\tb\nno\ta "b" c\t\n'
    assert assert_readers_agree(tsv, ".tsv", ("no", "yes")) == (['"a"', 'a "b" c'], ["b", ""], [1, 0], 2)
    quoted = 'label\tpremise\thypothesis\r\nyes\t"a ""b"""\t"c\n\td"\r\n'
    assert assert_readers_agree(quoted, ".tsv", ("no", "yes")) == (['a "b"'], ["c\n\td"], [1], 0)
    lines = '{"label": 1.0, "premise": "a", "hypothesis": "b"}\n{"label": NaN, "premise": "a", "hypothesis": "b"}\n'
    assert assert_readers_agree(lines, ".jsonl", ("no", "yes")) == (["a"], ["b"], [1], 1)


# ---- pandas ---------------------------------------------------------------------------------------------------------

FIELDS = st.text(st.sampled_from('ab ,\t"\né中\u2028\x85\x1c\x0c'), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(FIELDS, min_size=2, max_size=2), min_size=1, max_size=5),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from(["", "", "z\n", "x,y,z\n", '"open', "a,b\n", "\n\n"]),
)
def test_csv_as_pandas_reads_it(rows: list[list[str]], quoting: Any, end: str, mark: bool, last: str) -> None:
    """pandas fills short rows ("z") with empty texts and takes longer ones for an index; both are refusals here."""
    file = io.StringIO(newline="")
    csv.writer(file, quoting=quoting, lineterminator=end).writerows([["first", "second"], *rows])
    content = ("\ufeff" if mark else "") + file.getvalue() + last
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.csv")
        path.write_bytes(content.encode())
        found = outcome(lambda: read_table(path, ("first", "second"), None))
        try:
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            expected = [list(row) for row in frame.itertuples(index=False)]
        except pandas.errors.ParserError:
            expected = []
        fits = bool(expected) and isinstance(frame.index, pandas.RangeIndex) and last != "z\n"
        if fits and ["first", "second"] not in expected:
            assert found == ([row[0] for row in expected], [row[1] for row in expected], [], 0)
        else:
            assert isinstance(found, str)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), min_size=1, max_size=5), st.booleans(), st.booleans()
)
def test_json_lines_as_pandas_reads_them(rows: list[tuple[str, str]], ascii: bool, broken: bool) -> None:
    rows = [tuple(text.replace("\0", "") for text in row) for row in rows]  # type: ignore[misc]  # pandas ends texts there
    lines = [json.dumps({"first": a, "x": [a], "second": b}, ensure_ascii=ascii) for a, b in rows]
    content = "\n".join(lines)[: -1 if broken else None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jsonl")
        path.write_bytes(content.encode(errors="surrogatepass"))
        found = outcome(lambda: read_table(path, ("first", "second"), None))
        if broken:
            with pytest.raises(ValueError, match=r"Expected|expected|Unexpected|[Uu]nmatched|Trailing"):
                pandas.read_json(path, lines=True, dtype=False)
            assert isinstance(found, str)
            return
        frame = pandas.read_json(path, lines=True, dtype=False)
        assert found == (frame["first"].tolist(), frame["second"].tolist(), [], 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 10, None]), min_size=1), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_labels_that_pandas_wrote(labels: list[int | None], suffix: str) -> None:
    """Beside a missing value pandas makes 1 to 1.0 and writes the missing value in its own way."""
    frame = pandas.DataFrame({"t": ["a"] * len(labels), "l": labels})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder, f"x{suffix}")
        if suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
        known = [label for label in labels if label is not None]
        if not known:
            with pytest.raises(ValueError, match="no labelled rows"):
                read_table(path, "t", "l")
            return
        data = read_table(path, "t", "l")
        assert data.label_names == tuple(str(label) for label in sorted(set(known)))
        assert [int(data.label_names[i]) for i in data.labels or ()] == known
        assert data.dropped == len(labels) - len(known)


# ---- CoNLL ----------------------------------------------------------------------------------------------------------

TOKENS = st.text(st.sampled_from("ab#-é中.'\"\u200b"), min_size=1, max_size=4).filter(
    lambda token: not token.startswith(("-DOCSTART-", "#"))  # a comment or a word: tests of their own
)
SENTENCES = st.lists(
    st.lists(st.tuples(TOKENS, st.sampled_from(["N", "V"]), st.sampled_from(["O", "B-X"])), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def conll_oracle(content: str, separator: str | None) -> list[list[tuple[str, str]]] | None:
    """Word and last column of each line; None unless all lines have three columns."""
    sentences: list[list[tuple[str, str]]] = []
    for block in content.replace("\r\n", "\n").split("\n\n"):
        rows = [
            line.split(separator) for line in block.split("\n") if line.strip() and not line.startswith("-DOCSTART-")
        ]
        if any(len(row) != 3 or not row[0].strip() or not row[2].strip() for row in rows):
            return None
        if rows:
            sentences.append([(row[0], row[2]) for row in rows])
    return sentences or None


@settings(max_examples=300, deadline=None)
@given(
    SENTENCES,
    st.sampled_from(["\t", " "]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["", "", "b", "b{0}N", "b{0}N{0}O{0}O", "b{0}{0}O", "\n"]),
    st.integers(0, 20),
)
def test_conll_as_its_oracle(
    sentences: list[list[tuple[str, str, str]]],
    separator: str,
    end: str,
    gap: int,
    docstart: bool,
    broken: str,
    where: int,
) -> None:
    lines = ["-DOCSTART- -X- O", ""] if docstart else []
    for sentence in sentences:
        lines += [separator.join(row) for row in sentence] + [""] * gap
    if broken:
        lines.insert(min(where, len(lines)), broken.format(separator))
    content = end.join(lines)
    expected = conll_oracle(content, "\t" if separator == "\t" else None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.conll")
        path.write_bytes(content.encode())
        if expected is None:
            with pytest.raises(ValueError, match=re.escape(str(path))):
                read_conll(path)
            return
        data = read_conll(path)
    assert data.tags is not None
    found = [
        [(word, data.label_names[tag]) for word, tag in zip(words, tags, strict=True)]
        for words, tags in zip(data.sentences, data.tags, strict=True)
    ]
    assert found == expected
