"""Fine-tuning: the training loop."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertnli.data.arguments import nearest
from bertnli.inference.predict import NotFiniteError, check_labels, evaluate_outputs
from bertnli.runtime.cuda_graphs import use_cuda_graphs
from bertnli.runtime.distributed import all_gather, all_reduce_sum, broadcast_from_rank_0, rank_and_size
from bertnli.runtime.memory import flush_denormals, reuse_memory
from bertnli.runtime.random_numbers import RandomNumbers, random_numbers
from bertnli.tasks.base import Head, check_head
from bertnli.text.batch import split_batches
from bertnli.text.encoded import Encoded, encoded_texts, without_subset
from bertnli.training.callbacks import Callback, Step
from bertnli.training.class_weights import make_objective
from bertnli.training.freezing import cached_features, freeze, restored_after_training
from bertnli.training.history import Epoch, EpochProgress, Evaluation, History
from bertnli.training.interruption import Interrupted, Interruption
from bertnli.training.optimizer import TrainingOptimizer, make_optimizer
from bertnli.training.options import TrainingOptions
from bertnli.training.resume import (
    SaveTimer,
    claimed,
    pack_results,
    read_state,
    run_key,
    unpack_results,
    write_state,
)
from bertnli.training.schedule import make_schedule
from bertnli.training.steps import EagerStep, GraphStep, Objective, StepResult

_AGREED_EVERY = 16  # steps of several processes between two agreements on whether to save or to end


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
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> History:
    """Fine-tune `model`, a head of any task, on labelled examples, in place.

    train, dev  what the head's `encode` gives, with labels, or a Subset of it; `dev` is evaluated after each epoch
    options     see TrainingOptions; each can also be given by keyword: `fit(model, train, epochs=2, lr=3e-5)`
    objective   what is minimised (default: the task's loss)
    device      where to train (default: where the model is)
    progress    show progress on standard error: a bar in a terminal or notebook, else a line every half minute or more
    state_file  file for the run's state, written after each epoch, every `save_minutes` or `save_steps`, and before
                SIGINT or SIGTERM ends the run. If it holds the state of a run of the same options, model and data, that
                run is continued at its step, also for more `epochs`. Remove it once the result is saved
    callbacks   functions called after steps, evaluations and epochs

    Equal seeds give equal runs (on a GPU up to rounding, unless torch.use_deterministic_algorithms is on), interrupted
    or not, also of several threads at once: runs on a GPU, and those of custom heads, wait for each other, since they
    share torch's generators. The model ends in eval mode. `requires_grad` and torch's generators stay as they were.

    If every process of a torch.distributed group calls it, each step's examples are shared among them (see
    runtime/distributed.py). All end with equal weights; the first writes `state_file` and shows progress.

    Raises ValueError for labels that the model cannot have, for sequences longer than the model's `max_len`, for
    options out of range, for the state file of another run, and if the loss becomes NaN or infinite; TypeError for an
    unknown option; BlockingIOError if another run writes `state_file`, OSError if it cannot be written.
    """
    check_head(model)
    run = _Run(model, train, dev, (options or TrainingOptions()).changed(changes), objective, state_file, callbacks)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(device)
    run.objective.to(device)
    numbers, restored = random_numbers(device, model, run.objective), restored_after_training(model, run.objective)
    watched = nullcontext() if run.state_file is None else run.interruption.watched()
    with watched, claimed(run.state_file, model), numbers as run.random, flush_denormals(), reuse_memory(), restored:
        run.train(progress)
    run.finish()
    return run.history


class _Run:
    """One call of `fit`. Its results so far:

    history   figures of whole epochs, and all evaluations
    results   of the steps of an epoch that is not over
    best      the weights of the best evaluation
    last_dev, best_dev    what `evaluate_outputs` gave in the last and the best evaluation of this process
    """

    random: RandomNumbers
    optimizer: TrainingOptimizer

    def __init__(
        self,
        model: Head,
        train: Encoded,
        dev: Encoded | None,
        options: TrainingOptions,
        objective: Objective | None,
        state_file: str | os.PathLike[str] | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.model, self.options, self.callbacks = model, options, callbacks
        self.train_data, self.dev_data = encoded_texts(train, "train"), without_subset(dev)
        self.dev_texts = None if dev is None else encoded_texts(dev, "dev")
        self.objective = make_objective(model, self.train_data, options, objective)
        self.objective.check(model, self.train_data)
        if self.dev_texts is not None:
            check_labels(self.dev_texts, "dev", model)
        for name in ("metric", "eval_steps", "patience"):
            if dev is None and getattr(options, name) is not None:
                raise ValueError(f"{name}={getattr(options, name)!r} needs dev data")
        self.metric, self.lengths = options.metric or model.metric, self.train_data.lengths
        self.state_file = None if state_file is None else Path(state_file)
        self.key = {}
        if state_file is not None:
            self.key = run_key(model, self.objective, options, self.train_data, self.dev_texts)
        self.rank, self.num_processes = rank_and_size()
        self.interruption, self.timer = Interruption(), SaveTimer(options)
        self.history, self.results, self.frozen = History(), list[StepResult](), list[nn.Module]()
        self.best: dict[str, Tensor] | None = None
        self.last_dev: tuple[dict[str, Any], Tensor] | None = None
        self.best_dev: tuple[dict[str, Any], Tensor] | None = None
        self.random_state: list[Tensor] | None = None  # of the step at which a run is continued
        self.started = 0.0  # on the clock of time.perf_counter, as if the epoch had not been paused since

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return len(self.history.losses) + len(self.results)

    def train(self, progress: bool) -> None:
        """Train for all epochs, or for what the state file does not have yet."""
        model, options, history = self.model, self.options, self.history
        device = model.encoder.pos_embedding.device
        graphs = use_cuda_graphs(options.cuda_graphs, model, device, self.num_processes, options.accumulate)
        self.frozen = freeze(model.encoder, options.freeze)
        self.optimizer = optimizer = make_optimizer(model, self.objective, options, graphs)
        num_steps = sum(len(self.shuffled(epoch)) for epoch in range(options.epochs))
        lr_factor = make_schedule(options.schedule, num_steps, options.warmup)
        self.resume(progress and self.rank == 0)
        self.check_metric()
        on_step = [callback.on_step for callback in self.callbacks if callback.on_step is not None]
        step: EagerStep | None = None
        while len(history.epochs) < options.epochs and (self.results or not self.has_stalled()):
            epoch = len(history.epochs)
            order, results = self.shuffled(epoch), self.results
            self.set_modes()
            step = step or self.make_step(graphs)
            step.start_epoch()
            self.seed_steps(epoch)
            title = f"epoch {epoch + 1}/{options.epochs}"
            shown = EpochProgress(len(self.train_data), title, self.num_processes, progress and self.rank == 0)
            shown.skip(sum(map(len, order[: len(results)])))
            self.started += time.perf_counter()
            with shown, optimizer.epoch():
                for examples in order[len(results) :]:
                    if self.stops_before_step():
                        break
                    lr = options.lr * lr_factor(self.step)
                    optimizer.set_lr(lr)
                    results.append(step(examples))
                    if device.type == "cpu" and self.num_processes == 1:  # elsewhere reading the loss would wait
                        self.check_finite([float(results[-1].loss_sum)], len(results))
                    shown.add(len(examples), results)
                    for call in on_step:
                        call(Step(self.step, epoch + 1, lr, results[-1]))
            self.finish_epoch()

    def shuffled(self, epoch: int) -> list[Tensor]:
        """The examples of each step of an epoch, int64. Seeds the generator, so that a continued run draws the same
        numbers as an uninterrupted one."""
        options = self.options
        self.random.seed(options.seed * 1_000_003 + epoch)
        order = self.random.permutation(len(self.train_data))
        batches = split_batches(order, self.lengths, options.examples_per_batch, options.batch_tokens)
        return [torch.cat(batches[i : i + options.accumulate]) for i in range(0, len(batches), options.accumulate)]

    def seed_steps(self, epoch: int) -> None:
        """Have the epoch's steps draw what they would draw in a run that was not interrupted."""
        if self.random_state is not None:
            self.random.restore(self.random_state)
            self.random_state = None
        elif self.rank:  # the same order, other dropout
            self.random.seed(self.options.seed * 1_000_003 + epoch + (self.rank << 40))

    def set_modes(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    def make_step(self, graphs: bool) -> EagerStep:
        features = cached_features(self.model, self.train_data, self.options)
        parts = self.model, self.objective, self.train_data, self.optimizer, self.options
        return GraphStep(*parts) if graphs and features is None else EagerStep(*parts, features)

    def has_stalled(self) -> bool:
        """Whether training stops early."""
        patience = self.options.patience
        return patience is not None and self.history.stalled(self.options.min_delta) >= patience

    def stops_before_step(self) -> bool:
        """Evaluate and save what is due between two steps; True if training stops early here."""
        paused, eval_steps, stops = time.perf_counter(), self.options.eval_steps, False
        if eval_steps is not None and self.results and self.step % eval_steps == 0 and not self.is_evaluated():
            with self.optimizer.up_to_date():
                self.evaluate()
            self.set_modes()
            stops = self.has_stalled()
        if self.state_file is not None and not stops:
            self.save_if_due()
        self.started += time.perf_counter() - paused
        return stops

    def save_if_due(self) -> None:
        """Write the state if its interval has passed or a signal came, which then ends the run. In several processes
        the first one's clock and signals count."""
        due, signal = self.timer.is_due(self.step), self.interruption.signal
        if self.num_processes > 1:
            if self.step % _AGREED_EVERY and not self.timer.steps_passed(self.step):
                return
            due, signal = broadcast_from_rank_0(lambda: (due, signal))
        if due or signal is not None:
            self.check_finite([float(r.loss_sum) for r in self.results])
            self.save()
        if signal is not None:
            self.interruption.act(signal)

    def finish_epoch(self) -> None:
        """Evaluate the epoch, and record it in `history`, `best` and the state file."""
        results, history = self.results, self.history
        sums = all_reduce_sum(torch.stack([r.loss_sum for r in results])).tolist()
        num_targets = sum(r.num_targets for r in results)
        hits = [r.num_correct for r in results if r.num_correct is not None]
        num_correct = int(all_reduce_sum(torch.stack(hits).sum())) if hits else None
        self.check_finite(sums)
        seconds = time.perf_counter() - self.started
        if self.dev_data is not None and not self.is_evaluated():
            self.evaluate()
        evaluation = history.evaluations[-1] if history.evaluations else None
        epoch = Epoch(
            len(history.epochs) + 1,
            train_loss=sum(sums) / sum(r.weight for r in results),
            train_accuracy=None if num_correct is None else num_correct / num_targets,
            dev_loss=None if evaluation is None else evaluation.loss,
            dev_score=None if evaluation is None or self.metric not in evaluation.figures else evaluation.score,
            metric=self.metric,
            seconds=seconds,
            pairs_per_second=len(self.train_data) / seconds,
        )
        history.losses += [loss / r.weight for loss, r in zip(sums, results, strict=True)]
        history.epochs.append(epoch)
        self.results.clear()
        self.started = 0.0
        if self.state_file is not None:
            self.save()
        for callback in self.callbacks:
            if callback.on_epoch is not None:
                callback.on_epoch(epoch)

    def is_evaluated(self) -> bool:
        """Whether the present weights are."""
        evaluations = self.history.evaluations
        return bool(evaluations) and evaluations[-1].step == self.step

    def evaluate(self) -> None:
        """Evaluate the dev data, record it in `history` and keep the best weights. A signal meanwhile ends the run."""
        history, options = self.history, self.options
        try:
            with self.interruption.at_once() if self.num_processes == 1 else nullcontext():
                figures = self.dev_figures()
        except Interrupted:
            self.save()
            self.interruption.act(self.interruption.signal or 0)
            raise
        score = figures.get(self.metric, math.nan)
        evaluation = Evaluation(self.step, len(history.epochs) + 1, figures["loss"], score, self.metric, figures)
        history.evaluations.append(evaluation)
        if history.best is evaluation:
            self.best_dev = self.last_dev
        if history.best is evaluation and options.keep_best and (options.epochs > 1 or options.eval_steps is not None):
            self.keep_weights()
        for callback in self.callbacks:
            if callback.on_eval is not None:
                callback.on_eval(evaluation)

    def dev_figures(self) -> dict[str, float]:
        """The numbers of `evaluate`, the same in all processes."""
        found: dict[str, Any] = {"loss": math.nan}
        with suppress(NotFiniteError):
            found, _ = self.last_dev = self.evaluate_dev()
        figures = {name: float(value) for name, value in found.items() if isinstance(value, Real)}
        figures = broadcast_from_rank_0(lambda: figures)
        if not math.isfinite(figures["loss"]):
            raise NotFiniteError(self.diverged(f"the dev data after epoch {len(self.history.epochs) + 1}"))
        return figures

    def evaluate_dev(self) -> tuple[dict[str, Any], Tensor]:
        options = self.options
        assert self.dev_data is not None
        return evaluate_outputs(self.model, self.dev_data, precision=options.precision, cuda_graphs=options.cuda_graphs)

    def check_metric(self) -> None:
        """Raise ValueError if there is no figure named `metric`, before training; a custom one takes an evaluation."""
        if self.metric in ("loss", self.model.metric) or self.history.evaluations:
            return
        known = list(self.dev_figures())
        if self.metric not in known:
            hint = nearest(self.metric, known, "figures")
            raise ValueError(f"the dev data have no figure metric={self.metric!r}; {hint}")

    def keep_weights(self) -> None:
        self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def save(self) -> None:
        """Write the state file. It may be read at any step, and writing it changes nothing."""
        assert self.state_file is not None
        local = {"random": self.random.state(), "results": pack_results(self.results)}
        by_rank = all_gather(local) if self.results else []
        if self.rank == 0:
            with self.optimizer.masters():
                state: dict[str, Any] = {"model": self.model.state_dict(), "objective": self.objective.state_dict()}
                state |= {"optimizer": self.optimizer.state_dict(), "best": self.best, "key": self.key}
                seconds = time.perf_counter() - self.started if self.results else 0.0
                state |= {"history": self.history.as_dict(), "by_rank": by_rank, "seconds": seconds}
                write_state(self.state_file, state)
        self.timer.written(self.step)

    def resume(self, tell: bool) -> None:
        """Continue from the state file, if there is one."""
        file = self.state_file
        state = None if file is None else broadcast_from_rank_0(lambda: read_state(file, self.key))
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.history).update(vars(History.from_dict(state["history"])))
        self.best = state["best"]
        done, by_rank = len(self.history.epochs), state["by_rank"]
        if done + bool(by_rank) > self.options.epochs:
            raise ValueError(f"{file} has {done + bool(by_rank)} epochs, more than epochs={self.options.epochs}")
        if by_rank:
            if len(by_rank) != self.num_processes:
                raise ValueError(f"{file} was written within an epoch of {len(by_rank)} processes: start as many again")
            mine = by_rank[self.rank]
            self.results += unpack_results(mine["results"], self.model.encoder.pos_embedding.device)
            self.random_state, self.started = mine["random"], -state["seconds"]
        if self.best is None and self.options.keep_best and self.history.best is not None and self.is_evaluated():
            self.keep_weights()
        self.timer.written(self.step)
        if tell:
            print(f"continuing after step {self.step}, in epoch {done + 1}, from {file}", file=sys.stderr, flush=True)

    def check_finite(self, losses: list[float], first: int = 1) -> None:
        """Raise ValueError if one of an epoch's losses is not finite; `first` is the number of the first one's step."""
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise NotFiniteError(self.diverged(f"epoch {len(self.history.epochs) + 1}, step {step}"))

    def diverged(self, where: str) -> str:
        file, lr = self.state_file, self.options.lr
        remedy = f"Lower the learning rate (--lr, now {lr})" + (
            f" and remove {file}" if file is not None and file.exists() else ""
        )
        return f"loss became NaN or infinite in {where}: training diverged. {remedy}."

    def finish(self) -> None:
        """Load the best weights, let the head choose its decisions, and record the run in the model."""
        model, history, dev = self.model, self.history, self.last_dev
        if self.best is not None and history.best is not history.evaluations[-1]:
            model.load_state_dict(self.best)
            dev = self.best_dev
        if self.dev_data is not None:
            figures, outputs = dev or self.evaluate_dev()
            if type(model).tune is not Head.tune:
                model.tune(outputs, self.dev_data)
                figures |= model.metrics(outputs, self.dev_data)
            history.dev = figures, outputs
        dev_sequences = None if self.dev_texts is None else len(self.dev_texts)
        model.provenance["run"] = history.describe(self.options, len(self.train_data), dev_sequences)
        for name in ("train", "dev"):  # files of an earlier run; the caller knows this run's
            model.provenance.pop(name, None)
