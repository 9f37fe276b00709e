"""Tables with named columns: delimited text, JSON lines and arrays, Parquet, Arrow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bertnli import _text
from bertnli.data.arguments import string, strings
from bertnli.data.columns import Column, Table, column_of, columns_from
from bertnli.data.files import check_file, without_repeats
from bertnli.data.headers import check_columns, check_no_header, is_by_number
from bertnli.data.labels import class_index, classes_of, find_class, is_no_label, multi_hot, parse_real
from bertnli.data.source import Block, Source, import_pyarrow
from bertnli.data.texts import TextData

BadRow = tuple[int, str, bytes]  # its line, what is wrong, the row


def read_table(
    path: str | os.PathLike[str],
    text: str | Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None = None,
    *,
    real: bool = False,
    separator: str | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> TextData:
    """Read texts or pairs, with labels, from named columns of a table.

    path          .csv (quoted as Excel does); JSON lines (.jsonl, .ndjson, .json) or a JSON array of objects (.json);
                  .parquet, .arrow or .feather (needs the extra `data`); or tab-separated text (any other suffix).
                  Each may have .gz or .zst behind (.zst needs the extra `data`). In tab-separated text quotes are read
                  as the csv module does if every one in the file opens, closes or is doubled inside a quoted field,
                  else as characters
    text          column of the texts, or the two columns of the pairs
    label         column of the labels; None reads all rows, without labels
    label_names   classes (default: the labels in the file, sorted, numbers by value). A label is a name or, where no
                  name is a number, an index. Numbers are compared by value: 1, 1.0 and "1" are one class. Rows without
                  a label (null, empty, "-", "nan", and unless `real` -1) are dropped and counted, unless a class has
                  that name
    real          whether labels are real numbers (default: False)
    separator     text between the classes of an example that may have several, or none (default: each has one). A
                  value may also be a list of names, or of 0 and 1 for every class, in a text as JSON writes it: `[]`
                  is an example of no class, an empty text is none
    encoding      of the text, by Python's name (default: "utf-8")
    delimiter     of the fields (default: a comma in .csv, a tab in other text)

    If all columns are numbers, such as "1", they count columns from 1 in a table without a header (.csv and
    tab-separated text).

    Every row has as many fields as the first, and no column name is repeated. Lines without any field are skipped.

    Raises FileNotFoundError, and ValueError naming file and line (of .parquet and .arrow the row) for a broken row, and
    for a header in a table whose columns are given by number.
    """
    source = Source(path, encoding, delimiter)
    columns = [text] if isinstance(text, str) else strings(text, "text")
    label = None if label is None else string(label, "label")
    label_names = None if label_names is None else strings(label_names, "label_names")
    if len(columns) not in (1, 2):
        raise ValueError(f"text must name one column or two; found {columns}")
    chosen = columns if label is None else [*columns, label]
    table = read_columns(source, chosen)
    if is_by_number(chosen) and not source.is_json and not source.is_arrow:
        check_no_header(table, chosen, label is not None, label_names or ())
    return text_data(table, columns, label, label_names, real=real, separator=separator)


def text_data(
    table: Table,
    columns: Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None,
    *,
    real: bool,
    separator: str | None = None,
) -> TextData:
    """Texts or pairs, with labels, from a table of `columns` and of `label`; for the rest see `read_table`."""
    texts = list(table.columns[: len(columns)])
    check_texts(table, columns)
    names: tuple[str, ...] = ()
    labels: list[Any] | None = None
    if label is not None:
        names, values, kept = _labels(table, label, label_names, real, separator)
        labels = values[kept].tolist()
        if not kept.all():
            texts = [column[kept] for column in texts]
    if not len(texts[0]):
        raise ValueError(f"{table.where} has no {'rows' if label is None else 'labelled rows'}")
    first, *second = (column.texts for column in texts)
    return TextData(first, second[0] if second else None, labels, names, len(table) - len(first))


def _labels(
    table: Table, label: str, label_names: Sequence[str] | None, real: bool, separator: str | None
) -> tuple[tuple[str, ...], npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The classes, the label of each row, and whether the row has one. Labels are the table's last column."""
    column = table.columns[-1]
    index, codes = column.distinct()
    places: dict[str, str] = {}  # the first of each label
    texts = []
    for i in index:
        try:
            texts.append(column.label(i, several=separator is not None))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{table.place(i)}: {label} is {error}") from None
        places.setdefault(texts[-1], table.place(i))
    known = class_index(label_names or ())
    for text in set(texts):
        if _is_missing(text, known, real):
            del places[text]
    names: tuple[str, ...] = ()
    values: Mapping[str, Any]
    if real:
        values = {text: parse_real(text, place) for text, place in places.items()}
    elif separator is not None:
        names, rows = multi_hot(list(places), list(places.values()), label_names, separator)
        values = dict(zip(places, rows, strict=True))
    else:
        names, values = classes_of(places, label_names, by_index=True)
    nothing = 0 if separator is None else [0] * len(names)
    of_distinct = np.array([values.get(text, nothing) for text in texts], np.float64 if real else np.int64)
    return names, of_distinct[codes], np.array([text in places for text in texts], bool)[codes]


def _is_missing(label: str, known: Any, real: bool) -> bool:
    """Whether a row with this label is dropped. known: `class_index` of the classes."""
    return is_no_label(label, real) and find_class(known, label) is None


def labelled_rows(
    labels: Column, label_names: Sequence[str] | None, real: bool, several: bool
) -> npt.NDArray[np.bool_]:
    """Whether a row is read, or dropped since it has no label.

    label_names, real    as in `read_table`
    several              whether an example may have several classes
    """
    index, codes = labels.distinct()
    known = class_index(label_names or ())
    return ~np.array([_is_missing(labels.label(i, several), known, real) for i in index], bool)[codes]


def check_texts(table: Table, columns: Sequence[str]) -> None:
    """Raise ValueError where a value of the columns, which are the table's first, is no text."""
    bad = [
        (row, name, column)
        for name, column in zip(columns, table.columns, strict=False)
        if (row := column.first_without_text()) is not None
    ]
    if bad:
        row, name, column = min(bad, key=lambda found: found[0])
        raise ValueError(f"{table.place(row)}: {name} is {column.shown(row)}, not a text")


# ---- files ----------------------------------------------------------------------------------------------------------


def read_columns(source: Source, columns: Sequence[str]) -> Table:
    """These columns of a table. Errors are those of `read_table`."""
    return next(read_tables(source, columns))


def read_tables(
    source: Source,
    columns: Sequence[str] | None,
    size: int | None = None,
    *,
    whole: bool = False,
    bad: list[BadRow] | None = None,
) -> Iterator[Table]:
    """The rows of a table, so many at a time. The last table may be empty.

    columns    by name or number, as in `read_table`; None takes all (of JSON none)
    size       rows, about (default: all at once)
    whole      whether a JSON object, as it is written, is one more column, and tables of Arrow's have their `batch`
    bad        where rows are put that cannot be read (default: the first one is an error)
    """
    if source.is_arrow:
        yield from _arrow_tables(source, columns, size, whole)
        return
    is_array = source.is_json and json_format(source) == "array"
    format = "array" if is_array else "lines" if source.is_json else "delimited"
    by_number = not source.is_json and columns is not None and is_by_number(columns)
    quotes = not source.is_json and (source.is_csv or has_consistent_quotes(source))
    keys = list(columns or ()) if source.is_json else []
    reader = _text.TableReader(
        str(source.path), format, source.delimiter, quotes, not by_number, keys, whole,
        source.size() if size is None else 0, bad is not None,
    )  # fmt: skip
    if by_number:
        reader.choose([int(name) - 1 for name in columns or ()])
    width = len(columns or ()) + whole
    waits = not source.is_json and not by_number  # for the header

    def take() -> Table:
        arena, bounds, kinds, numbers, bad_rows = reader.take(width)
        if bad is not None:
            bad.extend(bad_rows)
        return Table(source.path, columns_from(arena, bounds, kinds), numbers)

    with source.blocks() as blocks:
        for block, last in _with_end(blocks):
            reader.feed(block, last)
            if waits and (header := reader.header) is not None:
                if columns is None and not header:
                    raise ValueError(f"{source.path}:1: the table has no header")
                check_columns(f"{source.path}:1", columns or (), header)
                chosen = range(len(header)) if columns is None else [header.index(name) for name in columns]
                reader.choose(list(chosen))
                width, waits = len(chosen), False
                reader.feed(b"", last)
            if size is not None and reader.rows >= size:
                yield take()
    yield take()


def _with_end(blocks: Iterator[Block]) -> Iterator[tuple[Block, bool]]:
    for block in blocks:
        yield block, False
    yield b"", True


def column_names(source: Source) -> list[str]:
    """The names of a table's columns: its header; of JSON the first object's keys."""
    if source.is_arrow:
        return list(arrow_schema(source).names)
    if source.is_json:
        if json_format(source) == "array":
            table = next(read_tables(source, None, 1, whole=True))  # not all of them
            return list(json.loads(table.columns[0].texts[0])) if len(table) else []
        number, line = source.first_line()
        return list(parse_object(line.decode("utf-8", "replace") or "{}", f"{source.path}:{number}"))
    quotes = source.is_csv or has_consistent_quotes(source)
    reader = _text.TableReader(str(source.path), "delimited", source.delimiter, quotes, True, [], False, 0, False)
    with source.blocks() as blocks:
        for block, last in _with_end(blocks):
            reader.feed(block, last)
            if reader.header is not None:
                break
    return reader.header or []


def has_consistent_quotes(source: Source) -> bool:
    """Whether the quotes of delimited text are read as the `csv` module does: there are some, and every one opens or
    closes a field, or is doubled inside of such a field. Reads up to the first one that does not.

    Raises ValueError where quotes are around delimiters or line ends, but the lines are also rows of one field count
    without.
    """
    if source.has_quotes is not None:
        return source.has_quotes
    scan = _text.QuoteScan(source.delimiter)
    with source.blocks() as blocks:
        consistent = all(map(scan.feed, blocks)) and scan.consistent
    if consistent and scan.ambiguous_line:
        raise ValueError(
            f"{source.path}:{scan.ambiguous_line}: the quote may be a character, or around a text of several lines or "
            "fields; save the table as .csv or JSON lines"
        )
    source.has_quotes = consistent
    return consistent


def json_format(source: Source) -> str:
    """ "lines" or "array". Raises ValueError for indented JSON, and for an array in a file that is not .json."""
    if source.json_format is None:
        source.json_format = _json_format(source)
    return source.json_format


def _json_format(source: Source) -> str:
    number, start = source.first_line(most=1)  # an array may be one line
    if start.startswith(b"["):
        if source.suffix == ".json":
            return "array"
        kind, convert = "a JSON array", "jq -c '.[]'"
    elif (start := source.first_line()[1]).startswith(b"{") and start.endswith((b"{", b"[", b",")):
        kind, convert = "indented JSON", "jq -c ."
    else:
        return "lines"
    raise ValueError(
        f"{source.path}:{number}: expected JSON lines (one object a line), found {kind}; convert it, as `{convert}` "
        "does"
    )


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The object of one of a file's JSON lines. Raises ValueError at `where` for other JSON and for a repeated key."""
    try:
        value = json.loads(line, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; expected JSON lines (one object a line)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, as JSON lines have one a line; found {line.strip()[:40]!r}")
    return value


@contextmanager
def _arrow_file(source: Source) -> Iterator[Any]:
    """The reader that pyarrow has for the file; its errors become ValueError naming the file."""
    pyarrow = import_pyarrow(source.path)
    from pyarrow import ipc, parquet

    check_file(source.path)
    try:
        if source.compression is None:
            content = pyarrow.OSFile(str(source.path))
        else:
            with source.raw_blocks() as blocks:
                content = pyarrow.BufferReader(b"".join(map(bytes, blocks)))
        if source.suffix == ".parquet":
            yield parquet.ParquetFile(content)
        else:
            is_file = content.read(6) == b"ARROW1"
            content.seek(0)
            yield ipc.open_file(content) if is_file else ipc.open_stream(content)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{source.path} is corrupt or not {_ARROW_NAMES[source.suffix]} file: {error}") from None


def arrow_schema(source: Source) -> Any:
    """The schema of one of pyarrow's files."""
    with _arrow_file(source) as file:
        return file.schema_arrow if source.suffix == ".parquet" else file.schema


_ARROW_NAMES = {".parquet": "a parquet", ".arrow": "an Arrow", ".feather": "a Feather"}


def _arrow_tables(source: Source, columns: Sequence[str] | None, size: int | None, whole: bool) -> Iterator[Table]:
    with _arrow_file(source) as file:
        is_parquet = source.suffix == ".parquet"
        names = (file.schema_arrow if is_parquet else file.schema).names
        check_columns(source.path, columns or (), names)
        chosen = names if columns is None else list(columns)
        if is_parquet:
            read = None if whole else chosen
            batches = [file.read(columns=read)] if size is None else file.iter_batches(size, columns=read)
        elif size is None:
            batches = [file.read_all()]
        else:
            one_by_one = hasattr(file, "num_record_batches")
            batches = map(file.get_batch, range(file.num_record_batches)) if one_by_one else file
        done = 0
        for batch in batches:
            columns_read = [column_of(batch[name], f"{source.path}: {name}") for name in chosen]
            numbers = np.arange(done + 1, done + 1 + len(columns_read[0]))
            done += len(numbers)
            yield Table(source.path, columns_read, numbers, batch if whole else None)


def filtered(batch: Any, kept: npt.NDArray[np.bool_]) -> Any:
    """The rows of a record batch or table of Arrow's."""
    return batch if kept.all() else batch.filter(import_pyarrow("data").array(kept))
