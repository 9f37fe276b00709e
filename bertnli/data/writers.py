"""Rows written as a table, some at a time: .csv, .tsv, .jsonl, .parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bertnli.data.files import atomic_path
from bertnli.data.source import import_pyarrow

Record = dict[str, Any]
Write = Callable[[list[Record]], object]
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_ROW_GROUP = 1 << 16  # rows of a .parquet file that are written together


def to_json(value: Any) -> str:
    """One line of JSON. Figures that are undefined or infinite are null: JSON has no NaN. What JSON does not have, such
    as a date, is as Python shows it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def table_writer(path: Path, *, header: bool = True, schema: Any = None) -> Iterator[Write]:
    """A function that appends rows to what becomes the file `path` when the block succeeds.

    path      its suffix, of TABLES, says the format
    header    whether .csv and .tsv begin with the names of the columns
    schema    Arrow's, of the first columns of a .parquet file (default: by their values)

    The function raises ValueError where rows of .csv and .tsv have different columns, and where a column of .parquet
    has values of different types.
    """
    suffix = path.suffix.lower()
    with atomic_path(path) as temporary:
        if suffix == ".parquet":
            with _parquet(temporary, path, schema) as write:
                yield write
            return
        # In a string of JSON a lone surrogate is an escape.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            if suffix == ".jsonl":
                yield lambda rows: file.writelines(to_json(row) + "\n" for row in rows)
            else:
                writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
                yield partial(_write_delimited, writer, [], header)


def _write_delimited(writer: Any, names: list[str], header: bool, rows: list[Record]) -> None:
    if not names and rows:
        names.extend(rows[0])
        if header:
            writer.writerow(names)
    for row in rows:
        if list(row) != names:
            raise ValueError(f"the rows have different columns: {list(row)} and {names}; write .jsonl instead")
        writer.writerow(map(_cell, row.values()))


def _cell(value: Any) -> Any:
    return to_json(value) if isinstance(value, list | dict) else value


@contextmanager
def _parquet(temporary: Path, path: Path, schema: Any) -> Iterator[Write]:
    pyarrow = import_pyarrow(path)
    from pyarrow import parquet

    waiting: list[Record] = []
    writer: Any = None

    def write(rows: list[Record], at_least: int = _ROW_GROUP) -> None:
        nonlocal writer
        waiting.extend(rows)
        if len(waiting) < at_least:
            return
        try:
            if writer is None:
                writer = parquet.ParquetWriter(temporary, _schema_of(pyarrow, waiting, schema))
            writer.write_table(pyarrow.Table.from_pylist(waiting, writer.schema))
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"{path}: a column has values of different types ({error}); write .jsonl instead"
            ) from None
        waiting.clear()

    try:
        yield write
        if waiting:
            write([], 1)
    finally:
        if writer is not None:
            writer.close()


def _schema_of(pyarrow: Any, rows: list[Record], schema: Any) -> Any:
    """The schema of rows whose first columns have `schema`, if it is given; a column of nulls is one of texts."""
    known = pyarrow.schema([]) if schema is None else schema
    names = dict.fromkeys(name for row in rows for name in row if name not in known.names)
    for name in names:
        kind = pyarrow.array([row.get(name) for row in rows]).type
        known = known.append(pyarrow.field(name, pyarrow.string() if pyarrow.types.is_null(kind) else kind))
    return known
