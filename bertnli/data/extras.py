"""Packages that only parts of bertnli need, each named by the extra that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(extra: str, purpose: str) -> Iterator[None]:
    """Within it, a package that cannot be imported because it is missing is named with the extra that installs it.

        with from_extra("onnx", "export to ONNX"):
            import onnx

    purpose    what needs the package, the subject of the error's sentence

    Raises ImportError in place of ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{purpose} needs {error.name}: pip install 'bertnli[{extra}]'") from error
