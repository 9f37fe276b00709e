"""Columns of a table as texts in one block of bytes, from a file, from Arrow's buffers, or from Python's objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bertnli import _text
from bertnli.data.labels import is_null, label_text, labels_text
from bertnli.data.texts import Texts

T = TypeVar("T")
Kinds = npt.NDArray[np.uint8]
TEXT, NULL, OTHER = 0, 1, 2


@dataclass(frozen=True)
class Column:
    """N values.

    texts    of each value; of one that is no text as JSON writes it
    kinds    uint8 [N]: TEXT, NULL or OTHER; None if all are texts
    """

    texts: Texts
    kinds: Kinds | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Any) -> Column:
        """The values of a slice, or of a mask."""
        texts = Texts(self.texts.arena, self.texts.starts[rows], self.texts.ends[rows])
        return Column(texts, None if self.kinds is None else self.kinds[rows])

    def first_without_text(self) -> int | None:
        """The first value that is no text."""
        return int(self.kinds.argmax()) if self.kinds is not None and self.kinds.any() else None

    def shown(self, i: int) -> str:
        """A value for an error."""
        kind = TEXT if self.kinds is None else self.kinds[i]
        return "None" if kind == NULL else repr(self.texts[i]) if kind == TEXT else self.texts[i]

    def distinct(self) -> tuple[list[int], npt.NDArray[np.int64]]:
        """The first places of the distinct values, and for each value which of these it is."""
        index, codes = _text.distinct(self.texts.arena, self.texts.starts, self.texts.ends, self.kinds)
        return index.tolist(), codes

    def label(self, i: int, several: bool = False) -> str:
        """A value as a label's text, or as that of several. Raises TypeError for a value that is no label."""
        kind = TEXT if self.kinds is None else self.kinds[i]
        if kind == NULL:
            return ""
        try:
            value = self.texts[i] if kind == TEXT else json.loads(self.texts[i])
        except ValueError:  # what JSON does not have, such as a date
            raise TypeError(f"{self.texts[i]}, not a label") from None
        return labels_text(value) if several else label_text(value)


@dataclass(frozen=True)
class Table:
    """Columns of N values.

    where      the table, for errors
    numbers    int64 [N], of each row: its line in the file, or its place from 1 on
    batch      Arrow's record batch or table of all columns, if the rows are wanted whole
    """

    where: object
    columns: Sequence[Column]
    numbers: npt.NDArray[np.int64]
    batch: Any = None

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, row: int) -> str:
        return f"{self.where}:{self.numbers[row]}"

    @classmethod
    def of(cls, where: object, columns: Sequence[Column]) -> Table:
        return cls(where, columns, np.arange(1, len(columns[0]) + 1))


def columns_from(
    arena: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8] | None
) -> list[Column]:
    """C columns of N values that share a block of bytes.

    bounds    int64 [2, C, N]: where each value begins, and where it ends
    kinds     uint8 [C, N]; None if all are texts
    """
    by_column = [None] * bounds.shape[1] if kinds is None else [kind if kind.any() else None for kind in kinds]
    return [Column(Texts(arena, *ends), kind) for *ends, kind in zip(*bounds, by_column, strict=True)]


def arrow_column(values: Any) -> Column | None:
    """A column of Arrow's, read from its buffers: of pyarrow, polars, or pandas with Arrow's types.

    None for other objects, and for values that are neither texts, numbers nor booleans. Raises ValueError for broken
    buffers.
    """
    if str(getattr(values, "dtype", "")).lower() == "object":  # of pandas and polars
        return None
    if not hasattr(values, "__arrow_c_stream__") and not hasattr(values, "__arrow_c_array__"):
        return None
    try:
        found = _text.read_arrow(values)
    except ImportError:  # pandas without pyarrow
        return None
    return None if found is None else columns_from(*found)[0]


def column_of(values: Any, place: str) -> Column:
    """The values of a sequence, or of one of Arrow's columns.

    place    of the sequence, for errors. Raises ValueError for a lone surrogate, naming its number from 1 on
    """
    try:
        if (column := arrow_column(values)) is not None:
            return column
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    values = as_list(values)
    kinds = [TEXT if isinstance(value, str) else NULL if is_null(value) else OTHER for value in values]
    texts = values
    if any(kinds):
        texts = [value if kind == TEXT else as_json(value) for value, kind in zip(values, kinds, strict=True)]
    try:
        made = Texts.of(texts)
    except ValueError:
        made = Texts.of(texts, [f"{place}:{number}" for number in range(1, len(texts) + 1)])
    return Column(made, np.array(kinds, np.uint8) if any(kinds) else None)


def as_json(value: Any) -> str:
    """A value as JSON writes it; what JSON does not have as Python shows it, which is no JSON."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Number) and not isinstance(value, bool | float):
        return str(value)
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)


def is_column(values: Any) -> bool:
    """Whether it is one column of pandas, polars or Arrow, not a table."""
    kind = type(values)  # asking polars' lazy frame itself for its columns would compute them
    if hasattr(kind, "columns") or hasattr(kind, "column_names"):
        return False
    return hasattr(kind, "to_pylist") or hasattr(kind, "to_list")


def sequence_of(values: Iterable[T]) -> Sequence[T]:
    """Values that can be iterated, as a sequence with a length."""
    return values if isinstance(values, Sequence) else as_list(values)


def as_list(values: Any) -> list[Any]:
    """The values of a column as Python's objects."""
    convert = getattr(values, "to_pylist", None) or getattr(values, "to_list", None)
    return list(values) if convert is None else list(convert())


def texts_of(values: Iterable[str], name: str) -> Texts | None:
    """The texts of one of Arrow's columns; None for other sequences. Raises TypeError for a value that is no text."""
    if (column := arrow_column(values)) is None:
        return None
    if (i := column.first_without_text()) is not None:
        raise TypeError(f"{name}[{i}] must be str, not {column.shown(i)}")
    return column.texts
