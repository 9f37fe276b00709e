"""Predictions in the shape of the input: a table is read, predicted and written a few thousand rows at a time."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertnli.data.columns import NULL, TEXT, Column, Table
from bertnli.data.files import atomic_path
from bertnli.data.headers import check_columns
from bertnli.data.source import Source, import_pyarrow
from bertnli.data.tables import BadRow, check_texts, column_names, read_tables
from bertnli.inference.predict import predict
from bertnli.inference.session import InferenceSession
from bertnli.tasks.base import Head
from bertnli.tasks.load import check_count, choose_columns
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab

_ROWS = 4096  # that are read at a time
Record = dict[str, Any]
Write = Callable[[list[Record]], object]


def predict_file(
    model: Head | InferenceSession,
    tokenizer: Tokenizer | Vocab,
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    text_columns: Sequence[str] | None = None,
    probabilities: bool = False,
    bad_rows: str | os.PathLike[str] | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    **predicting: Any,
) -> tuple[int, int]:
    """Predict every row of a table, and write its columns with the predictions, in order, in constant memory.

        predict_file(model, tokenizer, "reviews.csv", "predicted.csv", text_columns=["text"])

    path             a table with a header: see `read_table`
    output           .csv, .tsv, .jsonl or .parquet (needs the extra `data`); it is replaced when all is written
    text_columns     of `path` (default: those of `model.fields` that its header has)
    probabilities    whether every class has a column (default: False)
    bad_rows         JSON lines of the rows that cannot be read: `line`, `error`, `row` (default: the first such row is
                     an error)
    encoding, delimiter    of `path`, as in `read_table`
    predicting       other arguments of `predict`

    A classifier adds the columns `label` and `score`, its probability; a regressor `score`; other tasks the fields of
    their predictions. Where the table has such a column, the new one begins with `predicted_`.

    Returns the number of rows written and of rows set aside. Raises ValueError naming file and line for a broken row,
    and for another kind of output.
    """
    head = model.model if isinstance(model, InferenceSession) else model
    source, output = Source(path, encoding, delimiter), Path(output)
    names = column_names(source)
    columns = list(text_columns or choose_columns(names, head) or ())
    if not columns:
        found = ", ".join(map(repr, names))
        raise ValueError(f"{path} has the columns {found}, and not the model's; name its columns: text_columns")
    check_count(columns, head)
    check_columns(f"{path}:1", columns, names)
    chunks = _predicted(model, tokenizer, source, columns, names, probabilities, bad_rows is not None, predicting)
    written = aside = 0
    with _writer(output) as write, _bad_writer(bad_rows) as write_bad:
        for rows, bad in chunks:
            if rows:
                write(rows)
            write_bad(bad)
            written, aside = written + len(rows), aside + len(bad)
        if not written and not aside:
            raise ValueError(f"{path} has no rows")
    return written, aside


def _predicted(
    model: Head | InferenceSession,
    tokenizer: Tokenizer | Vocab,
    source: Source,
    columns: list[str],
    names: list[str],
    probabilities: bool,
    keep_bad: bool,
    predicting: dict[str, Any],
) -> Iterator[tuple[list[Record], list[Record]]]:
    """Rows with their predictions, and rows that cannot be read, some at a time."""
    head = model.model if isinstance(model, InferenceSession) else model
    if source.is_json:
        names = columns
    bad: list[BadRow] | None = [] if keep_bad else None
    for table in read_tables(source, columns if source.is_json else None, _ROWS, whole=source.is_json, bad=bad):
        kept, texts = _texts(table, [table.columns[names.index(name)] for name in columns], columns, bad)
        aside: list[Record] = [
            {"line": line, "error": error, "row": row.decode(errors="replace")}
            for line, error, row in sorted(bad or ())
        ]
        parts: list[Any] = [column.texts for column in texts]
        if head.task == "tagging":
            parts = [[text.split() for text in parts[0]]]
        found = predict(model, tokenizer, *parts, **predicting) if len(parts[0]) else []
        rows = zip(_rows(table, names, kept, source.is_json), found, strict=True)
        yield [_with_prediction(row, _record(prediction, probabilities)) for row, prediction in rows], aside
        if bad is not None:
            bad.clear()


def _texts(
    table: Table, texts: list[Column], names: Sequence[str], bad: list[BadRow] | None
) -> tuple[np.ndarray[Any, Any], list[Column]]:
    """Which rows have texts, and these; the others go to `bad`, or the first one is an error."""
    chosen = Table(table.where, texts, table.numbers)
    if bad is None:
        check_texts(chosen, names)
        return np.ones(len(table), bool), texts
    kept = np.ones(len(table), bool)
    for name, column in zip(names, texts, strict=True):
        for i in () if column.kinds is None else np.flatnonzero((column.kinds != TEXT) & kept).tolist():
            kept[i] = False
            row = json.dumps([c.shown(i) for c in table.columns]).encode()
            bad.append((int(table.numbers[i]), f"{name} is {column.shown(i)}, not a text", row))
    return kept, [column[kept] for column in texts]


def _rows(table: Table, names: Sequence[str], kept: np.ndarray[Any, Any], is_json: bool) -> Iterator[Record]:
    """The values of each row; of JSON the whole object."""
    if is_json:
        yield from map(json.loads, table.columns[-1][kept].texts)
        return
    for row in zip(*(_values(column[kept]) for column in table.columns), strict=True):
        yield dict(zip(names, row, strict=True))


def _values(column: Column) -> Iterator[Any]:
    if column.kinds is None:
        yield from column.texts
        return
    for text, kind in zip(column.texts, column.kinds.tolist(), strict=True):
        yield text if kind == TEXT else None if kind == NULL else json.loads(text)


def _record(prediction: Any, probabilities: bool) -> Record:
    every = getattr(prediction, "probabilities", {})
    if hasattr(prediction, "label_id"):
        record = {"label": prediction.label, "score": every[prediction.label]}
    elif hasattr(prediction, "label_ids"):
        record = {"labels": prediction.labels}
    elif is_dataclass(prediction) and not isinstance(prediction, type):
        record = asdict(prediction)
    else:
        record = {"score" if isinstance(prediction, float) else "tags": prediction}
    return record | ({f"probability_{name}": value for name, value in every.items()} if probabilities else {})


def _with_prediction(row: Record, prediction: Record) -> Record:
    return row | {f"predicted_{name}" if name in row else name: value for name, value in prediction.items()}


# ---- writers --------------------------------------------------------------------------------------------------------


@contextmanager
def _writer(path: Path) -> Iterator[Write]:
    """A function that appends rows to what becomes the file `path` when the block succeeds."""
    writers = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _json_lines, ".parquet": _parquet}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise ValueError(f"{path}: predictions are written as {', '.join(writers)}; found the suffix {suffix!r}")
    with atomic_path(path) as temporary, writers[suffix](temporary, suffix) as write:
        yield write


@contextmanager
def _bad_writer(path: str | os.PathLike[str] | None) -> Iterator[Write]:
    if path is None:
        yield lambda rows: None
        return
    with atomic_path(path) as temporary, _json_lines(temporary, ".jsonl") as write:
        yield write


@contextmanager
def _delimited(path: Path, suffix: str) -> Iterator[Write]:
    header: list[str] = []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")

        def write(rows: list[Record]) -> None:
            if not header:
                header.extend(rows[0])
                writer.writerow(header)
            for row in rows:
                if list(row) != header:
                    raise ValueError(f"the rows have different columns: {list(row)} and {header}; write .jsonl instead")
                writer.writerow(map(_cell, row.values()))

        yield write


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


@contextmanager
def _json_lines(path: Path, suffix: str) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def _parquet(path: Path, suffix: str) -> Iterator[Write]:
    pyarrow = import_pyarrow(path)
    from pyarrow import parquet

    writer: Any = None

    def write(rows: list[Record]) -> None:
        nonlocal writer
        table = pyarrow.Table.from_pylist(rows, schema=None if writer is None else writer.schema)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
