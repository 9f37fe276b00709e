"""The bytes of a table's file: compressed or not, in any encoding, a block at a time."""

from __future__ import annotations

import codecs
import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from bertnli.data.arguments import path_of, string
from bertnli.data.extras import from_extra
from bertnli.data.files import JSON_LINES, check_file, decoded_lines, open_text, unchanged

ARROW = {".parquet", ".arrow", ".feather"}  # suffixes of files that pyarrow reads
COMPRESSED = {".gz", ".zst"}
_BLOCK = 1 << 18  # bytes; stays in a core's cache
_BOM = codecs.BOM_UTF8
_LINE_END = re.compile(rb"\r\n|\r|\n")
Block = bytes | memoryview


class Source:
    """A table's file.

    path        .csv, JSON (JSON_LINES), ARROW, or delimited text (any other suffix), each also with .gz or .zst behind
    encoding    of text, by Python's name
    delimiter   of delimited text (default: a comma in .csv, else a tab)
    """

    def __init__(self, path: str | os.PathLike[str], encoding: str = "utf-8", delimiter: str | None = None) -> None:
        self.path = path_of(path)
        suffixes = [suffix.lower() for suffix in self.path.suffixes[-2:]] or [""]
        self.compression = suffixes.pop() if suffixes[-1] in COMPRESSED else None
        self.suffix = suffixes[-1] if suffixes else ""
        try:
            self.encoding = codecs.lookup(string(encoding, "encoding")).name
        except LookupError:
            raise ValueError(f"encoding {encoding!r} is not known to Python; try utf-8, utf-16, latin-1") from None
        self.is_csv = self.suffix == ".csv"
        self.is_json = self.suffix in JSON_LINES
        self.is_arrow = self.suffix in ARROW
        self.delimiter = ("," if self.is_csv else "\t") if delimiter is None else string(delimiter, "delimiter")
        self.is_plain = self.compression is None and self.encoding == "utf-8"  # UTF-8 that needs no decoding
        self.has_quotes: bool | None = None  # whether quotes are read, once that was looked for
        self.json_format: str | None = None  # once that was looked for
        self._content: bytes | None = None  # of a pipe, which can be read once

    @contextmanager
    def blocks(self) -> Iterator[Iterator[Block]]:
        """The file's text in UTF-8, without a byte order mark; a block is valid until the next one.

        Raises what `check_file` does, and ValueError where the file is not of its compression or encoding, and where
        it changes while it is read.
        """
        with self.raw_blocks() as blocks:
            yield _without_mark(blocks if self.encoding in ("utf-8", "utf-8-sig") else self._decoded(blocks))

    @contextmanager
    def raw_blocks(self) -> Iterator[Iterator[Block]]:
        """The file's bytes, decompressed."""
        check_file(self.path)
        if self.compression is not None:
            yield self._decompressed()
            return
        with open(self.path, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                if self._content is None:
                    self._content = file.readall()
                yield iter((self._content,))
                return
            with unchanged(file, self.path):
                yield _read_blocks(file.readinto)

    def size(self) -> int:
        """The bytes of the file if they are as they are in memory, else 0."""
        return os.path.getsize(self.path) if self.is_plain and self.path.is_file() else 0

    def lines(self) -> Iterator[bytes]:
        """The text's lines in UTF-8 with their \\n; of a plain file or pipe each as soon as it is there."""
        if self.is_plain:
            with open(self.path, "rb") as file:
                yield from file
            return
        rest = b""
        with self.blocks() as blocks:
            for block in blocks:
                *whole, rest = (rest + block).split(b"\n")
                yield from (line + b"\n" for line in whole)
        if rest:
            yield rest

    @contextmanager
    def text_lines(self) -> Iterator[Iterator[str]]:
        """The text's lines with their line ends. Raises what `blocks` does, and ValueError where it is not UTF-8."""
        check_file(self.path)
        if self.is_plain:
            with open_text(self.path) as lines:
                yield lines
        else:
            yield decoded_lines(self.lines(), self.path)

    def first_line(self, most: int | None = None) -> tuple[int, bytes]:
        """The first line that is not blank, stripped, and its number; (1, b"") if there is none.

        most    bytes that are enough of it, about (default: all)
        """
        number = 1
        parts: list[bytes] = []
        with self.blocks() as blocks:
            for block in blocks:
                text = bytes(block)
                if not parts:
                    line = text.lstrip()
                    number += len(_LINE_END.findall(text[: len(text) - len(line)]))
                    text = line
                end = _LINE_END.search(text)
                parts += [text[: end.start()]] if end else [text] if text else []
                if end or (most is not None and sum(map(len, parts)) >= most):
                    break
        return (number, b"".join(parts).rstrip()) if parts else (1, b"")

    def _decompressed(self) -> Iterator[Block]:
        try:
            if self.compression == ".gz":
                with gzip.open(self.path) as file:
                    yield from _read_blocks(file.readinto)
            else:
                with import_pyarrow(self.path).input_stream(self.path, compression="zstd") as file:
                    yield from _read_blocks(file.readinto)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.path} is corrupt or not a {self.compression} file: {error}") from None

    def _decoded(self, blocks: Iterable[Block]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self.encoding)()
        try:
            for block in blocks:
                yield decoder.decode(bytes(block)).encode()
            yield decoder.decode(b"", True).encode()
        except UnicodeError as error:
            raise ValueError(f"{self.path} is not {self.encoding}: {error}; name its encoding") from None


def import_pyarrow(path: object) -> Any:
    """The module `pyarrow`, which is slow to import. Raises ImportError naming the extra where it is missing."""
    with from_extra("data", str(path)):
        import pyarrow
    return pyarrow


def _read_blocks(readinto: Callable[[Any], int | None]) -> Iterator[memoryview]:
    block = memoryview(bytearray(_BLOCK))
    while size := readinto(block):
        yield block[:size]


def _without_mark(blocks: Iterator[Block]) -> Iterator[Block]:
    first: Block = b""
    for block in blocks:
        first = bytes(first) + block if first else block
        if len(first) >= len(_BOM):
            break
    yield first[len(_BOM) :] if bytes(first[: len(_BOM)]) == _BOM else first
    yield from blocks
