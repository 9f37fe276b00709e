"""Data in memory to examples of a task: lists, frames, Arrow tables, datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bertnli.data.conll import WordData
from bertnli.data.labels import is_null, label_indices
from bertnli.data.squad import QuestionData, answer_spans
from bertnli.data.tables import text_data
from bertnli.tasks.base import Head
from bertnli.tasks.load import Examples

_LABEL_COLUMNS = {"tagging": "tags", "qa": "answers"}  # of others: "label"


def parts_of(examples: Any, model: Head, columns: Sequence[str] | None = None) -> list[Sequence[Any]]:
    """The parts of unlabelled examples, as `predict` takes them: [texts], [premises, hypotheses], [sentences of words],
    or [questions, contexts].

    examples    a text, a list of texts, of tuples of parts or of dicts, or a table with named columns (a pandas or
                polars frame, an Arrow table, a `datasets.Dataset`, a dict of lists)
    columns     of the parts, by name (default: the names in `model.fields`)

    Raises ValueError for examples of different numbers of parts, and naming the columns if these are not there.
    """
    if isinstance(examples, str):
        return [[examples]]
    if (names := _column_names(examples)) is not None:
        return [_column(examples, name) for name in _text_columns(names, model, columns)]
    rows = list(examples)
    if rows and isinstance(rows[0], Mapping):
        return [_values(rows, name) for name in _text_columns(list(rows[0]), model, columns)]
    if not rows or model.fields == (("words",),) or isinstance(rows[0], str):
        return [rows]
    _check_lengths(rows, len(rows[0]))
    return list(zip(*rows, strict=True))


def to_examples(
    data: Any,
    model: Head,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    separator: str = ",",
) -> Examples:
    """Labelled examples for `model.encode`.

    data            a list of tuples (the parts, then the label) or of dicts, or a table as in `parts_of`
    label_column    by name (default: "label"; "tags" for tagging, "answers" for question answering)
    separator       multilabel: text between the classes of an example, where they are no list

    A label is a class name, or an index into the model's classes; in a `datasets.Dataset` that names its classes, an
    index into these. Rows without a label (None, NaN, "", "-", -1) are dropped and counted. Answers are as in the
    `squad` dataset, {"text": [...], "answer_start": [...]}, or as in SQuAD's files; None is no answer.
    """
    label = label_column or _LABEL_COLUMNS.get(model.task, "label")
    names = _column_names(data)
    if names is None:
        rows = list(data)
        if rows and isinstance(rows[0], Mapping):
            names = list(rows[0])
            data = {name: _values(rows, name) for name in names}
        else:
            names = [*(next((f for f in model.fields if rows and len(f) == len(rows[0]) - 1), model.fields[0])), label]
            _check_lengths(rows, len(names))
            data = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns = _text_columns(names, model, columns)
    if label not in names:
        raise ValueError(f"the data has no column {label!r}; its columns are {', '.join(map(str, names))}")
    parts, labels = [_column(data, name) for name in columns], _column(data, label)
    if model.task == "tagging":
        return _word_data(parts[0], labels, _label_names(model))
    if model.task == "qa":
        answers = [
            answer_spans(answer, f"data:{number}: {label}", context)
            for number, (answer, context) in enumerate(zip(labels, parts[1], strict=True), 1)
        ]
        ids = [str(i) for i in range(len(answers))]
        return QuestionData(parts[0], parts[1], answers, ids, ids)
    several = model.task == "multilabel"
    feature = getattr(data, "features", {}).get(label)
    if (dataset_names := getattr(getattr(feature, "feature", feature), "names", None)) is None:
        pass
    elif several:
        labels = [None if is_null(row) else [dataset_names[int(i)] for i in row] for row in labels]
    else:
        labels = [None if is_null(i) or i < 0 else dataset_names[int(i)] for i in labels]
    numbered = enumerate(map(list, zip(*parts, labels, strict=True)), 1)
    between, real = separator if several else None, model.task == "regression"
    return text_data("data", numbered, columns, label, _label_names(model), real=real, separator=between)


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
    """The names of a table's columns; None if `data` is no table."""
    names = getattr(data, "column_names", None)
    if names is None:
        names = data.keys() if isinstance(data, Mapping) else getattr(data, "columns", None)
    return None if names is None else list(names)


def _text_columns(names: list[str], model: Head, columns: Sequence[str] | None) -> Sequence[str]:
    choices = model.fields if columns is None else (tuple(columns),)
    for choice in choices:
        if set(choice) <= set(names):
            return choice
    expected = " or ".join(" and ".join(map(repr, choice)) for choice in choices)
    raise ValueError(f"the data has no columns {expected} (text_columns); its columns are {', '.join(map(str, names))}")


def _column(data: Any, name: str) -> list[Any]:
    values = data[name]
    convert = getattr(values, "to_pylist", None) or getattr(values, "to_list", None)
    return list(values) if convert is None else list(convert())
