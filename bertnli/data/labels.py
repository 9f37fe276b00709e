"""Labels as files have them: which are classes, which are none, and when two are one class."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Number
from typing import Any

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


_FLAGS = {"0", "1", "0.0", "1.0", "False", "True"}


def label_text(value: Any) -> str:
    """A label as a file's text would have it, "" for null. Raises TypeError for what is no str, number or null."""
    if type(value) is not str:
        if is_null(value):
            return ""
        if not isinstance(value, str | Number):
            raise TypeError(f"{value!r}, not a label")
    return str(value).strip()


def labels_text(value: Any) -> str:
    """Several labels as a file's text would have them: a list, also one of numpy, as JSON; others as `label_text`."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return json.dumps(list(value), ensure_ascii=False) if isinstance(value, list | tuple) else label_text(value)


def multi_hot(
    labels: Sequence[str], places: Sequence[str], label_names: Sequence[str] | None, separator: str
) -> tuple[tuple[str, ...], list[list[int]]]:
    """The classes, and for each example a row of 1 for each class that it has, else 0.

    labels        of each example as `labels_text` gives them: JSON lists of names, or of 0 and 1 for every class; or
                  names with `separator` between them
    places        where each of them is ("file:line"), for errors
    label_names   classes (default: the names in the labels, sorted)

    Raises ValueError naming the place for a name that is no class and for a row of another length.
    """
    parsed: dict[str, list[Any]] = {}
    for label, place in zip(labels, places, strict=True):
        if label not in parsed:
            parsed[label] = _names_of(label, separator)
            if not all(isinstance(name, str) for name in parsed[label]) and not set(map(str, parsed[label])) <= _FLAGS:
                raise ValueError(f"{place}: {label} is neither a list of names nor a row of zeros and ones")
    rows = [parsed[label] for label in labels]
    if label_names is None:
        given = {name for row in rows for name in row}
        names = sorted(name for name in given if isinstance(name, str))
        label_names = names or [str(i) for i in range(max(map(len, rows), default=0))]
    index = {name: i for i, name in enumerate(label_names)}
    result = []
    for row, place in zip(rows, places, strict=True):
        if row and not isinstance(row[0], str):
            if len(row) != len(index):
                raise ValueError(f"{place}: {row} is no row of {len(index)} zeros and ones, one a class")
            result.append([int(value) for value in row])
            continue
        if unknown := [name for name in row if name not in index]:
            raise ValueError(f"{place}: unknown label {unknown[0]!r}; expected some of {', '.join(label_names)}")
        result.append([int(name in row) for name in index])
    return tuple(label_names), result


def _names_of(label: str, separator: str) -> list[Any]:
    if label.startswith("["):
        try:
            values = json.loads(label)
        except ValueError:
            pass
        else:
            return [value.strip() if isinstance(value, str) else value for value in values]
    return [name for part in label.split(separator) if (name := part.strip())]


def label_indices(
    labels: Sequence[str], places: Sequence[str], label_names: Sequence[str] | None, by_index: bool = False
) -> tuple[tuple[str, ...], list[int]]:
    """The classes, and the index of each label. Numbers are compared by value.

    places        where each label is ("file:line"), for errors
    label_names   classes (default: the labels, sorted, numbers by value and in their shortest form)
    by_index      whether a label may also be an index (where no class is a number)
    """
    first: dict[str, str] = {}
    for label, place in zip(labels, places, strict=True):
        first.setdefault(label, place)
    names, ids = classes_of(first, label_names, by_index)
    return names, [ids[label] for label in labels]


def classes_of(
    labels: Mapping[str, str], label_names: Sequence[str] | None, by_index: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and the index of each distinct label: see `label_indices`.

    labels    each with its first place
    """
    if label_names is None:
        label_names = sorted({_class_name(label) for label in labels})
        if all(map(NUMBER.fullmatch, label_names)):
            label_names.sort(key=Decimal)
    index = class_index(label_names, by_index)
    ids: dict[str, int] = {}
    for label, place in labels.items():
        found = find_class(index, label)
        if found is None:
            raise ValueError(f"{place}: unknown label {label!r}; expected one of {', '.join(label_names)}")
        ids[label] = found
    return tuple(label_names), ids


def is_null(value: Any) -> bool:
    """Whether a value is None, or what numpy and pandas have for it: NaN, NA and NaT."""
    if isinstance(value, Number):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _number(label: str) -> Decimal | None:
    """The number that a label writes; None for a name."""
    return Decimal(label) if NUMBER.fullmatch(label) else None


def _class_name(label: str) -> str:
    """The label; a number in its shortest form, such as "1" for "1.0"."""
    number = _number(label)
    if number is None:
        return label
    text = f"{abs(number) if number == 0 else number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def class_index(label_names: Sequence[str], by_index: bool = False) -> dict[str | Decimal | None, int]:
    """The index of each class by name and by number; by its index if `by_index` and no class is a number."""
    index: dict[str | Decimal | None, int] = {}
    index |= {number: i for i, name in enumerate(label_names) if (number := _number(name)) is not None}
    if by_index and not index:
        index |= {Decimal(i): i for i in range(len(label_names))}
    return index | {name: i for i, name in enumerate(label_names)}


def find_class(index: dict[str | Decimal | None, int], label: str) -> int | None:
    return index.get(label, index.get(_number(label)))


def is_no_label(label: str, real: bool) -> bool:
    """Whether a label is what the corpora write where there is no gold label."""
    if label in ("", "-") or label.lower() == "nan":
        return True
    return not real and label[0] == "-" and _number(label) == -1


def parse_real(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not a number")
    return value
