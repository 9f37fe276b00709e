"""Files of tables as people have them: compressed, in other encodings, with other delimiters, arrays, Arrow."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from bertnli import QuestionData, TextData, WordData, WordPieceTokenizer, _text, load_examples, read_pairs, read_table
from bertnli.data import source as source_module
from bertnli.data.source import Source
from bertnli.data.tables import column_names, read_columns, read_tables

FRAME = pandas.DataFrame({
    "id": [1, 2, 3],
    "premise": ["a, b", 'say "x"', "é\n中"],
    "hypothesis": ["", "c", "d"],
    "label": ["yes", "no", "-"],
})  # fmt: skip


def write(path: Path, frame: pandas.DataFrame = FRAME) -> Path:
    """The frame as a file of the kind that the suffixes name."""
    inner = Path(path.stem) if path.suffix in (".gz", ".zst") else path
    table, content = pyarrow.Table.from_pandas(frame), io.BytesIO()
    if inner.suffix in (".csv", ".tsv"):
        frame.to_csv(content, index=False, sep="," if inner.suffix == ".csv" else "\t")
    elif inner.suffix in (".jsonl", ".json"):
        frame.to_json(content, orient="records", lines=inner.suffix == ".jsonl", force_ascii=False)
    elif inner.suffix == ".parquet":
        parquet.write_table(table, content)
    elif inner.suffix == ".feather":
        feather.write_feather(table, content)
    else:  # .arrow, as `datasets` has it
        with pyarrow.ipc.new_stream(content, table.schema) as stream:
            stream.write_table(table, max_chunksize=1000)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.getvalue()))
    elif path.suffix == ".zst":
        path.write_bytes(pyarrow.compress(content.getvalue(), codec="zstd", asbytes=True))
    else:
        path.write_bytes(content.getvalue())
    return path


KINDS = [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".feather"]


@pytest.mark.parametrize("suffix", [kind + more for kind in KINDS for more in ("", ".gz", ".zst")])
def test_every_kind_of_file_is_one_table(tmp_path: Path, suffix: str) -> None:
    frame = FRAME if ".tsv" not in suffix else FRAME.assign(premise=["a, b", 'say "x"', "é"])
    path = write(tmp_path / f"x{suffix}", frame)
    data = read_table(path, ["premise", "hypothesis"], "label")
    assert data.first == frame["premise"].tolist()[:2]
    assert data.second == ["", "c"]
    assert (data.labels, data.label_names, data.dropped) == ([1, 0], ("no", "yes"), 1)
    assert column_names(Source(path)) == ["id", "premise", "hypothesis", "label"]
    assert list(read_table(path, "premise", None).first) == frame["premise"].tolist()
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)}.*there is no column 'nope'; the columns are 'id'"):
        read_table(path, "nope", "label")
    pairs = read_pairs(path, "text", ("no", "yes"))
    assert (pairs.first, pairs.second, pairs.labels, pairs.dropped) == (data.first, data.second, data.labels, 1)
    loaded = load_examples(path, labels=("no", "yes"), columns="text")
    assert isinstance(loaded, TextData)
    assert loaded.labels == data.labels
    tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])
    encoded = tokenizer.encode_file(path, columns="text", label_names=("no", "yes"))
    assert (encoded.ids == tokenizer.encode_pairs(data.first, data.second or ()).ids).all()


def test_encodings_and_delimiters(tmp_path: Path) -> None:
    text = "text;label\nné;a\n中;b\n"
    for encoding in ("utf-8-sig", "utf-16", "gb18030", "utf_8"):
        (tmp_path / "x.csv").write_text(text, encoding=encoding)
        data = read_table(tmp_path / "x.csv", "text", "label", encoding=encoding, delimiter=";")
        assert (list(data.first), data.labels) == (["né", "中"], [0, 1])
    with pytest.raises(ValueError, match=r"x\.csv is not ascii: .*; name its encoding"):
        read_table(tmp_path / "x.csv", "text", "label", encoding="ascii", delimiter=";")
    with pytest.raises(ValueError, match="encoding 'utf-9' is not known"):
        read_table(tmp_path / "x.csv", "text", "label", encoding="utf-9")
    for delimiter in ("", ";;", '"', "\n", "é"):
        with pytest.raises(ValueError, match="delimiter must be one ASCII character"):
            read_table(tmp_path / "x.csv", "text", "label", delimiter=delimiter)
    for task in ("qa", "tagging"):
        with pytest.raises(ValueError, match="delimiter is for tables"):
            load_examples(tmp_path / "x.csv", task, delimiter=";")


def test_broken_files_name_themselves(tmp_path: Path) -> None:
    for name in ("x.csv.gz", "x.csv.zst", "x.parquet", "x.arrow", "x.feather", "x.parquet.gz"):
        (tmp_path / name).write_bytes(b"junk" * 9)
        with pytest.raises(ValueError, match=rf"{name} is corrupt or not a"):
            read_table(tmp_path / name, "text", "label")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"text,label\na,b\n" * 99)[:-9])
    with pytest.raises(ValueError, match=r"x\.csv\.gz is corrupt or not a \.gz file"):
        read_table(tmp_path / "x.csv.gz", "text", "label")


def test_a_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"x\.parquet needs pyarrow: pip install 'bertnli\[data\]'"):
        read_table(tmp_path / "x.parquet", "premise", "label")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"t": "a", "l": 1},\n {"t": "b"}]', r"x\.json:3: there is no column 'l'; the columns are 't'"),
        (
            '[\n {"t": "a", "l": 1},\n {"t": "b" "l": 1}]',
            r"x\.json:3: not JSON: expected .* at column 12; expected an ar",
        ),
        ('[{"t": "a", "l": 1}] x', r"x\.json:1: not JSON: expected the file's end behind the array"),
        ('[{"t": "a", "l": 1}, ', r"x\.json:1: not JSON: expected an object"),
        ('[{"t": null, "l": 1}]', r"x\.json:1: t is None, not a text"),
        ("[1]", r"x\.json:1: not JSON: expected an object"),
        ("[]", r"x\.json has no labelled rows"),
        ('{\n"t": "a", "l": 1}', r"x\.json:1: expected JSON lines .*found indented JSON"),
    ],
)
def test_broken_arrays(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "x.json", "t", "l")


# ---- blocks: a table is the same however its bytes are divided -------------------------------------------------------

CELLS = st.text(st.sampled_from('ab,"\n\r\té中'), max_size=5)


def outcome(read: Callable[[], TextData]) -> object:
    try:
        data = read()
    except ValueError as error:
        return str(error)
    return list(data.first), list(data.second or ())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS), max_size=4),
    st.integers(0, 40),
    st.sampled_from(["", '"', "x\n", "\r", ","]),
    st.data(),
)
def test_blocks_of_any_length(rows: list[tuple[str, str]], where: int, more: str, data: st.DataObject) -> None:
    """Delimited text, JSON lines and arrays, broken too, in blocks that are cut anywhere: equal rows, lines, errors."""
    csv = pandas.DataFrame(rows, columns=["a", "b"]).to_csv(index=False)
    lines = "".join(json.dumps({"a": a, "b": b}, ensure_ascii=False) + "\n" for a, b in rows)
    array = "[" + data.draw(st.sampled_from([",", ",\n ", " \r\n,"])).join(lines.splitlines()) + " ]\n"
    for format, content in (("delimited", csv), ("lines", lines), ("array", array)):
        whole = (content[:where] + more + content[where:]).encode()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))

        def read(parts: list[bytes], format: str = format) -> object:
            keys = [] if format == "delimited" else ["a", "b"]
            reader = _text.TableReader("x", format, ",", True, True, keys, False, 0, True)
            try:
                for part, last in [*((part, False) for part in parts), (b"", True)]:
                    reader.feed(part, last)
                    if format == "delimited" and reader.header and not reader.rows:
                        reader.choose([0, len(reader.header) - 1])
                        reader.feed(b"", last)
            except ValueError as error:
                return str(error)
            arena, bounds, kinds, numbers, bad = reader.take(2)
            text = bytes(arena)
            return [[text[a:b] for a, b in zip(*side, strict=True)] for side in bounds.transpose(1, 0, 2)], \
                None if kinds is None else kinds.tolist(), numbers.tolist(), bad  # fmt: skip

        assert read([whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]) == read([whole])


def test_tables_by_parts_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of text are read as its rows are asked for, so that memory does not depend on the number of rows."""
    blocks: list[int] = []

    def counted(readinto: Callable[[memoryview], int]) -> Iterator[memoryview]:
        block = memoryview(bytearray(1 << 16))
        while size := readinto(block):
            blocks.append(size)
            yield block[:size]

    monkeypatch.setattr(source_module, "_read_blocks", counted)
    frame = pandas.DataFrame({"a": [f"text {i}" for i in range(30_000)], "b": ["x"] * 30_000})
    for suffix in (".csv", ".jsonl", ".json", ".csv.gz", ".parquet", ".arrow"):
        source = Source(write(tmp_path / f"x{suffix}", frame))
        blocks.clear()
        assert column_names(source) == ["a", "b"]
        if not source.is_arrow:
            assert len(next(read_tables(source, ["a"], 1000))) < 8000
            assert len(blocks) < 6
        parts = list(read_tables(source, ["a"], 1000))
        assert len(parts) > 1
        assert [text for part in parts for text in part.columns[0].texts] == frame["a"].tolist()
        numbers = [int(number) for part in parts for number in part.numbers]
        assert numbers == read_columns(source, ["a"]).numbers.tolist()


def test_one_line_of_many_blocks(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"a": ["text"] * 60_000, "b": ["x"] * 60_000})
    path = write(tmp_path / "x.json", frame)
    path.write_bytes(b"\n \r\n" + path.read_bytes())
    assert Source(path).first_line() == (3, path.read_bytes().strip())
    assert len(read_table(path, "a", "b")) == 60_000


def test_bad_rows_are_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'a,b\n1,2\n3\n"x"y,4\n\xff,5\n6,7\n')
    bad: list[tuple[int, str, bytes]] = []
    (table,) = read_tables(Source(tmp_path / "x.csv"), ["a"], bad=bad)
    assert list(table.columns[0].texts) == ["1", "6"]
    assert [(line, row) for line, _, row in bad] == [(3, b"3\n"), (4, b'"x"y,4\n'), (5, b"\xff,5\n")]
    (tmp_path / "x.jsonl").write_text('{"a": "1"}\nno\n{"b": 1}\n{"a": "2"}\n')
    bad.clear()
    (table,) = read_tables(Source(tmp_path / "x.jsonl"), ["a"], bad=bad, whole=True)
    assert list(table.columns[1].texts) == ['{"a": "1"}', '{"a": "2"}']
    assert [(line, row) for line, _, row in bad] == [(2, b"no"), (3, b'{"b": 1}')]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_tags_and_questions_of_any_encoding(encoding: str, suffix: str, tmp_path: Path) -> None:
    qa = {"id": 1, "question": "é?", "answers": [{"text": "é", "answer_start": 2}]}
    squad = json.dumps({"data": [{"paragraphs": [{"context": "a é", "qas": [qa]}]}]}, ensure_ascii=False, indent=1)
    files = {"x.conll": "é\tB\r\nb\tO", "x.json": squad}
    for name, text in files.items():
        with pyarrow.output_stream(tmp_path / (name + suffix)) as file:
            file.write(text.encode(encoding))
    words = load_examples(tmp_path / f"x.conll{suffix}", "tagging", encoding=encoding)
    assert isinstance(words, WordData)
    assert words.sentences == [["é", "b"]]
    asked = load_examples(tmp_path / f"x.json{suffix}", "qa", encoding=encoding)
    assert isinstance(asked, QuestionData)
    assert (asked.questions, asked.answers) == (["é?"], [[(2, "é")]])
    if encoding == "latin-1":
        with pytest.raises(ValueError, match=r"x\.conll.*:1: byte 0xe9 at position 0 is not UTF-8"):
            load_examples(tmp_path / f"x.conll{suffix}", "tagging")
