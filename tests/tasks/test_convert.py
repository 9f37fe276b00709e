"""Examples in memory, of every kind that people have, are the same examples."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pandas
import polars
import pyarrow as pa
import pytest
from helpers.tiny_tasks import NAMES, PIECES

from bertnli import BERTClassifier, BERTConfig, BERTModel, WordPieceTokenizer
from bertnli.data.texts import TextData, Texts
from bertnli.tasks.convert import parts_of, to_examples

ROWS: list[dict[str, Any]] = [
    {"premise": "red", "hypothesis": "é 中", "label": "some"},
    {"premise": "", "hypothesis": "blue", "label": "none"},
    {"premise": "one", "hypothesis": "two", "label": None},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
TABLE = pa.table(COLUMNS)
SIZES: dict[str, Any] = dict(num_hiddens=8, ffn_num_hiddens=8, num_heads=2, num_layers=1, max_len=16)
MODEL = BERTClassifier(BERTModel(BERTConfig.original(len(PIECES), **SIZES, pretraining_heads=False)), 2, NAMES)


def generator() -> Iterator[dict[str, Any]]:
    yield from ROWS


KINDS: dict[str, Callable[[], Any]] = {
    "dicts": lambda: ROWS,
    "tuples": lambda: [tuple(row.values()) for row in ROWS],
    "generator": generator,
    "dict of lists": lambda: COLUMNS,
    "pandas": lambda: pandas.DataFrame(COLUMNS, index=[7, 7, 8]),
    "pandas, objects": lambda: pandas.DataFrame(COLUMNS, dtype=object),
    "pandas, Arrow": lambda: TABLE.to_pandas(types_mapper=pandas.ArrowDtype),
    "polars": lambda: polars.DataFrame(COLUMNS),
    "Arrow table": lambda: TABLE,
    "Arrow table, views": lambda: TABLE.cast(pa.schema([(name, pa.string_view()) for name in COLUMNS])),
    "record batch": lambda: TABLE.to_batches()[0],
    "record batches": TABLE.to_reader,
    "Dataset": lambda: datasets.Dataset.from_dict(COLUMNS),
    "Dataset, shuffled twice": lambda: datasets.Dataset.from_dict(COLUMNS).select([2, 1, 0]).select([2, 1, 0]),
    "IterableDataset": lambda: datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_every_kind(kind: str) -> None:
    data = to_examples(KINDS[kind](), MODEL)
    assert isinstance(data, TextData)
    assert (list(data.first), list(data.second or ())) == (["red", ""], ["é 中", "blue"])
    assert (data.labels, data.label_names, data.dropped) == ([1, 0], NAMES, 1)
    if kind == "tuples":
        return
    first, second = parts_of(KINDS[kind](), MODEL)
    assert (list(first), list(second)) == (COLUMNS["premise"], COLUMNS["hypothesis"])
    if kind in ("polars", "record batch", "record batches", "Dataset") or "Arrow" in kind:
        assert isinstance(first, Texts)


def test_values_that_are_no_texts_name_their_row() -> None:
    for values in (["a", None], ["a", 3], [["a"], "b"]):
        frame = {"premise": ["a", "b"], "hypothesis": values, "label": ["none", "some"]}
        for read in (parts_of, to_examples):
            with pytest.raises(ValueError, match=r"data:[12]: hypothesis is .*, not a text"):
                read(frame, MODEL)


def test_what_is_no_collection_of_examples_is_named() -> None:
    for wrong in (5, None):
        with pytest.raises(TypeError, match=rf"data must be a sequence of examples; found {wrong}"):
            to_examples(wrong, MODEL)


def test_class_labels_of_a_dataset() -> None:
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["some", "none"])})  # fmt: skip
    rows = datasets.Dataset.from_dict({**COLUMNS, "label": [0, 1, -1]}, features=features)
    for data in (rows, rows.to_iterable_dataset()):
        examples = to_examples(data, MODEL)
        assert isinstance(examples, TextData)
        assert examples.labels == [1, 0]


def test_columns_and_series_as_texts() -> None:
    tokenizer = WordPieceTokenizer(PIECES)
    expected = tokenizer.encode_pairs(COLUMNS["premise"], COLUMNS["hypothesis"], labels=[1, 0, 1])
    labels = pandas.Series([1, 0, 1], index=["x", "y", "x"])
    for frame in (pandas.DataFrame(COLUMNS, index=[5, 5, 5]), polars.DataFrame(COLUMNS), TABLE, TABLE.to_batches()[0]):
        encoded = tokenizer.encode_pairs(frame["premise"], frame["hypothesis"], labels=labels)
        assert (encoded.ids == expected.ids).all()
        assert encoded.labels is not None
        assert encoded.labels.tolist() == labels.tolist()


def test_dates_are_no_labels() -> None:
    """They were classes named as Python shows them."""
    day = datetime.date(2020, 1, 2)
    for labels in ([day, None], pandas.Series([day, None]), pa.array([day, None]), polars.Series([day, None])):
        with pytest.raises(ValueError, match=r"data:1: label is datetime.*, not a label"):
            to_examples({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": labels}, MODEL)
