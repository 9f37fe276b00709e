"""Lines and texts that commands read."""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

from bertnli.cli.options import STDIN
from bertnli.data.files import decoded_lines
from bertnli.data.source import Source
from bertnli.tasks.load import read_texts, text_lines

T = TypeVar("T")
_BLOCK = 1 << 16  # bytes of standard input


@dataclass
class Lines:
    """Lines of text.

    lines         with their ends, in UTF-8 in every locale
    name          of the file, for errors
    is_waiting    whether the next line, or the end, is there without waiting
    """

    lines: Iterator[str]
    name: str
    is_waiting: Callable[[], bool]


@contextmanager
def open_input(path: Path, encoding: str = "utf-8") -> Iterator[Lines]:
    """The lines of a file, or of standard input for -."""
    source = Source(path, encoding)  # checks the encoding
    if path != STDIN:
        yield Lines(decoded_lines(source.lines(), path), str(path), lambda: True)
        return
    if sys.stdin.isatty():
        print("bertnli: reading standard input, a line at a time; Ctrl-D ends it", file=sys.stderr)
    arriving = Arriving(sys.stdin.fileno(), source.encoding)
    yield Lines(decoded_lines(arriving, "standard input"), "standard input", arriving.is_waiting)


class Arriving:
    """The lines of a pipe or a terminal in UTF-8, each as soon as it is there."""

    def __init__(self, handle: int, encoding: str) -> None:
        self.handle = handle
        self.decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
        self.lines: deque[bytes] = deque()
        self.rest, self.ended = b"", False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self.lines and not self.ended:
            self._read()
        if not self.lines:
            raise StopIteration
        return self.lines.popleft()

    def is_waiting(self) -> bool:
        """Whether the next line, or the end, is there."""
        while not self.lines and not self.ended:
            try:
                if not select.select([self.handle], [], [], 0)[0]:
                    return False
            except OSError:  # Windows asks sockets only
                return False
            self._read()
        return True

    def _read(self) -> None:
        block = os.read(self.handle, _BLOCK)
        self.ended = not block
        if self.decoder is not None:
            try:
                block = self.decoder.decode(block, self.ended).encode()
            except UnicodeError as error:
                raise ValueError(f"standard input is not of --encoding: {error}") from None
        *lines, self.rest = (self.rest + block).split(b"\n")
        self.lines.extend(line + b"\n" for line in lines)
        if self.ended and self.rest:
            self.lines.append(self.rest)


def chunks(items: Iterator[T], size: int, is_waiting: Callable[[], bool]) -> Iterator[list[T]]:
    """Lists of at most `size` items, one at least: those that are there without waiting. A ValueError of `items` is
    raised after the items before it."""
    error: ValueError | None = None
    ended = False
    while not ended and error is None:
        chunk: list[T] = []
        try:
            ended = True
            for item in items:
                chunk.append(item)
                if len(chunk) == size or not is_waiting():
                    ended = False
                    break
        except ValueError as found:
            error = found
        if chunk:
            yield chunk
    if error is not None:
        raise error


@contextmanager
def open_texts(path: Path, args: SimpleNamespace) -> Iterator[tuple[Iterator[str], Callable[[], bool]]]:
    """The texts of a table's column, or the lines of a file or of standard input, and whether the next one is there
    without waiting."""
    columns = args.text_columns or ()
    if len(columns) > 1:
        raise ValueError(f"--text-columns {','.join(columns)}: one column was expected")
    source = Source(path, args.encoding, args.delimiter)
    if path != STDIN:
        yield read_texts(source, columns[0] if columns else None), lambda: True
        return
    if columns:
        raise ValueError("--text-columns is for a table in a file: name it by --input")
    with open_input(path, args.encoding) as lines:
        yield (text for text, _ in text_lines(lines.lines, lines.name)), lines.is_waiting
