"""What the commands print: figures, epochs, JSON."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from bertnli.data.writers import to_json
from bertnli.training.history import Epoch, Evaluation, History


def print_json(args: SimpleNamespace, record: dict[str, Any]) -> None:
    """With --json, print one line of it to standard output."""
    if args.json:
        print(to_json(record), file=args.stdout, flush=True)


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures of `evaluate`: the numbers in one line, then a line a class or label, then confusions."""
    print(_numbers_of(figures))
    for name, value in figures.items():
        if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
            width = max(map(len, value), default=0)
            for row, cells in value.items():
                print(f"  {row:{width}}  {_numbers_of(cells)}")
        elif isinstance(value, dict):
            print(f"  {name}: {_numbers_of(value)}")
    for name, counts in zip(figures.get("labels", ()), figures.get("confusion", ()), strict=True):
        predicted = ", ".join(f"{n} as {label}" for n, label in zip(counts, figures["labels"], strict=True))
        print(f"  of {name}: {predicted}")


def _numbers_of(figures: dict[str, Any]) -> str:
    numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    return "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())


def _number(value: float | None) -> str:
    """A count as it is, a figure with four decimals."""
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def print_epoch(args: SimpleNamespace, e: Epoch) -> None:
    print_json(args, vars(e))
    accuracy = "" if e.train_accuracy is None else f", train accuracy {e.train_accuracy:.4f}"
    dev = "" if e.dev_score is None else f", dev loss {e.dev_loss:.3f}, dev {e.metric} {_number(e.dev_score)}"
    speed = f"{e.seconds:.1f} s, {e.pairs_per_second:.0f} pairs/s"
    print(f"epoch {e.epoch}: train loss {e.train_loss:.3f}{accuracy}{dev}, {speed}", flush=True)


def print_evaluation(args: SimpleNamespace, e: Evaluation) -> None:
    print_json(args, vars(e))
    print(f"step {e.step}: dev loss {e.loss:.3f}, dev {e.metric} {_number(e.score)}", flush=True)


def print_kept_epoch(history: History) -> None:
    """Say which weights a run with `keep_best` ended with, if they are not the last."""
    best = history.best
    if best is not None and best is not history.evaluations[-1]:
        print(f"kept the weights of epoch {best.epoch}, whose dev {best.metric} is the best: {_number(best.score)}")
