"""Lines of text that commands read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from bertnli.cli.options import STDIN
from bertnli.data.files import decoded_lines


@contextmanager
def open_input(path: Path) -> Iterator[tuple[Iterator[str], str]]:
    """The lines of a file, or of standard input for -, and its name for errors. They are UTF-8 in every locale."""
    if path != STDIN:
        with open(path, "rb") as file:
            yield decoded_lines(file, path), str(path)
        return
    if sys.stdin.isatty():
        print("bertnli: reading standard input, a line at a time; Ctrl-D ends it", file=sys.stderr)
    with open(sys.stdin.fileno(), "rb", closefd=False) as file:
        yield decoded_lines(file, "standard input"), "standard input"


def lines_at_a_time(args: SimpleNamespace) -> int:
    """How many lines of --input to read before they are answered: one of somebody who types them."""
    return 1 if args.input == STDIN and sys.stdin.isatty() else int(args.batch_size)


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line of a file, or of standard input for -, and its place for errors. Raises ValueError for an empty one."""
    with open_input(path) as (lines, name):
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if not text.strip():
                raise ValueError(f"{name}:{number}: the line is empty; expected a text")
            yield text, f"{name}:{number}"
