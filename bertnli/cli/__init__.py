"""The `bertnli` command."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import rich_click as click

from bertnli.cli import model_arguments, training_arguments  # noqa: F401  (add their commands)
from bertnli.cli.group import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 if standard output is closed, 2 for bad input, 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # UTF-8 whatever the locale; in JSON a lone surrogate is an escape
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        args = parse(argv)
        if args is None:
            return 0
        from bertnli.cli.dispatch import run  # with torch

        run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_output()
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"bertnli: interrupted{interrupt}", file=sys.stderr)
        return 130
    except click.UsageError as error:
        return _fail(_usage_message(error))
    except (ValueError, OSError, IndexError, KeyError, ImportError, MemoryError) as error:
        return _fail(str(error.args[0] if isinstance(error, KeyError) and error.args else error))
    return 0


def _usage_message(error: click.UsageError) -> str:
    """What is mistyped, with the nearest name, else with the command that lists the names."""
    if near := getattr(error, "possibilities", None):  # of an option or command that there is not; the best first
        return f"{error.message.removesuffix('.')}; did you mean {near[0]}?"
    message = error.format_message().removesuffix(".")
    command = error.ctx.command_path if error.ctx else "bertnli"
    return message if message.endswith("?") else f"{message} (see `{command} --help`)"


def _fail(message: str) -> int:
    print(f"bertnli: error: {' '.join(message.split())}", file=sys.stderr)
    _give_up_output()
    return 2


def _give_up_output() -> None:
    """Drop what standard output cannot take, so that Python does not complain again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
