"""The `bertnli` command: demo, train, distill, evaluate, predict, export, download."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

import torch

from bertnli.cli.arguments import make_parser
from bertnli.cli.commands import STATE_FILE
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
        ):
            arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no second complaint at exit
        return 1
    except KeyboardInterrupt:
        hint = ""
        if trains:
            resumable = (arguments.output / STATE_FILE).exists()
            hint = ": continue with --resume" if resumable else " before the first epoch ended"
        print(f"bertnli: interrupted{hint}", file=sys.stderr)
        return 130
    except (ValueError, OSError, IndexError, KeyError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"bertnli: error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    return 0
