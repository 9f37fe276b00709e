"""Columns read from Arrow's buffers: equal to Python's objects of any library; broken buffers are refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertnli import _text
from bertnli.data.columns import Column, arrow_column, column_of

TEXTS = st.lists(st.none() | st.text(max_size=20), max_size=12)
STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.uint32(), pa.large_string()),
]


def values(column: Column | None) -> list[str | None]:
    assert column is not None
    nulls = np.zeros(len(column)) if column.kinds is None else column.kinds == 1
    return [None if null else text for text, null in zip(column.texts, nulls, strict=True)]


def encoded(text: str) -> bool:
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.sampled_from(STRINGS), st.data())
def test_texts(first: list[str | None], second: list[str | None], kind: Any, data: st.DataObject) -> None:
    """Chunked, sliced, with nulls, of every type of text."""
    parts = [[t for t in part if t is None or encoded(t)] for part in (first, second)]
    cuts = [data.draw(st.integers(0, len(part))) for part in parts]
    column = pa.chunked_array(
        [pa.array(part, pa.string()).cast(kind).slice(cut) for part, cut in zip(parts, cuts, strict=True)], kind
    )
    assert values(arrow_column(column)) == [t for part, cut in zip(parts, cuts, strict=True) for t in part[cut:]]
    for chunk in column.chunks:  # __arrow_c_array__
        assert values(arrow_column(chunk)) == chunk.to_pylist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, -5], pa.int8()),
        pa.array([2**64 - 1, 0], pa.uint64()),
        pa.array([0.1, float("nan"), 1.0, float("-inf"), None], pa.float64()),
        pa.array([0.1, 2.0], pa.float32()),
        pa.array([np.float16(x) for x in (0.1, -0.0, 6e-8, 65504, float("inf"), float("nan"))] + [None], pa.float16()),
        pa.array([Decimal(x) for x in ("0.05", "-1.50", "0", "99999.99")] + [None], pa.decimal128(7, 2)),
        pa.array([Decimal(10**38 - 1), Decimal(1 - 10**38)], pa.decimal128(38, 0)),
        pa.array([Decimal("-0.0001"), Decimal("0.1")], pa.decimal32(5, 4)),
        pa.array([Decimal("-12.5"), Decimal("10")], pa.decimal64(18, 1)),
        pa.array([Decimal("1e-38"), None], pa.decimal128(38, 38)),
        pa.array([True, False, None]),
        pa.array([None, None], pa.null()),
        pa.array([3, 3, None]).dictionary_encode(),
        polars.Series([1, 2, None]),
        polars.Series(["a", None]).cast(polars.Categorical),
        pandas.Series(["a", "b"], index=[7, 7], dtype="string[pyarrow]"),
        pandas.Series([1.5, None], index=["x", "y"]),
    ],
)  # fmt: skip
def test_labels_as_python_has_them(column: Any) -> None:
    found = arrow_column(column)
    assert found is not None
    expected = column_of(column.to_pylist() if hasattr(column, "to_pylist") else column.to_list(), "data")
    pairs = [tuple(c.label(i) for c in (found, expected)) for i in range(len(expected))]
    assert all(a == b or float(a) == float(b) for a, b in pairs), pairs
    assert len(found) == len(expected)


def test_other_types_are_left_to_python() -> None:
    for column in (
        pa.array([["a"]]),
        pa.array([{"a": 1}]),
        pa.array([b"a"]),
        pa.array([1], pa.timestamp("s")),
        pa.array([Decimal(1)], pa.decimal256(50, 0)),
        pa.array([Decimal(100)], pa.decimal128(5, -2)),
        [1],
        "a",
    ):
        assert arrow_column(column) is None
    assert arrow_column(pandas.Series(["a", 1])) is None


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_of_one_array_are_not_copied(kind: Any) -> None:
    """The bytes are Arrow's own, read-only, and live as long as the texts."""
    made = ["a", "é" * 1000, "b"]
    array = pa.array(["no", *made, None], kind).slice(1)
    for column in (array, pa.chunked_array([array]), pa.chunked_array([[], array], kind)):
        found = column_of(column, "data").texts
        assert found.arena.ctypes.data == array.buffers()[2].address + 2
        assert not found.arena.flags.writeable
    allocated = pa.total_allocated_bytes()
    del array, column
    assert list(found) == [*made, ""]
    assert pa.total_allocated_bytes() > allocated - 1000
    del found
    assert pa.total_allocated_bytes() < allocated - 2000


def offsets(*at: int, kind: Any = np.int32) -> pa.Buffer:
    return pa.py_buffer(np.array(at, kind).tobytes())


HELLO = pa.py_buffer(b"hello w\xc3\xb6rld, and more")


def view(*fields: int) -> pa.Buffer:
    return pa.py_buffer(np.array(fields, np.int32).tobytes())


@pytest.mark.parametrize(
    ("kind", "length", "buffers", "message"),
    [
        (pa.string(), 2, [None, offsets(0, 5, 3), HELLO], "offsets do not rise"),
        (pa.string(), 2, [None, offsets(-4, 5, 7), HELLO], "[Nn]egative"),
        (pa.large_string(), 1, [None, offsets(5, 2**62 - 2**63, kind=np.int64), HELLO], "[Nn]egative"),
        (pa.string(), 2, [None, offsets(0, 8, 9), HELLO], "not UTF-8"),  # within a character
        (pa.string(), 1, [None, offsets(8, 9), HELLO], "not UTF-8"),
        (pa.string_view(), 1, [None, view(13, 0, 1, 0), HELLO], "outside its buffer"),  # no such block
        (pa.string_view(), 1, [None, view(13, 0, -1, 0), HELLO], "outside its buffer"),
        (pa.string_view(), 1, [None, view(13, 0, 0, 15), HELLO], "outside its buffer"),
        (pa.string_view(), 1, [None, view(13, 0, 0, -1), HELLO], "outside its buffer"),
        (pa.string_view(), 1, [None, view(-1, 0, 0, 0), HELLO], "a length is negative"),
    ],
)
def test_hostile_buffers(kind: Any, length: int, buffers: list[Any], message: str) -> None:
    makers: list[Any] = [lambda array: array, lambda array: pa.chunked_array([array] * 2)]
    for make in makers:
        with pytest.raises(ValueError, match=message):
            _text.read_arrow(make(pa.Array.from_buffers(kind, length, buffers)))


def test_hostile_dictionaries_and_capsules() -> None:
    for kind, index in ((pa.int8(), -1), (pa.int8(), 2), (pa.uint64(), 2**63)):
        broken = pa.DictionaryArray.from_arrays(pa.array([0, index], kind), pa.array(["a", "b"]), safe=False)
        with pytest.raises(ValueError, match="not in the dictionary"):
            _text.read_arrow(broken)
    capsule = pa.chunked_array([["a"]]).__arrow_c_stream__()

    class Holder:
        def __arrow_c_stream__(self) -> object:
            return capsule

    class Wrong:
        def __arrow_c_stream__(self) -> object:
            return 3

    assert _text.read_arrow(Holder()) is not None
    with pytest.raises((ValueError, TypeError)):
        _text.read_arrow(Wrong())
