"""Callbacks that write a run's figures to TensorBoard, Weights & Biases or MLflow, each an extra."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from bertnli.data.extras import from_extra
from bertnli.runtime.distributed import rank_and_size
from bertnli.training.callbacks import Callback, Step
from bertnli.training.history import Evaluation


def tensorboard(folder: str | os.PathLike[str], every: int = 10) -> Callback:
    """Write to a folder that `tensorboard --logdir` shows.

        fit(model, train, dev, callbacks=[bertnli.integrations.tensorboard("runs/log")])

    every   steps between two writes of the training loss and the learning rate; dev figures are all written

    Raises ImportError, naming the extra, where the package is missing.
    """
    if rank_and_size()[0]:
        return Callback()
    with from_extra("tensorboard", "the callback"):
        from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(os.fspath(folder))

    def log(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return _logger(log, every)


def wandb(every: int = 10, **init: Any) -> Callback:
    """Write to the current run of Weights & Biases, or to the one that `wandb.init(**init)` begins.

    Other arguments, and errors: see `tensorboard`.
    """
    if rank_and_size()[0]:
        return Callback()
    with from_extra("wandb", "the callback"):
        import wandb as module
    run = module.run if module.run is not None and not init else module.init(**init)
    return _logger(lambda figures, step: run.log(figures, step=step), every)


def mlflow(every: int = 10, **start_run: Any) -> Callback:
    """Write to the active run of MLflow, or to the one that `mlflow.start_run(**start_run)` begins.

    Other arguments, and errors: see `tensorboard`.
    """
    if rank_and_size()[0]:
        return Callback()
    with from_extra("mlflow", "the callback"):
        import mlflow as module
    active = module.active_run() if not start_run else None
    run_id = (active or module.start_run(**start_run)).info.run_id
    return _logger(lambda figures, step: module.log_metrics(figures, step=step, run_id=run_id), every)


def _logger(log: Callable[[dict[str, float], int], object], every: int) -> Callback:
    """A Callback that logs figures as `log` does, by step."""

    def on_step(step: Step) -> None:
        if step.step % every == 0:
            log({"train/loss": step.loss, "train/lr": step.lr}, step.step)

    def on_eval(evaluation: Evaluation) -> None:
        log({f"dev/{name}": value for name, value in evaluation.figures.items()}, evaluation.step)

    return Callback(on_step=on_step, on_eval=on_eval)
