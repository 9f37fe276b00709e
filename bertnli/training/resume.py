"""The state file of a training run: written after and within epochs, read to continue an interrupted run."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertnli.data.files import atomic_path, check_space, writing
from bertnli.data.locks import lock
from bertnli.runtime.distributed import broadcast_from_rank_0
from bertnli.tasks.base import Head
from bertnli.text.encoded import EncodedTexts
from bertnli.training.options import TrainingOptions
from bertnli.training.steps import Objective, StepResult


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number that differs if any of the tensors does, except by a rare chance (CRC-32)."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _fingerprint_of(texts: EncodedTexts | None) -> int | None:
    if texts is None:
        return None
    tensors = (texts.ids, texts.offsets, texts.first_lens, texts.labels)
    return fingerprint(tensor for tensor in tensors if tensor is not None)


def run_key(
    model: Head, objective: Objective, options: TrainingOptions, train: EncodedTexts, dev: EncodedTexts | None
) -> dict[str, Any]:
    """What two runs must have in common for one to continue the other."""
    return options.key() | {
        "model": asdict(model.config),
        "dropout": model.dropout.p,
        "settings": {**model.settings, **objective.settings},
        "train": _fingerprint_of(train),
        "dev": _fingerprint_of(dev),
    }


@contextmanager
def claimed(path: Path | None, model: Head) -> Iterator[None]:
    """Run the block as the only one, of all processes, that writes the state file.

    Raises BlockingIOError naming the process that does, and OSError where the file cannot be written.
    """
    with ExitStack() as stack:

        def claim(path: Path) -> None:
            stack.enter_context(lock(path.with_name(f".{path.name}.lock"), path))
            sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
            check_space(path.parent, sum(size * (3 if trained else 1) for size, trained in sizes))  # with two moments

        if path is not None:
            broadcast_from_rank_0(partial(claim, path))
        yield


def read_state(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The state in the file; None if there is no file. Raises ValueError for the file of another run, or of any other
    kind."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["key"]
    except Exception as error:
        raise ValueError(f"{path} is not the state of a training run; remove it to start anew") from error
    if found != key:
        changed = sorted(name for name in key if found.get(name) != key[name])
        raise ValueError(f"{path} is of a run with other {', '.join(changed)}; remove it to start anew")
    return dict(state)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write all that the rest of the run depends on. The file appears whole or not at all."""
    with atomic_path(path) as temporary, writing(path):
        torch.save(state, temporary)


def pack_results(results: list[StepResult]) -> dict[str, Any]:
    """The results of the steps of an epoch in plain values, of this process."""
    return {
        "loss_sums": torch.stack([r.loss_sum for r in results]).cpu() if results else None,
        "num_correct": [None if r.num_correct is None else int(r.num_correct) for r in results],
        "counts": [(r.num_targets, r.weight) for r in results],
    }


def unpack_results(packed: dict[str, Any], device: torch.device) -> list[StepResult]:
    """What `pack_results` was given."""
    sums = [] if packed["loss_sums"] is None else packed["loss_sums"].to(device).unbind()
    correct = [None if n is None else torch.tensor(n, device=device) for n in packed["num_correct"]]
    return [StepResult(*parts) for parts in zip(sums, *zip(*packed["counts"], strict=True), correct, strict=True)]


class SaveTimer:
    """Says when the state is to be written within an epoch.

    step   the step at which it was last written
    """

    def __init__(self, options: TrainingOptions) -> None:
        self.steps, self.seconds = options.save_steps, 60 * (options.save_minutes or math.inf)
        self.written(0)

    def written(self, step: int) -> None:
        self.step, self.time = step, time.monotonic()

    def steps_passed(self, step: int) -> bool:
        return self.steps is not None and step % self.steps == 0 and step != self.step

    def is_due(self, step: int) -> bool:
        return self.steps_passed(step) or (step != self.step and time.monotonic() - self.time >= self.seconds)
