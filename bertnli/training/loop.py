"""Fine-tuning: the training loop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertnli.inference.predict import NotFiniteError, check_labels, evaluate
from bertnli.runtime.cuda_graphs import use_cuda_graphs
from bertnli.runtime.distributed import all_reduce_sum, broadcast_from_rank_0, rank_and_size
from bertnli.runtime.memory import flush_denormals, reuse_memory
from bertnli.runtime.random_numbers import RandomNumbers, random_numbers
from bertnli.tasks.base import Head, check_head
from bertnli.text.batch import split_batches
from bertnli.text.encoded import Encoded, EncodedTexts, encoded_texts
from bertnli.training.freezing import cached_features, freeze, restored_after_training
from bertnli.training.history import Epoch, EpochProgress, History
from bertnli.training.optimizer import TrainingOptimizer, make_optimizer
from bertnli.training.options import TrainingOptions
from bertnli.training.resume import claimed, read_state, restore_state, run_key, write_state
from bertnli.training.schedule import linear_schedule
from bertnli.training.steps import EagerStep, GraphStep, Objective, StepResult


def fit(
    model: Head,
    train: Encoded,
    dev: Encoded | None = None,
    options: TrainingOptions | None = None,
    *,
    objective: Objective | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    state_file: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    **changes: Any,
) -> History:
    """Fine-tune `model`, a head of any task, on labelled examples, in place.

    train, dev  what the head's `encode` gives, with labels, or a Subset of it; `dev` is evaluated after each epoch
    options     see TrainingOptions; each can also be given by keyword: `fit(model, train, epochs=2, lr=3e-5)`
    objective   what is minimised (default: the task's loss)
    device      where to train (default: where the model is)
    progress    show progress on standard error: a bar in a terminal or notebook, else a line every half minute or more
    state_file  file for the run's state, written after each epoch. If it holds the state of an interrupted run of the
                same options, model and data, that run is continued. Remove it once the result is saved
    on_epoch    called with the figures of each epoch

    Equal seeds give equal runs (on a GPU up to rounding, unless torch.use_deterministic_algorithms is on), also of
    several threads at once: runs on a GPU, and those of custom heads, wait for each other, since they share torch's
    generators. The model ends in eval mode. `requires_grad` and torch's random generators stay as they were.

    If every process of a torch.distributed group calls it, each step's examples are shared among them (see
    runtime/distributed.py). All end with equal weights; the first writes `state_file` and shows progress.

    Raises ValueError for labels that the model cannot have, for sequences longer than the model's `max_len`, for
    options out of range, for the state file of another run, and if the loss becomes NaN or infinite; TypeError for an
    unknown option; BlockingIOError if another run writes `state_file`, OSError if it cannot be written.
    """
    check_head(model)
    options = (options or TrainingOptions()).changed(changes)
    objective = objective or Objective()
    train = encoded_texts(train, "train")
    objective.check(model, train)
    if dev is not None:
        check_labels(encoded_texts(dev, "dev"), "dev", model)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(device)
    objective.to(device)
    run = _Run(model, objective, train, dev, options, None if state_file is None else Path(state_file))
    numbers, restored = random_numbers(device, model, objective), restored_after_training(model, objective)
    with claimed(run.state_file, model), numbers as run.random, flush_denormals(), reuse_memory(), restored:
        run.train(progress, on_epoch)
    if run.best is not None and run.history.best_epoch != len(run.history.epochs):
        model.load_state_dict(run.best)
    dev_sequences = None if dev is None else len(encoded_texts(dev, "dev"))
    model.provenance["run"] = run.history.describe(options, len(train), dev_sequences)
    for name in ("train", "dev"):  # files of an earlier run; the caller knows this run's
        model.provenance.pop(name, None)
    return run.history


class _Run:
    """One call of `fit`. `history` and `best`, the weights of the best epoch, are its results so far."""

    random: RandomNumbers

    def __init__(
        self,
        model: Head,
        objective: Objective,
        train: EncodedTexts,
        dev: Encoded | None,
        options: TrainingOptions,
        state_file: Path | None,
    ) -> None:
        self.model, self.objective, self.options, self.state_file = model, objective, options, state_file
        self.train_data, self.dev_data, self.lengths = train, dev, train.lengths
        dev_texts = None if dev is None else encoded_texts(dev, "dev")
        self.key = {} if state_file is None else run_key(model, objective, options, train, dev_texts)
        self.rank, self.num_processes = rank_and_size()
        self.history = History()
        self.best: dict[str, Tensor] | None = None

    def train(self, progress: bool, on_epoch: Callable[[Epoch], None] | None) -> None:
        """Train for all epochs, or for those that the state file does not have yet."""
        model, options = self.model, self.options
        device = model.encoder.pos_embedding.device
        graphs = use_cuda_graphs(options.cuda_graphs, model, device, self.num_processes, options.accumulate)
        frozen = freeze(model.encoder, options.freeze)
        optimizer = make_optimizer(model, self.objective, options, graphs)
        lr_factor = linear_schedule(sum(len(self.shuffled(epoch)) for epoch in range(options.epochs)), options.warmup)
        self.resume(optimizer)
        history, step = self.history, None
        for epoch in range(len(history.epochs), options.epochs):
            order = self.shuffled(epoch)
            if self.rank:  # the same order, other dropout
                self.random.seed(options.seed * 1_000_003 + epoch + (self.rank << 40))
            model.train()
            for module in frozen:
                module.eval()
            step = step or self.make_step(optimizer, graphs)
            step.start_epoch()
            results: list[StepResult] = []
            started, title = time.perf_counter(), f"epoch {epoch + 1}/{options.epochs}"
            shown = EpochProgress(len(self.train_data), title, self.num_processes, progress and self.rank == 0)
            with shown, optimizer.epoch():
                for examples in order:
                    optimizer.set_lr(options.lr * lr_factor(len(history.losses) + len(results)))
                    results.append(step(examples))
                    if device.type == "cpu" and self.num_processes == 1:  # elsewhere reading the loss would wait
                        self.check_finite([float(results[-1].loss_sum)], len(results))
                    shown.add(len(examples), results)
            self.finish_epoch(results, started, optimizer)
            if on_epoch is not None:
                on_epoch(history.epochs[-1])

    def shuffled(self, epoch: int) -> list[Tensor]:
        """The examples of each step of an epoch, int64. Seeds the generator, so that a continued run draws the same
        numbers as an uninterrupted one."""
        options = self.options
        self.random.seed(options.seed * 1_000_003 + epoch)
        order = self.random.permutation(len(self.train_data))
        batches = split_batches(order, self.lengths, options.examples_per_batch, options.batch_tokens)
        return [torch.cat(batches[i : i + options.accumulate]) for i in range(0, len(batches), options.accumulate)]

    def make_step(self, optimizer: TrainingOptimizer, graphs: bool) -> EagerStep:
        features = cached_features(self.model, self.train_data, self.options)
        parts = self.model, self.objective, self.train_data, optimizer, self.options
        return GraphStep(*parts) if graphs and features is None else EagerStep(*parts, features)

    def finish_epoch(self, results: list[StepResult], started: float, optimizer: TrainingOptimizer) -> None:
        """Evaluate the epoch, and record it in `history`, `best` and the state file."""
        model, options, history = self.model, self.options, self.history
        sums = all_reduce_sum(torch.stack([r.loss_sum for r in results])).tolist()
        counts = [r.num_targets for r in results]
        hits = [r.num_correct for r in results if r.num_correct is not None]
        num_correct = int(all_reduce_sum(torch.stack(hits).sum())) if hits else None
        self.check_finite(sums)
        seconds = time.perf_counter() - started
        history.losses += [loss / count for loss, count in zip(sums, counts, strict=True)]
        figures = self.evaluate()
        epoch = Epoch(
            len(history.epochs) + 1,
            train_loss=sum(sums) / sum(counts),
            train_accuracy=None if num_correct is None else num_correct / sum(counts),
            dev_loss=figures.get("loss"),
            dev_score=None if (score := figures.get(model.metric)) is None else float(score),
            metric=model.metric,
            seconds=seconds,
            pairs_per_second=len(self.train_data) / seconds,
        )
        if history.append(epoch) and options.keep_best and options.epochs > 1:
            self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        if self.state_file is not None and self.rank == 0:
            write_state(self.state_file, self.key, model, self.objective, optimizer, history, self.best)

    def evaluate(self) -> dict[str, Any]:
        """The figures of the dev data in the first process; none without dev data."""
        if self.dev_data is None:
            return {}
        options = self.options
        try:
            figures = evaluate(self.model, self.dev_data, precision=options.precision, cuda_graphs=options.cuda_graphs)
        except NotFiniteError:
            figures = {"loss": math.nan}
        figures = broadcast_from_rank_0(lambda: figures)
        if not math.isfinite(figures["loss"]):
            raise ValueError(self.diverged(f"the dev data after epoch {len(self.history.epochs) + 1}"))
        return figures

    def resume(self, optimizer: TrainingOptimizer) -> None:
        """Continue from the state file, if there is one."""
        if (file := self.state_file) is not None:
            state = broadcast_from_rank_0(lambda: read_state(file, self.key))
            if state is not None:
                self.history, self.best = restore_state(state, self.model, self.objective, optimizer)

    def check_finite(self, losses: list[float], first: int = 1) -> None:
        """Raise ValueError if one of an epoch's losses is not finite; `first` is the number of the first one's step."""
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise ValueError(self.diverged(f"epoch {len(self.history.epochs) + 1}, step {step}"))

    def diverged(self, where: str) -> str:
        file, lr = self.state_file, self.options.lr
        remedy = f"Lower the learning rate (--lr, now {lr})" + (
            f" and remove {file}" if file is not None and file.exists() else ""
        )
        return f"loss became NaN or infinite in {where}: training diverged. {remedy}."
