"""Tables with named columns: .csv, tab-separated text, JSON lines, .parquet."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertnli.data.arguments import path_of, string, strings
from bertnli.data.files import JSON_LINES, check_file, check_json_lines, open_text, without_repeats
from bertnli.data.labels import (
    NUMBER,
    class_index,
    find_class,
    is_no_label,
    label_indices,
    label_text,
    labels_text,
    multi_hot,
    parse_real,
)
from bertnli.data.texts import TextData, Texts, check_unicode

_TEXT_HEADER = re.compile(  # usual names of columns of texts, and below of labels
    "(text|sentence|question)s?_?[12ab]?|premise|hypothesis|query|passage|context|review|content|comment|tweet|title|"
    "body|message|document|utterance|words?|tokens?|form",
    re.IGNORECASE,
)
_LABEL_HEADER = re.compile(
    "(gold_)?labels?|label_text|class|category|target|scores?|rating|stars|sentiment|polarity|intent|topic|emotion|"
    "((ner|pos)_)?tags?|ner|similarity|answers?",
    re.IGNORECASE,
)
Row = tuple[int, list[Any]]  # line number (of .parquet the row's), values of the columns


def read_table(
    path: str | os.PathLike[str],
    text: str | Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None = None,
    *,
    real: bool = False,
    separator: str | None = None,
) -> TextData:
    """Read texts or pairs, with labels, from named columns of a table.

    path          .csv (quoted as Excel does), .parquet (needs pyarrow), JSON lines (.jsonl, .json, .ndjson), or
                  tab-separated text (any other suffix). There quotes are read as the csv module does if every one in
                  the file opens, closes or is doubled inside a quoted field, else as characters
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

    If all columns are numbers, such as "1", they count columns from 1 in a table without a header (.csv and
    tab-separated text).

    Every row has as many fields as the first, and no column name is repeated. Lines without any field are skipped.

    Raises FileNotFoundError, and ValueError naming file and line (of .parquet the row) for a broken row, and for a
    header in a table whose columns are given by number.
    """
    path = path_of(path)
    columns = [text] if isinstance(text, str) else strings(text, "text")
    label = None if label is None else string(label, "label")
    label_names = None if label_names is None else strings(label_names, "label_names")
    if len(columns) not in (1, 2):
        raise ValueError(f"text must name one column or two; found {columns}")
    chosen = columns if label is None else [*columns, label]
    rows = read_rows(path, chosen)
    if _by_number(chosen) and path.suffix.lower() not in (*JSON_LINES, ".parquet"):
        rows = iter(table := list(rows))
        _check_no_header(path, table, chosen, label is not None, label_names or ())
    return text_data(path, rows, columns, label, label_names, real=real, separator=separator)


def text_data(
    where: object,
    rows: Iterable[Row],
    columns: Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None,
    *,
    real: bool,
    separator: str | None = None,
) -> TextData:
    """Texts or pairs, with labels, from the rows of a table.

    where    the table, for errors
    rows     row number, values of `columns` and of `label`. For the other arguments see `read_table`
    """
    texts: list[list[str]] = [[] for _ in columns]
    raw_labels: list[str] = []
    places: list[str] = []
    index = class_index(label_names or ())
    is_missing: dict[str, bool] = {}
    dropped = 0
    for number, values in rows:
        place = f"{where}:{number}"
        for name, value in zip(columns, values, strict=False):
            if not isinstance(value, str):
                raise ValueError(f"{place}: {name} is {value!r}, not a text")
        try:
            raw_label = "?" if label is None else (label_text if separator is None else labels_text)(values[-1])
        except TypeError as error:
            raise ValueError(f"{place}: {label} is {error}") from None
        if raw_label not in is_missing:
            check_unicode(raw_label, place)
            is_missing[raw_label] = is_no_label(raw_label, real) and find_class(index, raw_label) is None
        if is_missing[raw_label]:
            for value in values[: len(columns)]:
                check_unicode(value, place)
            dropped += 1
            continue
        for column, value in zip(texts, values, strict=False):
            column.append(value)
        raw_labels.append(raw_label)
        places.append(place)
    if not raw_labels:
        raise ValueError(f"{where} has no {'rows' if label is None else 'labelled rows'}")
    names: tuple[str, ...] = ()
    labels: list[Any] | None = None
    if label is not None and real:
        labels = [parse_real(raw, place) for raw, place in zip(raw_labels, places, strict=True)]
    elif label is not None and separator is not None:
        names, labels = multi_hot(raw_labels, places, label_names, separator)
    elif label is not None:
        names, labels = label_indices(raw_labels, places, label_names, by_index=True)
    first, *second = (Texts.of(column, places) for column in texts)
    return TextData(first, second[0] if second else None, labels, names, dropped)


# ---- rows -----------------------------------------------------------------------------------------------------------


def read_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """The rows of a table, with these columns. Errors are those of `read_table`."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    if suffix in JSON_LINES:
        check_file(path)
        check_json_lines(path)
    with open_text(path) as lines:
        if suffix in JSON_LINES:
            yield from _json_rows(path, lines, columns)
        else:
            yield from _delimited_rows(path, _delimited_reader(lines, path), columns)


def column_names(path: Path) -> list[str]:
    """The names of a table's columns: its header; of JSON lines the first object's keys."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with _parquet(path) as parquet:
            return list(parquet.read_schema(path).names)
    with open_text(path) as lines:
        if suffix in JSON_LINES:
            return list(parse_object(next((line for line in lines if line.strip()), "{}"), f"{path}:1"))
        if suffix != ".csv":
            lines = iter([next(lines, "")])
        return list(next(_delimited_reader(lines, path), []))


def likely_options(names: Sequence[str]) -> str:
    """The options that read a table with these columns, guessed from their names."""
    label = next((name for name in names if _LABEL_HEADER.fullmatch(name)), names[-1] if names else "label")
    others = [name for name in names if name != label]
    texts = [name for name in others if _TEXT_HEADER.fullmatch(name)] or others[:1] or ["text"]
    return f"--text-columns {','.join(texts[:2])} --label-column {label}"


def _delimited_reader(lines: Iterator[str], path: Path) -> Any:
    """What `csv.reader` returns."""
    csv.field_size_limit(2**31 - 1)
    if path.suffix.lower() == ".csv":
        return csv.reader(lines, strict=True)
    content = "".join(lines)
    file = io.StringIO(content, newline="")
    if has_consistent_quotes(io.StringIO(content, newline=""), path):
        return csv.reader(file, delimiter="\t", strict=True)
    return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def has_consistent_quotes(lines: Iterable[str], path: Path) -> bool:
    """Whether the `csv` module should read the quotes of tab-separated text: there are some, and every one opens or
    closes a field, or is doubled inside of such a field. Reads up to the first one that does not.

    Raises ValueError where quotes are around tabs or line ends, but the lines are also rows of one field count without.
    """
    ends = ("\t", "\r", "\n")
    any_quotes = inside = False
    wide: int | None = None  # line of the first quote around a tab or a line end
    counts = set()
    for number, line in enumerate(lines, 1):
        if line.strip("\r\n"):
            counts.add(line.count("\t"))
        parts = line.split('"')
        any_quotes |= len(parts) > 1
        for i, part in enumerate(parts):
            after, before = i > 0, i < len(parts) - 1
            if inside ^ (i % 2 == 1):
                if wide is None and any(end in part for end in ends):
                    wide = number
            elif part and ((after and not part.startswith(ends)) or (before and not part.endswith(ends))):
                return False
        inside ^= len(parts) % 2 == 0
    if not any_quotes or inside:
        return False
    if wide is not None and len(counts) == 1:
        raise ValueError(
            f"{path}:{wide}: the quote may be a character, or around a text of several lines or fields; save the "
            "table as .csv or JSON lines"
        )
    return True


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The module `pyarrow.parquet`; its errors become ValueError naming the file."""
    try:
        from pyarrow import ArrowException, parquet  # optional, and slow to import
    except ImportError:
        raise ValueError(f"{path}: to read parquet, pip install pyarrow") from None
    check_file(path)
    try:
        yield parquet
    except ArrowException as error:
        raise ValueError(f"{path} is corrupt or not a parquet file: {error}") from None


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    with _parquet(path) as parquet:
        _check_columns(path, columns, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=columns)
    yield from enumerate(map(list, zip(*(table[name].to_pylist() for name in columns), strict=True)), 1)


def _json_rows(path: Path, lines: Iterator[str], columns: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t\r\n"):  # what JSON has as white space
            continue
        row = parse_object(line, f"{path}:{number}")
        _check_columns(f"{path}:{number}", columns, list(row))
        yield number, [row[name] for name in columns]


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


def _delimited_rows(path: Path, reader: Any, columns: list[str]) -> Iterator[Row]:
    """reader: what `csv.reader` returns."""
    try:
        header: list[str] = []
        width = 0
        if _by_number(columns):
            indices = [int(name) - 1 for name in columns]
        else:
            header = next(reader, [])
            _check_columns(f"{path}:1", columns, header)
            indices = [header.index(name) for name in columns]
            width = len(header)
        last, empty_line = max(indices), 0
        for row in reader:
            if not row:
                empty_line = empty_line or reader.line_num
                continue
            if width == 1 and empty_line:
                raise ValueError(f'{path}:{empty_line}: the line is empty; write an empty text as "" in a .csv file')
            width = width or len(row)
            if len(row) != width:
                hint = "; quote a text that contains a comma" if reader.dialect.delimiter == "," else ""
                raise ValueError(
                    f"{path}:{reader.line_num}: expected {width} columns, as in the first row; found {len(row)}{hint}"
                )
            if last >= width:
                raise ValueError(f"{path}:{reader.line_num}: expected {last + 1} columns or more, found {width}")
            if row == header:
                raise ValueError(f"{path}:{reader.line_num}: the header is repeated; remove this line")
            yield reader.line_num, [row[i] for i in indices]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from None


def _by_number(columns: Sequence[str]) -> bool:
    return all(name.isdecimal() and int(name) for name in columns)


def looks_like_header(names: Sequence[str]) -> bool:
    """Whether a row of texts, or of texts and a label, has nothing but usual names of such columns."""
    return all(_TEXT_HEADER.fullmatch(name.strip()) or _LABEL_HEADER.fullmatch(name.strip()) for name in names)


def _check_no_header(
    path: Path, rows: Sequence[Row], columns: Sequence[str], labelled: bool, label_names: Sequence[str]
) -> None:
    """Raise ValueError where the first row of a table whose columns are given by number looks like a header."""
    if not rows:
        return
    line, first = rows[0]
    is_header = looks_like_header(first) or first in (list(columns), [str(int(name) - 1) for name in columns])
    if labelled and not is_header:
        label, others = first[-1].strip(), Counter(row[-1].strip() for _, row in rows[1:])
        found = [other for other in others if not is_no_label(other, real=True)]
        if label not in others and find_class(class_index(label_names), label) is None:
            named = _LABEL_HEADER.fullmatch(label) is not None
            above_numbers = bool(found) and not NUMBER.fullmatch(label) and all(map(NUMBER.fullmatch, found))
            only_one_of_names = (
                len(rows) > 10
                and min(others.values()) > 1
                and [row for _, row in rows if all(str(value).isidentifier() for value in row)] == [first]
            )
            is_header = named or only_one_of_names or (above_numbers and not is_no_label(label, real=True))
    if is_header:
        raise ValueError(
            f"{path}:{line}: {', '.join(map(repr, first))} looks like a header, but the columns are given by number. "
            "Give them by name, or remove the line; if it is an example, name its class in label_names (--labels)"
        )


def _check_columns(where: object, columns: list[str], present: list[str]) -> None:
    for name, count in Counter(filter(None, present)).items() if len(set(present)) < len(present) else ():
        if count > 1:
            raise ValueError(f"{where}: the column {name!r} is repeated; give each column a name of its own")
    for name in columns:
        if name not in present:
            hint = (
                " (numbers count columns only if all columns, the labels' too, are numbers)" if name.isdecimal() else ""
            )
            raise ValueError(
                f"{where}: there is no column {name!r}{hint}; the columns are {', '.join(map(repr, present))}"
            )
