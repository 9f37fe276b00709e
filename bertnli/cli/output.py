"""The folder that a command writes: who may write it, and what it holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import torch

from bertnli.data.locks import lock
from bertnli.runtime import distributed

FOLDER_WRITERS = ("train", "pretrain", "distill", "tune", "export", "demo")  # commands whose --output is a folder
KEPT_FOLDER = "checkpoints"  # in --output, of --keep
FOLDS_FILE = "folds.jsonl"  # in --output, of --folds
STATE_FILE = "training_state.pt"  # in --output
STUDY_FILE = "study.journal"  # the same of `bertnli tune`
_MODEL_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "pretrained.params")


@contextmanager
def claimed_output(args: SimpleNamespace) -> Iterator[None]:
    """Run a command as the only process (of torchrun's: its first) that writes --output, which it makes.

    Raises BlockingIOError naming the process that writes there, OSError where nothing can be written, and ValueError
    for a folder whose content would be replaced without --overwrite, and for --resume without a run to continue.
    """
    output: Path = args.output
    with ExitStack() as stack:

        def claim() -> None:
            _check_source(args)
            if not output.exists():
                stack.callback(_remove_if_empty, output)
            stack.enter_context(lock(output / ".lock", output))
            _check_content(args)

        distributed.broadcast_from_rank_0(claim)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _is_same_folder(a: Path, b: Path) -> bool:
    return a.is_dir() and b.is_dir() and a.samefile(b)


def _check_source(args: SimpleNamespace) -> None:
    """Raise ValueError if --output is the folder of --model or --teacher, by whatever path, without --overwrite."""
    if getattr(args, "overwrite", False) or (getattr(args, "resume", False) and state_file(args).exists()):
        return
    for option in ("model", "teacher"):
        source = getattr(args, option, None)
        # A name such as bert.small would be looked for in the output's new folder.
        if source and (Path(source).absolute() == args.output.absolute() or _is_same_folder(Path(source), args.output)):
            hint = ", or give --overwrite" if hasattr(args, "overwrite") else ""
            raise ValueError(
                f"--output {args.output} is the folder of --{option}, whose model would be replaced: name another "
                f"folder{hint}"
            )


def _check_content(args: SimpleNamespace) -> None:
    output, state = args.output, state_file(args)
    model = next((output / name for name in _MODEL_FILES if (output / name).exists()), None)
    if not hasattr(args, "resume"):
        if hasattr(args, "pairs") and model is not None and not (output / "corpus").is_dir():
            raise ValueError(f"{model} is a model's, and not a demo's: name another --output")
    elif args.resume and not state.exists():
        raise ValueError(
            f"there is no {state} to resume" + (": the run is done, with --discard-state" if model is not None else "")
        )
    elif not args.resume and not args.overwrite:
        if state.exists() and model is None:
            raise ValueError(
                f"{state} is of an interrupted run: continue it with --resume, or remove it (--overwrite does)"
            )
        if model is not None:
            more = ", or give it more --epochs with --resume" if state.exists() else ""
            raise ValueError(
                f"{model} is another run's: name another --output, or replace its model with --overwrite{more}"
            )


def state_file(args: SimpleNamespace) -> Path:
    """The file that --resume continues from."""
    output: Path = args.output
    return output / (STUDY_FILE if args.command == "tune" else STATE_FILE)


def prepare_state_file(args: SimpleNamespace) -> Path:
    """That file. With --overwrite that of an earlier run is removed, with its checkpoints."""
    state = state_file(args)
    if args.overwrite and not args.resume and distributed.rank_and_size()[0] == 0:
        state.unlink(missing_ok=True)
        shutil.rmtree(args.output / KEPT_FOLDER, ignore_errors=True)
    return state


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def what_is_saved(args: SimpleNamespace) -> str:
    """The end of a message about a training run that has ended early."""
    state = state_file(args)
    if state.exists():
        return f"the run is saved in {state}: continue with --resume"
    return "nothing was saved"
