"""Tables with named columns: .csv, tab-separated text, JSON lines, .parquet."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from bertnli.data.files import JSON_LINES, open_text
from bertnli.data.texts import TextData, Texts

_NO_LABEL = {"", "-", "-1"}  # what the corpora write where there is no gold label
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
Row = tuple[int, list[Any]]  # line number (of .parquet the row's), values of the columns


def read_table(
    path: str | os.PathLike[str],
    text: str | Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None = None,
    *,
    real: bool = False,
) -> TextData:
    """Read texts or pairs, with labels, from named columns of a table.

    path          .csv (quoted as Excel does), .parquet (needs pyarrow), JSON lines (.jsonl, .json, .ndjson), or
                  tab-separated text without quoting (any other suffix)
    text          column of the texts, or the two columns of the pairs
    label         column of the labels; None reads all rows, without labels
    label_names   classes (default: the labels in the file, sorted, numbers by value). A label is a name or, where no
                  name is a number, an index. Rows without a label (empty, "-", and unless `real` -1) are dropped and
                  counted
    real          whether labels are real numbers (default: False)

    If all columns are numbers, such as "1", they count columns from 1 in a table without a header (.csv and
    tab-separated text).

    Raises FileNotFoundError, and ValueError naming file and line (of .parquet the row) for a broken row.
    """
    path = Path(path)
    columns = [text] if isinstance(text, str) else list(text)
    if len(columns) not in (1, 2):
        raise ValueError(f"text must name one column or two; found {columns}")
    rows = _read_rows(path, columns if label is None else [*columns, label])
    return text_data(path, rows, columns, label, label_names, real=real)


def text_data(
    where: object,
    rows: Iterable[Row],
    columns: Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None,
    *,
    real: bool,
) -> TextData:
    """Texts or pairs, with labels, from the rows of a table.

    where    the table, for errors
    rows     row number, values of `columns` and of `label`. For the other arguments see `read_table`
    """
    texts: list[list[str]] = [[] for _ in columns]
    raw_labels: list[str] = []
    places: list[str] = []
    dropped = 0
    for number, values in rows:
        raw = "?" if label is None else "" if values[-1] is None else values[-1]
        if not isinstance(raw, (str, Number)) or raw != raw:
            raise ValueError(f"{where}:{number}: {label} is {raw!r}, not a label")
        raw_label = str(raw).strip()
        if raw_label in _NO_LABEL and raw_label not in (label_names or ()) and not (real and raw_label == "-1"):
            dropped += 1
            continue
        for column, name, value in zip(texts, columns, values, strict=False):
            if not isinstance(value, str):
                raise ValueError(f"{where}:{number}: {name} is {value!r}, not a text")
            column.append(value)
        raw_labels.append(raw_label)
        places.append(f"{where}:{number}")
    if not raw_labels:
        raise ValueError(f"{where} has no {'rows' if label is None else 'labelled rows'}")
    names: tuple[str, ...] = ()
    labels: list[Any] | None = None
    if label is not None and real:
        labels = [_parse_real(raw, place) for raw, place in zip(raw_labels, places, strict=True)]
    elif label is not None:
        names, labels = label_indices(raw_labels, places, label_names, by_index=True)
    first, *second = map(Texts.of, texts)
    return TextData(first, second[0] if second else None, labels, names, dropped)


def label_indices(
    labels: Sequence[str], places: Sequence[str], label_names: Sequence[str] | None, by_index: bool = False
) -> tuple[tuple[str, ...], list[int]]:
    """The classes, and the index of each label.

    places        where each label is ("file:line"), for errors
    label_names   classes (default: the labels, sorted, numbers by value)
    by_index      whether a label may also be an index (where no class is a number)
    """
    if label_names is None:
        label_names = sorted(set(labels))
        if all(map(_NUMBER.fullmatch, label_names)):
            label_names.sort(key=float)
    index = {name: i for i, name in enumerate(label_names)}
    if by_index and not any(map(_NUMBER.fullmatch, label_names)):
        index |= {str(i): i for i in range(len(label_names))}
    for label, place in zip(labels, places, strict=True):
        if label not in index:
            raise ValueError(f"{place}: unknown label {label!r}; expected one of {', '.join(label_names)}")
    return tuple(label_names), [index[label] for label in labels]


def _parse_real(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not a number")
    return value


def _read_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    with open_text(path) as lines:
        if suffix in JSON_LINES:
            yield from _json_rows(path, lines, columns)
        elif suffix == ".csv":
            yield from _delimited_rows(path, csv.reader(lines, strict=True), columns)
        else:
            yield from _delimited_rows(path, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), columns)


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet  # optional, and slow to import
    except ImportError:
        raise ValueError(f"{path}: to read parquet, pip install pyarrow") from None
    try:
        schema = parquet.read_schema(path)
        _check_columns(path, columns, schema.names)
        table = parquet.read_table(path, columns=columns)
    except ArrowException as error:
        raise ValueError(f"{path} is corrupt or not a parquet file: {error}") from None
    yield from enumerate(map(list, zip(*(table[name].to_pylist() for name in columns), strict=True)), 1)


def _json_rows(path: Path, lines: Iterator[str], columns: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object")
        _check_columns(f"{path}:{number}", columns, list(row))
        yield number, [row[name] for name in columns]


def _delimited_rows(path: Path, reader: Any, columns: list[str]) -> Iterator[Row]:
    """reader: what `csv.reader` returns."""
    csv.field_size_limit(2**31 - 1)
    try:
        if all(name.isdecimal() and int(name) for name in columns):
            indices = [int(name) - 1 for name in columns]
        else:
            header: list[str] = next(reader, [])
            _check_columns(path, columns, header)
            indices = [header.index(name) for name in columns]
        for row in reader:
            if not row:
                continue
            if len(row) <= max(indices):
                raise ValueError(
                    f"{path}:{reader.line_num}: expected at least {max(indices) + 1} columns, found {len(row)}"
                )
            yield reader.line_num, [row[i] for i in indices]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from None


def _check_columns(where: object, columns: list[str], present: list[str]) -> None:
    for name in columns:
        if name not in present:
            hint = (
                " (numbers count columns only if all columns, the labels' too, are numbers)" if name.isdecimal() else ""
            )
            raise ValueError(
                f"{where}: there is no column {name!r}{hint}; the columns are {', '.join(map(repr, present))}"
            )
