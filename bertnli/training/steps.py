"""One optimizer step of training: the objective, and two ways to launch a step.

A step is called with the indices of its examples in the training data, int64 [n], and returns a StepResult.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bertnli.inference.predict import check_labels
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket
from bertnli.runtime.distributed import rank_and_size, shard
from bertnli.runtime.precision import autocast
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch, split_batches
from bertnli.text.encoded import EncodedTexts
from bertnli.training.freezing import CachedFeatures
from bertnli.training.optimizer import TrainingOptimizer
from bertnli.training.options import TrainingOptions


@dataclass(frozen=True)
class StepResult:
    """Figures of one step, on the model's device: reading a tensor waits for it.

    loss_sum     float [], the loss summed over this process's targets
    num_targets  number of targets in all processes, at least 1
    weight       what the sum is divided by for the mean loss: the number of targets, or the sum of their weights
    num_correct  int64 [], how many of this process's targets were predicted correctly; None if that is not counted
    """

    loss_sum: Tensor
    num_targets: int
    weight: float
    num_correct: Tensor | None


class Objective(nn.Module):
    """What training minimises: the mean of a loss over targets. This one is the task's own loss, `model.loss`.

    A subclass may replace any method. Its parameters are trained beside the model's.

    uses_example_index  whether batches carry `example_index`, the position of each example in the training data
    settings            plain values that decide the result: a continued run must have the same
    """

    uses_example_index: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}

    def check(self, model: Head, train: EncodedTexts) -> None:
        """Raise ValueError for training data that the objective cannot use."""
        check_labels(train, "train", model)

    def num_targets(self, model: Head, batch: PackedBatch) -> int:
        """How many losses `forward` adds up for a batch, which is on the CPU."""
        return model.num_targets(batch)

    def total_weight(self, model: Head, batch: PackedBatch, num_targets: int) -> float:
        """The sum of the weights of a batch's targets: the mean loss is a weighted one."""
        return num_targets

    def forward(self, model: Head, batch: PackedBatch, features: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The loss [] summed over the batch's targets, and how many were predicted correctly (int64 [], or None).

        features  the encoder's vectors [R, H], if they are known already
        """
        outputs = model(batch) if features is None else model.head(features)
        with autocast(outputs.device, False):
            outputs = at_least_float32(outputs)
            return model.loss(outputs, batch), model.num_correct(outputs.detach(), batch)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _BoundObjective(nn.Module):
    """An objective of one model: the module that DistributedDataParallel wraps."""

    def __init__(self, model: Head, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: PackedBatch, features: Tensor | None) -> tuple[Tensor, Tensor | None]:
        result: tuple[Tensor, Tensor | None] = self.objective(self.model, batch, features)
        return result


class EagerStep:
    """A step over one or more batches (`accumulate`), launched operator by operator.

    Several processes share the step's examples. With `features`, only the head runs: the encoder is frozen.
    """

    def __init__(
        self,
        model: Head,
        objective: Objective,
        train: EncodedTexts,
        optimizer: TrainingOptimizer,
        options: TrainingOptions,
        features: CachedFeatures | None = None,
    ) -> None:
        self.model, self.objective, self.train, self.optimizer = model, objective, train, optimizer
        self.options, self.features, self.lengths = options, features, train.lengths
        self.gather = partial(train.batch, example_index=True) if objective.uses_example_index else train.batch
        self.device = model.encoder.pos_embedding.device
        self.rank, self.num_processes = rank_and_size()
        self.bound: Any = _BoundObjective(model, objective)
        if self.num_processes > 1:
            # Embeddings that do not train have no gradient.
            unused = not (model.config.train_positions and model.config.train_segments)
            self.bound = DistributedDataParallel(self.bound, find_unused_parameters=unused)

    def start_epoch(self) -> None:
        """Called before the first step of each epoch."""

    def __call__(self, examples: Tensor) -> StepResult:
        """Train on these examples. Nothing waits for the device."""
        own = shard(examples, self.lengths, self.rank, self.num_processes)
        parts = split_batches(own, self.lengths, self.options.examples_per_batch, self.options.batch_tokens)
        batches = [self.gather(part) for part in parts]
        counted = batches if self.num_processes == 1 else [self.gather(examples)]
        num_targets, weight = self.count(counted)
        losses, correct = [], []
        for i, (part, batch) in enumerate(zip(parts, batches, strict=True)):
            last = i + 1 == len(batches)
            features = None if self.features is None else self.features.of(part)
            with nullcontext() if last or self.num_processes == 1 else self.bound.no_sync():
                loss, hits = self.backward(batch.to(self.device, non_blocking=True), features, weight)
            if not last:
                self.optimizer.between_batches()
            losses.append(loss)
            correct += [] if hits is None else [hits]
        self.optimizer.clip_and_step()
        return StepResult(_sum(losses), num_targets, weight, _sum(correct) if correct else None)

    def count(self, batches: list[PackedBatch]) -> tuple[int, float]:
        """The number of targets of a step's batches, which are on the CPU, and the sum of their weights."""
        counts = [self.objective.num_targets(self.model, batch) for batch in batches]
        weights = map(self.objective.total_weight, [self.model] * len(batches), batches, counts)
        return max(1, sum(counts)), sum(weights) or 1

    def backward(
        self, batch: PackedBatch, features: Tensor | None, weight: float | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Add a batch's part of the gradient of the loss's sum over `weight`; what the objective gives."""
        self.optimizer.before_forward(batch)
        with self.optimizer.autocast():
            loss, correct = self.bound(batch, features)
        # DistributedDataParallel divides by the number of processes.
        (loss * self.num_processes / weight).backward()
        return loss.detach(), correct


def _sum(tensors: list[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0])


class GraphStep(EagerStep):
    """A step over one batch, launched as a CUDA graph: one for each of the few sizes that batches are padded to."""

    captured: CapturedSteps
    captured_state: tuple[list[int], list[float]] | None = None

    def start_epoch(self) -> None:
        """Capture anew what a graph repeats, if it has changed: the parameters' addresses, and dropout rates."""
        dropouts = [m.p for m in self.bound.modules() if isinstance(m, nn.Dropout)]
        state = [p.data_ptr() for p in self.bound.parameters()], dropouts
        if state != self.captured_state:
            self.captured, self.captured_state = CapturedSteps(self._run, self.device), state

    def __call__(self, examples: Tensor) -> StepResult:
        batch = self.gather(examples)
        num_targets, weight = self.count([batch])
        assert self.model.ignored is not None
        loss, *correct = self.captured(pad_to_bucket(batch, self.model.ignored, self.model.config.max_len), weight)
        return StepResult(loss, num_targets, weight, correct[0] if correct else None)

    def _run(self, batch: PackedBatch, weight: Tensor) -> tuple[Tensor, ...]:
        self.optimizer.zero_grad()  # a capture that failed may have left gradients
        loss, correct = self.backward(batch, None, weight)
        self.optimizer.clip_and_step()
        return (loss,) if correct is None else (loss, correct)
