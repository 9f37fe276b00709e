"""Predictions in the shape of the input: a table is read, predicted and written a few thousand rows at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertnli.data.columns import TEXT, Column, Table
from bertnli.data.conll import open_conll
from bertnli.data.files import atomic_path
from bertnli.data.headers import check_columns, is_by_number
from bertnli.data.progress import Progress
from bertnli.data.snli import snli_file
from bertnli.data.source import Source
from bertnli.data.squad import is_squad, questions_of, read_whole, with_predictions
from bertnli.data.tables import BadRow, arrow_schema, check_texts, column_names, filtered, labelled_rows, read_tables
from bertnli.data.writers import TABLES, Record, Write, table_writer, to_json
from bertnli.inference.predict import predict
from bertnli.inference.session import InferenceSession
from bertnli.tasks.base import Head
from bertnli.tasks.load import CONLL, check_count, choose_columns, tag_index
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab

_ROWS = 4096  # that are read at a time
_SQUAD = ".squad.json"


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
    progress: bool = False,
    **predicting: Any,
) -> tuple[int, int]:
    """Predict every row of a file, and write its columns with the predictions, in order.

        predict_file(model, tokenizer, "reviews.csv", "predicted.csv", text_columns=["text"])

    path             a table (see `read_table`), which is read, predicted and written in constant memory; for question
                     answering also a .json file in SQuAD's layout, for tagging a .conll or .conllu file
    output           .csv, .tsv, .jsonl or .parquet (needs the extra `data`). Of SQuAD's layout also .json, the answers
                     by the questions' ids, and .squad.json, the file with a "prediction" in each question; of .conll
                     and .conllu also these: see `ConllFile.tagged`. It is replaced when all is written
    text_columns     of a table (default: those of `model.fields` that its header has)
    probabilities    whether every class has a column (default: False)
    bad_rows         JSON lines of the rows of a table that cannot be read: `line`, `error`, `row` (default: the first
                     such row is an error)
    encoding, delimiter    of `path`, as in `read_table`
    progress         show how many rows are written on standard error
    predicting       other arguments of `predict`

    A classifier adds the columns `label` and `score`, its probability; a regressor `score`; other tasks the fields of
    their predictions. Where the table has such a column, the new one begins with `predicted_`.

    Returns the number of rows written and of rows set aside. Raises ValueError naming file and line for a broken row,
    and for another kind of output.
    """
    head = model.model if isinstance(model, InferenceSession) else model
    source, output = Source(path, encoding, delimiter), Path(output)
    check_output(output, head, source)
    if (whole := _read_whole(source, head)) is not None:
        if bad_rows is not None:
            raise ValueError(f"bad_rows is for tables; {path} is none")
        _write_whole(whole, predict(model, tokenizer, *whole.parts, **predicting), output, probabilities)
        return len(whole.parts[0]), 0
    table = _RowsOf(source, *_columns(source, head, text_columns))
    written = aside = 0
    shown = Progress(0, "predict", "rows", progress)
    with table.writer(output) as write, _bad_writer(bad_rows) as write_bad, shown:
        for rows, texts, bad in table.chunks(bad_rows is not None):
            parts: list[Any] = [list(map(str.split, c.texts)) if head.task == "tagging" else c.texts for c in texts]
            predictions = predict(model, tokenizer, *parts, **predicting) if len(parts[0]) else []
            pairs = zip(rows, predictions, strict=True)
            write([_with_prediction(row, _record(found, probabilities)) for row, found in pairs])
            write_bad(bad)
            written, aside = written + len(texts[0]), aside + len(bad)
            shown.update(len(texts[0]) + len(bad))
        if not written + aside:
            raise ValueError(f"{path} has no rows")
    return written, aside


def _columns(source: Source, head: Head, text_columns: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The names of all columns of a table, and of those that the model reads."""
    names = column_names(source)
    columns = list(text_columns or choose_columns(names, head) or ())
    if not columns:
        found = ", ".join(map(repr, names))
        raise ValueError(f"{source.path} has the columns {found}, and not the model's; name its columns: text_columns")
    check_count(columns, head)
    return names, columns


def write_evaluated(
    head: Head,
    path: str | os.PathLike[str],
    predictions: Sequence[Any],
    output: str | os.PathLike[str],
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    probabilities: bool = False,
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> None:
    """Write a file of labelled examples with their predictions, as `predict_file` does. Rows without a label, which the
    readers drop, are left out.

    path, text_columns, label_column, labels    as `load_examples` took them; of a folder its test file
    predictions      of the head, in the order of the examples

    In tables a predicted `label` is `predicted_label`. Raises ValueError for another kind of output, and for another
    number of labelled rows.
    """
    source, output = Source(snli_file(path, "test"), encoding, delimiter), Path(output)
    check_output(output, head, source, labelled=True)
    if (whole := _read_whole(source, head, labelled=True, tag_column=label_column)) is not None:
        _write_whole(whole, predictions, output, probabilities)
        return
    names = column_names(source)
    layout = () if text_columns else ("gold_label", "label")  # SNLI's column, where no columns are named
    label = label_column or next((name for name in layout if name in names), "label")
    table = _RowsOf(source, names, [label], is_by_number([*(text_columns or ()), label]))
    remaining = iter(predictions)
    real, several = head.task == "regression", head.task == "multilabel"
    with table.writer(output) as write:
        for rows, (gold,), _ in table.chunks(False, texts=False):
            kept = labelled_rows(gold, labels, real, several).tolist()
            pairs = ((row, next(remaining)) for row, keep in zip(rows, kept, strict=True) if keep)
            write([_with_prediction(row, _record(found, probabilities), _GOLD) for row, found in pairs])
    if next(remaining, None) is not None:
        raise ValueError(f"{path} changed while it was evaluated")


_GOLD = ("label", "labels")


def check_output(output: Path, head: Head, source: Source, labelled: bool = False) -> None:
    """Raise ValueError for a file that predictions are not written to.

    labelled    whether the input is one of labelled examples; then any suffix may be one of tags
    """
    name = output.name.lower()
    allowed = [*TABLES]
    if head.task == "qa" and (labelled or is_squad(source)):
        allowed += [".json", _SQUAD]
    if head.task == "tagging" and (labelled or source.suffix in CONLL):
        allowed.append(".conllu" if source.suffix == ".conllu" else ".conll")
    if not name.endswith(tuple(allowed)):
        raise ValueError(
            f"{output}: predictions are written as {', '.join(allowed)}; found the suffix {output.suffix!r}"
        )


# ---- tables ---------------------------------------------------------------------------------------------------------


class _RowsOf:
    """A table's rows, and some of its columns, a few thousand at a time.

    names      of all columns
    columns    those to read
    """

    def __init__(self, source: Source, names: list[str], columns: list[str], by_number: bool | None = None) -> None:
        self.source, self.columns = source, columns
        self.is_delimited = not (source.is_json or source.is_arrow)
        by_number = is_by_number(columns) if by_number is None else by_number
        self.has_header = not (self.is_delimited and by_number)
        self.names = names if self.has_header else [str(i) for i in range(1, len(names) + 1)]
        check_columns(f"{source.path}:1", columns, self.names)

    def writer(self, output: Path) -> Any:
        schema = arrow_schema(self.source) if self.source.is_arrow else None
        return table_writer(output, header=self.has_header, schema=schema)

    def chunks(
        self, keep_bad: bool, texts: bool = True
    ) -> Iterator[tuple[Iterator[Record], list[Column], list[Record]]]:
        """Rows, the same rows of the columns, and rows that cannot be read.

        keep_bad    whether such rows are given; else the first one is an error
        texts       whether the columns must be texts
        """
        bad: list[BadRow] | None = [] if keep_bad else None
        all_columns = self.is_delimited and not self.has_header
        wanted = self.names if all_columns else None if self.is_delimited else self.columns
        for table in read_tables(self.source, wanted, _ROWS, whole=not self.is_delimited, bad=bad):
            found = [
                table.columns[self.names.index(name) if self.is_delimited else i] for i, name in enumerate(self.columns)
            ]
            kept = _with_texts(table, found, self.columns, bad) if texts else np.ones(len(table), bool)
            aside: list[Record] = [
                {"line": line, "error": error, "row": row.decode(errors="replace")}
                for line, error, row in sorted(bad or ())
            ]
            if bad is not None:
                bad.clear()
            if not kept.all():
                found = [column[kept] for column in found]
            yield self._rows(table, kept), found, aside

    def _rows(self, table: Table, kept: np.ndarray[Any, Any]) -> Iterator[Record]:
        if self.source.is_json:
            return map(json.loads, table.columns[-1][kept].texts)
        if table.batch is not None:
            return iter(filtered(table.batch, kept).to_pylist())
        values = zip(*(column[kept].texts for column in table.columns), strict=True)
        return (dict(zip(self.names, row, strict=True)) for row in values)


def _with_texts(
    table: Table, columns: list[Column], names: Sequence[str], bad: list[BadRow] | None
) -> np.ndarray[Any, Any]:
    """Which rows have texts in the columns; the others go to `bad`, or the first one is an error."""
    kept = np.ones(len(table), bool)
    if bad is None:
        check_texts(Table(table.where, columns, table.numbers), names)
        return kept
    for name, column in zip(names, columns, strict=True):
        for i in () if column.kinds is None else np.flatnonzero((column.kinds != TEXT) & kept).tolist():
            kept[i] = False
            row = json.dumps([c.shown(i) for c in table.columns]).encode()
            bad.append((int(table.numbers[i]), f"{name} is {column.shown(i)}, not a text", row))
    return kept


def _record(prediction: Any, probabilities: bool) -> Record:
    every = getattr(prediction, "probabilities", None)
    if probabilities and every is None:
        raise ValueError("probabilities are of classes; this model's predictions have none")
    if every is not None and hasattr(prediction, "label_id"):
        record = {"label": prediction.label, "score": every[prediction.label]}
    elif hasattr(prediction, "label_ids"):
        record = {"labels": prediction.labels}
    elif is_dataclass(prediction) and not isinstance(prediction, type):
        record = asdict(prediction)
    else:
        record = {"score" if isinstance(prediction, float) else "tags": prediction}
    return record | ({f"probability_{name}": value for name, value in every.items()} if probabilities and every else {})


def _with_prediction(row: Record, prediction: Record, taken: Iterable[str] = ()) -> Record:
    """The row with the prediction's values, whose names begin with `predicted_` where the row or `taken` has them."""
    for name, value in prediction.items():
        row[f"predicted_{name}" if name in row or name in taken else name] = value
    return row


@contextmanager
def _bad_writer(path: str | os.PathLike[str] | None) -> Iterator[Write]:
    if path is None:
        yield lambda rows: None
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(to_json(row) + "\n" for row in rows)


# ---- files that are read whole --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Whole:
    """The examples of a file in SQuAD's layout or a CoNLL file.

    parts      what `predict` takes
    rows       of a table of them
    formats    by suffix, the text of the file in its own format with predictions, in parts
    """

    parts: Sequence[Sequence[Any]]
    rows: list[Record]
    formats: dict[str, Callable[[Sequence[Any]], Iterable[str]]]


def _read_whole(source: Source, head: Head, labelled: bool = False, tag_column: str | None = None) -> _Whole | None:
    """None for a table.

    labelled, tag_column    see `check_output` and `load_examples`: rows have the tags too
    """
    if head.task == "qa" and (labelled or is_squad(source)):
        return _questions(source)
    if head.task == "tagging" and (labelled or source.suffix in CONLL):
        return _sentences(source, tag_index(source, tag_column) if labelled else None)
    return None


def _questions(source: Source) -> _Whole:
    whole = read_whole(source)
    data = questions_of(whole, source.path)
    columns = zip(data.ids, data.titles, data.questions, data.contexts, data.answers or (), strict=True)
    rows = [
        {"id": i, "title": title, "question": question, "context": context, "answers": [text for _, text in known]}
        for i, title, question, context, known in columns
    ]
    return _Whole((data.questions, data.contexts), rows, {
        ".json": lambda found: [to_json({i: answer.text for i, answer in zip(data.ids, found, strict=True)}), "\n"],
        _SQUAD: lambda found: [to_json(with_predictions(whole, [asdict(answer) for answer in found])), "\n"],
    })  # fmt: skip


def _sentences(source: Source, tag_column: int | None) -> _Whole:
    file = open_conll(source, source.suffix == ".conllu")
    sentences = file.sentences()
    rows: list[Record] = [{"words": words} for words in sentences]
    if tag_column is not None:
        for row, tags in zip(rows, file.column(tag_column), strict=True):
            row["tags"] = [tag.strip() for tag in tags]
    return _Whole((sentences,), rows, {".conllu" if file.is_conllu else ".conll": file.tagged})


def _write_whole(whole: _Whole, predictions: Sequence[Any], output: Path, probabilities: bool) -> None:
    records = [_record(found, probabilities) for found in predictions]
    for suffix in sorted(whole.formats, key=len, reverse=True):
        if output.name.lower().endswith(suffix):
            with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines(whole.formats[suffix](predictions))
            return
    with table_writer(output) as write:
        write([_with_prediction(row, record) for row, record in zip(whole.rows, records, strict=True)])
