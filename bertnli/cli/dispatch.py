"""Running a command: its processes, threads and output folder, and what is said when it ends early."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from types import SimpleNamespace

import torch

from bertnli.cli.output import FOLDER_WRITERS, claimed_output, is_out_of_memory, what_is_saved
from bertnli.runtime import distributed


def run(args: SimpleNamespace) -> None:
    """Run a command. Its errors of memory and of writing, and KeyboardInterrupt, say what is saved.

    `args.stdout` is for figures: with --json everything else that is printed goes to standard error.
    """
    if getattr(args, "threads", None) is not None:
        torch.set_num_threads(args.threads)
    trains = hasattr(args, "resume")
    try:
        with (
            # Other commands may be started by one process of `torchrun`: they do not wait for the others.
            distributed.process_group() if trains else nullcontext(0) as rank,
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere) if rank else nullcontext(),  # the first of several processes prints
            claimed_output(args) if args.command in FOLDER_WRITERS else nullcontext(),
        ):
            args.stdout = sys.stdout
            with redirect_stdout(sys.stderr) if getattr(args, "json", False) else nullcontext():
                args.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f": {what_is_saved(args)}" if trains else "") from None
    except SystemExit:  # by SIGTERM, which ends other commands at once
        print(f"bertnli: terminated: {what_is_saved(args)}", file=sys.stderr)
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        saved = f"; {what_is_saved(args)}" if trains else ""
        if is_out_of_memory(error):
            what = "out of memory: use a smaller --batch-size, --batch-tokens or --max-len"
            raise MemoryError(f"{what} ({str(error) or 'no details'}){saved}") from error
        is_write = isinstance(error, OSError) and not isinstance(error, (BlockingIOError, BrokenPipeError))
        if is_write and trains and str(args.output) in str(error):
            raise OSError(f"{error}{saved}") from error
        raise
