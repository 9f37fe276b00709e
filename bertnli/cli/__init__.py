"""The `bertnli` command: demo, train, distill, evaluate, predict, export, download."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

import torch

from bertnli.cli.arguments import make_parser
from bertnli.cli.output import claimed_output, is_out_of_memory, what_is_saved
from bertnli.runtime import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 if standard output is closed, 2 for bad input, 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # UTF-8 whatever the locale; in JSON a lone surrogate is an escape
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
    if getattr(arguments, "threads", None) is not None:
        torch.set_num_threads(arguments.threads)
    trains = hasattr(arguments, "resume")
    try:
        with (
            # Other commands may be started by one process of `torchrun`: they do not wait for the others.
            distributed.process_group() if trains else nullcontext(0) as rank,
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere) if rank else nullcontext(),  # the first of several processes prints
            claimed_output(arguments) if hasattr(arguments, "output") else nullcontext(),
        ):
            arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_output()
        return 1
    except KeyboardInterrupt:
        hint = f": {what_is_saved(arguments)}" if trains else ""
        print(f"bertnli: interrupted{hint}", file=sys.stderr)
        return 130
    except (ValueError, OSError, IndexError, KeyError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if is_out_of_memory(error):
            message = (
                f"out of memory: use a smaller --batch-size, --batch-tokens or --max-len ({message or 'no details'})"
            )
        writes = isinstance(error, OSError) and not isinstance(error, BlockingIOError)
        if trains and (is_out_of_memory(error) or (writes and str(arguments.output) in message)):
            message += f"; {what_is_saved(arguments)}"
        print(f"bertnli: error: {' '.join(message.split())}", file=sys.stderr)
        _give_up_output()
        return 2
    return 0


def _give_up_output() -> None:
    """Drop what standard output cannot take, so that Python does not complain again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
