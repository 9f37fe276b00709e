"""Files: checks of a path, text read line by line, files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
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

    Raises what `check_file` does, and ValueError naming line and byte where the file is not UTF-8.
    """
    check_file(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield iter(file)
        except UnicodeDecodeError as error:
            with open(path, "rb") as binary:
                for _ in decoded_lines(binary, path):  # the error above counts bytes from the begin of a chunk
                    pass
            raise ValueError(f"{path} is not UTF-8: {error}") from None


def decoded_lines(file: Iterable[bytes], where: object) -> Iterator[str]:
    """The lines of UTF-8 bytes with their line ends; a byte order mark is skipped.

    where    the bytes' source, for errors. Raises ValueError naming line and byte.
    """
    position = 0
    for number, line in enumerate(file, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}:{number}: byte 0x{line[error.start]:02x} at position {position + error.start} is not UTF-8; "
                "save the text as UTF-8"
            ) from None
        position += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def check_json_lines(path: Path) -> None:
    """Raise ValueError where a file is a JSON array or indented JSON instead of one object a line."""
    with open(path, "rb") as file:
        numbered = ((number, line.removeprefix(b"\xef\xbb\xbf").strip()) for number, line in enumerate(file, 1))
        line_number, start = next((pair for pair in numbered if pair[1]), (1, b""))
    if start.startswith(b"["):
        kind, convert = "a JSON array", "jq -c '.[]'"
    elif start.startswith(b"{") and start.endswith((b"{", b"[", b",")):
        kind, convert = "indented JSON", "jq -c ."
    else:
        return
    raise ValueError(
        f"{path}:{line_number}: expected JSON lines (one object a line), found {kind}; convert it, as `{convert}` does"
    )


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
