"""Checks of arguments: each returns the value in the type that is worked with, or names the argument in its error."""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Number = TypeVar("_Number", int, float)


def shown(value: Any) -> str:
    """A value as an error names it: itself, or its type where that takes several lines or more than 200 characters."""
    text = repr(value)
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return text if len(text) <= 200 and "\n" not in text else f"a value of the type {module}{kind.__qualname__}"


def path_of(value: Any, name: str = "path") -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or a pathlib.Path; found {shown(value)}")
    if not os.fspath(value):
        raise ValueError(f"{name} is an empty string")
    return Path(value)


def integer(value: Any, name: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """An integer from `low` to `high`. numpy's integers are integers; True, 3.0 and "3" are not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an integer; found {shown(value)}") from None
    return _between(found, name, low, high)


def positive(value: Any, name: str) -> int:
    return integer(value, name, 1)


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`. numpy's and torch's scalars are numbers; True, NaN and "3" are not."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number; found {shown(value)}") from None
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number; found {shown(value)}")
    return _between(found, name, low, high)


def _between(value: _Number, name: str, low: float, high: float) -> _Number:
    if value < low or value > high:
        limit = f"at least {low}" if value < low else f"at most {high}"
        raise ValueError(f"{name} must be {limit}; found {value}")
    return value


def choice(value: Any, name: str, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; found {shown(value)}")
    return value


def nearest(name: str, known: Sequence[str], kind: str) -> str:
    """The end of an error about a name that is not known: the nearest one, else all of them. `kind`: what they are."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the {kind} are {', '.join(known)}"


def switch(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; found {shown(value)}")
    return value


def string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str; found {shown(value)}")
    return value


def items(values: Any, name: str, kind: str = "str") -> Iterable[Any]:
    """`values`, which can be iterated and are not one str. `kind` is for the error."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence of {kind}, not one {type(values).__name__}; put it into a list")
    try:
        iter(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {kind}; found {shown(values)}") from None
    return values  # type: ignore[no-any-return]


def strings(values: Any, name: str) -> list[str]:
    found = list(items(values, name))
    for i, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{i}] must be a str; found {shown(value)}")
    return found
