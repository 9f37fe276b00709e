"""Data in memory to examples of a task: lists, frames, Arrow tables, datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bertnli.data.arguments import items, shown, strings
from bertnli.data.columns import Table, arrow_column, as_list, column_of, is_column, sequence_of
from bertnli.data.conll import WordData
from bertnli.data.labels import is_null, label_indices
from bertnli.data.source import import_pyarrow
from bertnli.data.squad import QuestionData, answer_spans
from bertnli.data.tables import check_texts, text_data
from bertnli.data.texts import Texts
from bertnli.tasks.base import Head
from bertnli.tasks.load import Examples, Fields

_SINGLE = (("text",), ("sentence",))
_LABEL_COLUMNS = {"tagging": "tags", "qa": "answers"}  # of others: "label"


def parts_of(
    examples: Any, model: Head, columns: Sequence[str] | None = None, fields: Fields | None = None
) -> list[Sequence[Any]]:
    """The parts of unlabelled examples, as `predict` takes them: [texts], [premises, hypotheses], [sentences of words],
    or [questions, contexts].

    examples    a text; a list, generator or column (of pandas, polars or Arrow) of texts; a list or generator of tuples
                of parts or of dicts; or a table with named columns (a pandas or polars frame, an Arrow table or record
                batch, a `datasets.Dataset` or `IterableDataset`, a dict of lists). Texts are read from Arrow's buffers
                where the table has them
    columns     of the parts, by name (default: the names in `fields`)
    fields      names of the parts; several alternatives (default: `model.fields`)

    Raises ValueError for examples of different numbers of parts, naming the columns if these are not there, and for a
    value that is no text.
    """
    fields = model.fields if fields is None else fields
    if isinstance(examples, str):
        return [[examples]]
    if is_column(examples):
        return [texts_of(examples)]
    examples = _named(examples)
    if (names := _column_names(examples)) is not None:
        chosen = list(_text_columns(names, fields, columns))
        parts = _columns(examples, chosen)
        if model.task in _LABEL_COLUMNS:
            return [as_list(values) for values in parts]
        table = Table.of("data", [column_of(values, "data") for values in parts])
        check_texts(table, chosen)
        return [column.texts for column in table.columns]
    rows = list(items(examples, "examples", "examples"))
    if rows and isinstance(rows[0], Mapping):
        return [_values(rows, name) for name in _text_columns(list(rows[0]), fields, columns)]
    if not rows or fields == (("words",),) or isinstance(rows[0], str):
        return [rows]
    if not hasattr(rows[0], "__len__"):
        raise TypeError(f"texts[0] must be a str; found {shown(rows[0])}")
    _check_lengths(rows, len(rows[0]))
    return list(zip(*rows, strict=True))


def texts_in(examples: Any, model: Head, columns: Sequence[str] | None = None) -> Sequence[str]:
    """Single texts, given as `parts_of` takes them, with the column "text" or "sentence" of a table."""
    parts = parts_of(examples, model, columns, _SINGLE)
    if len(parts) != 1:
        raise ValueError(f"expected single texts; found examples of {len(parts)} parts")
    return parts[0] if isinstance(parts[0], Texts) else strings(parts[0], "texts")


def texts_of(values: Any) -> Sequence[Any]:
    """The values of one part as a sequence: texts of a column of Arrow's from its buffers, if all are texts."""
    found = arrow_column(values) if is_column(values) else None
    return sequence_of(values) if found is None or found.kinds is not None else found.texts


def to_examples(
    data: Any,
    model: Head,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    separator: str = ",",
) -> Examples:
    """Labelled examples for `model.encode`.

    data            a list or generator of tuples (the parts, then the label) or of dicts, or a table as in `parts_of`
    label_column    by name (default: "label"; "tags" for tagging, "answers" for question answering)
    separator       multilabel: text between the classes of an example, where they are no list

    A label is a class name, or an index into the model's classes; in a `datasets.Dataset` that names its classes, an
    index into these. Rows without a label (None, NaN, "", "-", -1) are dropped and counted. Answers are as in the
    `squad` dataset, {"text": [...], "answer_start": [...]}, or as in SQuAD's files; None is no answer.
    """
    label = label_column or _LABEL_COLUMNS.get(model.task, "label")
    data = _named(data)
    feature = (getattr(data, "features", None) or {}).get(label)
    dataset_names = getattr(getattr(feature, "feature", feature), "names", None)
    several, real = model.task == "multilabel", model.task == "regression"
    names = _column_names(data)
    if names is None:
        rows = list(items(data, "data", "examples"))
        if rows and isinstance(rows[0], Mapping):
            names = list(rows[0])
            data = {name: _values(rows, name) for name in names}
        else:
            names = [*(next((f for f in model.fields if rows and len(f) == len(rows[0]) - 1), model.fields[0])), label]
            _check_lengths(rows, len(names))
            data = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns = list(_text_columns(names, model.fields, columns))
    if label not in names:
        raise ValueError(f"the data has no column {label!r}; its columns are {', '.join(map(str, names))}")
    *parts, labels = _columns(data, [*columns, label])
    if model.task == "tagging":
        return _word_data(as_list(parts[0]), as_list(labels), _label_names(model))
    if model.task == "qa":
        questions, contexts = map(as_list, parts)
        answers = [
            answer_spans(answer, f"data:{number}: {label}", context)
            for number, (answer, context) in enumerate(zip(as_list(labels), contexts, strict=True), 1)
        ]
        ids = [str(i) for i in range(len(answers))]
        return QuestionData(questions, contexts, answers, ids, ids)
    if dataset_names is not None and several:
        labels = [None if is_null(row) else [dataset_names[int(i)] for i in row] for row in as_list(labels)]
    elif dataset_names is not None:
        labels = [None if is_null(i) or i < 0 else dataset_names[int(i)] for i in as_list(labels)]
    table = Table.of("data", [column_of(values, "data") for values in (*parts, labels)])
    between = separator if several else None
    return text_data(table, columns, label, _label_names(model), real=real, separator=between)


def _label_names(model: Head) -> tuple[str, ...]:
    return model.label_names or tuple(str(i) for i in range(model.output.out_features))


def _word_data(sentences: Sequence[Any], tags: Sequence[Any], names: tuple[str, ...]) -> WordData:
    """Tags are names, or indices."""
    for number, (words, row) in enumerate(zip(sentences, tags, strict=True), 1):
        if isinstance(words, str) or is_null(words) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"data:{number}: expected a list of words; found {words!r}")
        if is_null(row) or len(row) != len(words) or any(map(is_null, row)):
            raise ValueError(f"data:{number}: expected a tag for each of {len(words)} words; found {row!r}")
    places = [f"data:{number}" for number, row in enumerate(tags, 1) for _ in row]
    _, flat = label_indices([str(tag) for row in tags for tag in row], places, names, by_index=True)
    remaining = iter(flat)
    return WordData([list(words) for words in sentences], [[next(remaining) for _ in row] for row in tags], names)


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of one key."""
    for number, row in enumerate(rows, 1):
        if name not in row:
            raise ValueError(f"data:{number}: there is no key {name!r}; the keys are {', '.join(map(repr, row))}")
    return [row[name] for row in rows]


def _check_lengths(rows: Iterable[Any], length: int) -> None:
    for number, row in enumerate(rows, 1):
        if isinstance(row, str) or len(row) != length:
            raise ValueError(f"data:{number}: expected {length} parts, as the first example has; found {row!r}")


def _column_names(data: Any) -> list[str] | None:
    """The names of a table's columns; None if `data` is no table, or one whose rows can only be iterated."""
    if hasattr(data, "column_names"):
        return list(data.column_names) if hasattr(data, "__len__") else None
    names = data.keys() if isinstance(data, Mapping) else getattr(data, "columns", None)
    return None if names is None else list(names)


def _columns(data: Any, names: Sequence[str]) -> list[Any]:
    """Columns of a table, of Arrow's where it has them."""
    if hasattr(data, "select_columns"):  # a datasets.Dataset
        data = data.select_columns(list(dict.fromkeys(names))).with_format("arrow")[:]
    return [data[name] for name in names]


def _named(data: Any) -> Any:
    """The data; a stream of Arrow's, whose columns have no names to ask for, as a table of pyarrow's, and what polars
    has not computed yet as a frame. Raises ValueError for a DatasetDict."""
    if isinstance(getattr(data, "column_names", None), dict):
        raise ValueError(f"the data are a dict of data sets: choose one of {', '.join(map(repr, data))}")
    if hasattr(data, "collect_schema") and hasattr(data, "lazy"):
        return data.lazy().collect()
    is_stream = hasattr(data, "__arrow_c_stream__") and not hasattr(data, "column_names")
    return import_pyarrow("data").table(data) if is_stream and not hasattr(data, "columns") else data


def _text_columns(names: list[str], fields: Fields, columns: Sequence[str] | None) -> Sequence[str]:
    choices = fields if columns is None else (tuple(columns),)
    for choice in choices:
        if set(choice) <= set(names):
            return choice
    expected = " or ".join(" and ".join(map(repr, choice)) for choice in choices)
    raise ValueError(f"the data has no columns {expected} (text_columns); its columns are {', '.join(map(str, names))}")
