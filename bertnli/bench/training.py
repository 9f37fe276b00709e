"""A training step as bertnli takes it, and as PyTorch's modules take it in a plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bertnli.bench.race import Contestant
from bertnli.tasks.base import Head
from bertnli.text.encoded import EncodedTexts
from bertnli.training.optimizer import make_optimizer
from bertnli.training.options import TrainingOptions
from bertnli.training.steps import EagerStep, Objective

_BUCKET = 8  # sequences that a loop with buckets pads together


class PlainLoop:
    """A loop over one model: `forward(index)` gives the logits [B, labels] of the examples `index` [B] of `data`.

    optimizer   default: PyTorch's fused AdamW
    buckets     a step accumulates gradients over groups of similar lengths
    """

    def __init__(
        self,
        model: nn.Module,
        data: EncodedTexts,
        forward: Callable[[Tensor], Tensor],
        precision: str = "fp32",
        optimizer: torch.optim.Optimizer | None = None,
        buckets: bool = False,
    ) -> None:
        self.model, self.data, self.forward, self.precision, self.buckets = model, data, forward, precision, buckets
        self.optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def groups(self, index: Tensor) -> list[Tensor]:
        if not self.buckets:
            return [index]
        return list(torch.split(index[torch.argsort(self.data.lengths[index])], _BUCKET))

    def step(self, index: Tensor) -> None:
        """One training step, dropout and optimizer included."""
        self.model.train()
        labels = self.data.labels
        assert labels is not None
        for group in self.groups(index):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.forward(group)
            (cross_entropy(logits.float(), labels[group], reduction="sum") / len(index)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def logits(self, index: Tensor) -> Tensor:
        """Logits [B, labels] in eval mode and float32; `index` ascends."""
        self.model.eval()
        groups = self.groups(index)
        return torch.cat([self.forward(group).float() for group in groups])[torch.argsort(torch.cat(groups))]


class BertnliLoop(PlainLoop):
    """The steps of `bertnli.fit`, without clipping as in all loops. `end` must be called after the last."""

    def __init__(self, model: Head, data: EncodedTexts, precision: str = "fp32") -> None:
        options = TrainingOptions(batch_size=1 << 20, lr=1e-6, max_grad_norm=None, precision=precision)
        objective = Objective()
        self.training_optimizer = make_optimizer(model, objective, options)
        optimizer = self.training_optimizer.optimizer
        super().__init__(model, data, lambda index: model(data.batch(index)), precision, optimizer)
        self._step = EagerStep(model, objective, data, self.training_optimizer, options)
        self._epoch = self.training_optimizer.epoch()
        self._epoch.__enter__()

    def end(self) -> None:
        self._epoch.__exit__(None, None, None)

    def step(self, index: Tensor) -> None:
        torch.ops.bertnli.keep_memory(True)  # only in this loop's steps
        self.model.train()
        self._step(index)
        torch.ops.bertnli.keep_memory(False)


def contestant(name: str, loop: PlainLoop, batches: Sequence[Tensor]) -> Contestant:
    """`loop` as a contestant that takes a step on the next of `batches` in each call.

    What must agree are the logits of the first 16 examples, in eval mode and float32.
    """
    turn = itertools.cycle(batches)
    sample = batches[0][:16].sort().values
    return Contestant(name, loop.precision, lambda: loop.step(next(turn)), lambda: loop.logits(sample))


def shuffled(data: EncodedTexts, batch: int, count: int) -> list[Tensor]:
    """The first `count` batches of a fixed shuffle, fewer where there are no more."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    return [order[i * batch : (i + 1) * batch] for i in range(min(count, len(order) // batch))]
