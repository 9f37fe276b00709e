"""Every function that takes examples takes them in every form that people have, and gives what it gives of lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import torch
from torch.utils.data import IterableDataset

import bertnli
from bertnli import BERTConfig, BERTModel, Model, TextData, WordPieceTokenizer
from bertnli.data.texts import Texts
from bertnli.tasks.base import HEADS

WORDS = ["red", "green", "blue", "one", "two", "which", "colour", "?", "this", "example", "is", "."]
TOKENIZER = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, *WORDS])
FIRST, SECOND, LABELS = ["red one", "green", "blue two"], ["one", "two red", "blue"], ["a", "b", "a"]
SENTENCES = [text.split() for text in FIRST]
TAGS = [["X"] * len(words) for words in SENTENCES]


def tiny(task: str, *names: str, texts: int | None = None) -> Model:
    torch.manual_seed(0)
    sizes = dict(num_hiddens=16, ffn_num_hiddens=16, num_heads=2, num_layers=2, max_len=64)
    bert = BERTModel(BERTConfig.original(len(TOKENIZER), **sizes, dropout=0.0, pretraining_heads=False))
    head = HEADS[task](bert, len(names), names) if names else HEADS[task](bert)
    if texts is not None:
        head.settings["texts"] = texts
    return Model(head.eval(), TOKENIZER)


SINGLE, PAIRS = tiny("classification", "a", "b", texts=1), tiny("classification", "a", "b", texts=2)
NLI, VECTORS = tiny("classification", "entailment", "neutral", "contradiction"), tiny("embedding")
TAGGER, READER = tiny("tagging", "X", "Y"), tiny("qa")


class Stream(IterableDataset[Any]):
    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


COLUMNS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "generator": lambda x: (value for value in x),
    "numpy": lambda x: np.array([*x, None], object)[:-1],
    "Series": lambda x: pandas.Series(x, index=[7, 7, 3]),
    "Series of objects": lambda x: pandas.Series(x, index=[7, 7, 3], dtype=object),
    "polars": polars.Series,
    "Arrow array": pa.array,
    "Arrow chunks": lambda x: pa.chunked_array([x[:1], x[1:]]),
    "Dataset column": lambda x: datasets.Dataset.from_dict({"x": list(x)})["x"],
    "IterableDataset column": lambda x: datasets.Dataset.from_dict({"x": list(x)}).to_iterable_dataset()["x"],
}
OF_TEXTS: dict[str, Callable[[Any], Any]] = {
    "numpy str": np.array,
    "Series of Arrow": lambda x: pandas.Series(x, index=["a", "b", "b"], dtype=pandas.ArrowDtype(pa.string())),
    "Series of categories": lambda x: pandas.Series(x, index=[7, 7, 3], dtype="category"),
    "Index": pandas.Index,
    "keys": lambda x: dict.fromkeys(x).keys(),
    "Texts": Texts.of,
}
TABLES: dict[str, Callable[[Any], Any]] = {
    "dicts": rows_of,
    "generator of dicts": lambda c: iter(rows_of(c)),
    "dict of lists": dict,
    "pandas": lambda c: pandas.DataFrame(c, index=[5, 5, 6]),
    "polars": polars.DataFrame,
    "polars, lazy": lambda c: polars.DataFrame(c).lazy(),
    "Arrow": pa.table,
    "batch": lambda c: pa.table(c).to_batches()[0],
    "batches": lambda c: pa.table(c).to_reader(),
    "Dataset": datasets.Dataset.from_dict,
    "IterableDataset": lambda c: datasets.Dataset.from_dict(c).to_iterable_dataset(),
    "torch": lambda c: Stream(rows_of(c)),
}
ROWS: dict[str, Callable[[Any], Any]] = {
    "tuples": lambda c: list(zip(*c.values(), strict=True)),
    "generator of tuples": lambda c: zip(*c.values(), strict=True),
    "lists": lambda c: [list(row) for row in zip(*c.values(), strict=True)],
    "torch tuples": lambda c: Stream(list(zip(*c.values(), strict=True))),
}


def numbers(found: Any) -> Any:
    """What can be compared of predictions."""
    if isinstance(found, list) and found and hasattr(found[0], "probabilities"):
        return [p.probabilities[p.label] for p in found]
    if isinstance(found, list) and found and hasattr(found[0], "start"):
        return [answer.start for answer in found]
    return found


def check(call: Callable[..., Any], convert: Callable[[Any], Any], *parts: Any) -> None:
    found, expected = numbers(call(*map(convert, parts))), numbers(call(*parts))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5) if not isinstance(found, list) else (
        found == expected or found == pytest.approx(expected, rel=1e-4)
    )  # fmt: skip


@pytest.mark.parametrize("kind", [*COLUMNS, *OF_TEXTS])
def test_columns_of_texts(kind: str) -> None:
    convert = (COLUMNS | OF_TEXTS)[kind]
    check(SINGLE.predict, convert, FIRST)
    check(SINGLE.score, convert, FIRST)
    for call in (
        PAIRS.predict, PAIRS.score, READER.predict,
        lambda *parts: bertnli.predict(PAIRS.head, TOKENIZER, *parts),
        lambda *parts: bertnli.predict(READER.head, TOKENIZER, *parts),
        lambda *parts: TOKENIZER.encode_pairs(*parts).ids.tolist(),
        lambda a, b: PAIRS.head.encode(TOKENIZER, TextData(a, b, [0, 1, 0])).ids.tolist(),
    ):  # fmt: skip
        check(call, convert, FIRST, SECOND)
    check(VECTORS.encode, convert, FIRST)
    check(lambda texts: NLI.zero_shot(texts, ["red", "one"]), convert, FIRST)
    check(lambda labels: NLI.zero_shot(FIRST, labels), convert, WORDS[:3])
    check(lambda texts: [i for i, _ in PAIRS.rank("red", texts, label="a")], convert, FIRST)
    check(lambda texts: TOKENIZER.encode_texts(texts).ids.tolist(), convert, FIRST)
    check(lambda texts: TOKENIZER.encode_texts_with_offsets(texts).ids.tolist(), convert, FIRST)


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_words_and_labels(kind: str) -> None:
    convert = COLUMNS[kind]
    if kind != "numpy":  # a list of lists is an array of more dimensions
        check(TAGGER.predict, convert, SENTENCES)
        check(lambda words: bertnli.predict(TAGGER.head, TOKENIZER, words), convert, SENTENCES)

    def labels_of(given: Any) -> list[Any]:
        labels = TOKENIZER.encode_texts(FIRST, labels=given).labels
        assert labels is not None
        return labels.tolist()

    check(labels_of, convert, [0, 1, 0])
    check(labels_of, convert, [0.5, 1.5, 2.0])
    check(lambda given: SINGLE.evaluate(TextData(FIRST, None, given, ("a", "b")))["loss"], convert, [0, 1, 0])


@pytest.mark.parametrize("kind", [*TABLES, *ROWS])
def test_tables_and_rows(kind: str) -> None:
    convert = (TABLES | ROWS)[kind]
    pairs = {"premise": FIRST, "hypothesis": SECOND}
    labelled, single = pairs | {"label": LABELS}, {"text": FIRST}
    for call, columns in (
        (PAIRS.predict, pairs), (PAIRS.score, pairs), (SINGLE.predict, single), (VECTORS.encode, single),
        (lambda texts: NLI.zero_shot(texts, ["red", "one"]), single),
        (lambda data: PAIRS.evaluate(data)["loss"], labelled),
        (lambda data: SINGLE.evaluate(data)["loss"], single | {"label": LABELS}),
    ):  # fmt: skip
        check(call, convert, columns)
    model = tiny("classification", "a", "b")
    model.fit(convert(labelled), convert(labelled), epochs=1, progress=False)
    if kind in TABLES:
        check(TAGGER.predict, convert, {"words": SENTENCES})
        check(lambda data: TAGGER.evaluate(data)["loss"], convert, {"words": SENTENCES, "tags": TAGS})
        check(READER.predict, convert, {"question": FIRST, "context": SECOND})


def test_what_is_refused() -> None:
    several = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": FIRST}))
    with pytest.raises(ValueError, match="a dict of data sets: choose one of 'train'"):
        SINGLE.predict(several)
    with pytest.raises(ValueError, match="expected single texts; found examples of 2 parts"):
        VECTORS.encode([("a", "b")])
    for wrong in ([3], pandas.Series([3])):
        with pytest.raises(TypeError, match=r"texts\[0\] must be a str; found 3"):
            VECTORS.encode(wrong)
