"""Checks of arguments: each returns the value in the type that is worked with, or names the argument in its error."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def path_of(value: Any, name: str = "path") -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or a pathlib.Path; found {value!r}")
    return Path(value)


def integer(value: Any, name: str) -> int:
    """An integer of 64 bits. numpy's integers are integers; True, 3.0 and "3" are not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an integer; found {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must have 64 bits at most; found {number}")
    return number


def switch(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; found {value!r}")
    return value


def string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str; found {value!r}")
    return value


def items(values: Any, name: str, kind: str = "str") -> Iterable[Any]:
    """`values`, which can be iterated and are not one str. `kind` is for the error."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence of {kind}, not one {type(values).__name__}; put it into a list")
    try:
        iter(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {kind}; found {values!r}") from None
    return values  # type: ignore[no-any-return]


def strings(values: Any, name: str) -> list[str]:
    found = list(items(values, name))
    for i, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{i}] must be a str; found {value!r}")
    return found
