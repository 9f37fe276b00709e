"""Files: checks of a path, text read line by line, files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

JSON_LINES = {".jsonl", ".json-lines", ".jsonlines", ".ndjson", ".json"}  # suffixes of files with one object a line


def check_file(path: Path) -> None:
    """Raise IsADirectoryError or FileNotFoundError where `path` is not a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")


@contextmanager
def open_text(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file with their line ends; a byte order mark is skipped.

    Raises what `check_file` does, and ValueError naming the file where it is not UTF-8.
    """
    check_file(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield iter(file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` when the block succeeds, removed when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
