"""Lines of text that commands read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bertnli.cli.options import STDIN
from bertnli.data.files import decoded_lines


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line of a file, or of standard input for -, and its place for errors. Raises ValueError for an empty one."""
    is_stdin = path == STDIN
    name = "standard input" if is_stdin else str(path)
    if is_stdin and sys.stdin.isatty():
        print("bertnli: reading from standard input, one line each", file=sys.stderr)
    with open(sys.stdin.fileno() if is_stdin else path, "rb", closefd=not is_stdin) as file:
        for number, line in enumerate(decoded_lines(file, name), 1):
            text = line.rstrip("\r\n")
            if not text.strip():
                raise ValueError(f"{name}:{number}: the line is empty; expected a text")
            yield text, f"{name}:{number}"
