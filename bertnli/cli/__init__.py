"""The `bertnli` command: demo, train, distill, evaluate, predict, download."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from bertnli.cli.arguments import make_parser
from bertnli.cli.commands import STATE_FILE
from bertnli.runtime import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 if standard output is closed, 2 for bad input, 130 if interrupted."""
    arguments = make_parser().parse_args(argv)
    try:
        with (
            distributed.process_group() as rank,
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
        if hasattr(arguments, "resume"):
            resumable = (arguments.output / STATE_FILE).exists()
            hint = ": continue with --resume" if resumable else " before the first epoch ended"
        print(f"bertnli: interrupted{hint}", file=sys.stderr)
        return 130
    except (ValueError, OSError, IndexError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"bertnli: error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    return 0
