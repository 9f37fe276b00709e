"""Early stopping, evaluation by steps, weights of classes, schedules, rates by layer, callbacks and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.evaluations import accuracies, pretend
from helpers.tiny_models import classifier, pairs
from helpers.tiny_tasks import PIECES, teacher, words
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from bertnli import Callback, Evaluation, History, WordPieceTokenizer, evaluate, fit
from bertnli.training.callbacks import Step
from bertnli.training.optimizer import make_optimizer
from bertnli.training.options import TrainingOptions
from bertnli.training.schedule import make_schedule
from bertnli.training.steps import Objective


def rates(scheduled: Callable[..., Any], num_steps: int, *arguments: int) -> Iterator[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule = scheduled(optimizer, *arguments)
    for _ in range(num_steps):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("num_steps", "warmup"), [(40, 0.25), (17, 0.06), (5, 0.0), (3, 1.0), (1, 0.5)])
def test_schedules_are_those_of_transformers(num_steps: int, warmup: float) -> None:
    """After the warm-up. Theirs begins with a step of rate 0; this one's with the rate of their second step."""
    rise = int(num_steps * warmup)
    theirs = {
        "linear": rates(get_linear_schedule_with_warmup, num_steps, rise, num_steps),
        "cosine": rates(get_cosine_schedule_with_warmup, num_steps, rise, num_steps),
        "constant": rates(get_constant_schedule_with_warmup, num_steps, rise),
    }
    warming = list(rates(get_constant_schedule_with_warmup, num_steps + 1, rise + 1))[1:]
    for kind, values in theirs.items():
        factor = make_schedule(kind, num_steps, warmup)
        wanted = [*warming[:rise], *list(values)[rise:]]
        assert [factor(step) for step in range(num_steps)] == pytest.approx(wanted, abs=1e-12)


WEIGHTS: list[dict[str, Any]] = [
    {"class_weights": {0: 2.0, "2": 0.25}},
    {"label_smoothing": 0.1},
    {"class_weights": "balanced", "label_smoothing": 0.2, "accumulate": 2},
]


@pytest.mark.parametrize("options", WEIGHTS, ids=str)
def test_weights_of_classes_are_pytorchs(options: dict[str, Any]) -> None:
    """The first step's loss, and by the second's its gradient, in float64."""
    data, net, twin = pairs(33, seed=4), classifier().double(), classifier().double()
    labels = data.labels
    assert labels is not None
    weights = torch.ones(3, dtype=torch.float64)
    if options.get("class_weights") == "balanced":
        weights = 33 / (3 * torch.bincount(labels).double())
    elif "class_weights" in options:
        weights = torch.tensor([2, 1, 0.25], dtype=torch.float64)
    steps: dict[str, Any] = dict(
        batch_size=33 // options.get("accumulate", 1) + 1, epochs=2, lr=1e-2, weight_decay=0, schedule="constant"
    )
    history = fit(net, data, progress=False, **steps, **options)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    for loss in history.losses:
        smoothing = options.get("label_smoothing", 0.0)
        wanted = cross_entropy(twin(data.batch(range(33))), labels, weights, label_smoothing=smoothing)
        assert loss == pytest.approx(wanted.item(), abs=1e-9)
        optimizer.zero_grad()
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
    assert history.epochs[0].train_accuracy is not None
    assert 33 * history.epochs[0].train_accuracy == pytest.approx(round(33 * history.epochs[0].train_accuracy))


def test_weights_of_tags_and_of_names() -> None:
    tokenizer, tagger = WordPieceTokenizer(PIECES), teacher("tagging", dropout=0.0).double()
    data = tagger.encode(tokenizer, words(20))
    labels = data.encoded.labels
    assert labels is not None
    read = labels[labels != -100]
    outputs = tagger.eval()(data.encoded.batch(range(20)))
    wanted = cross_entropy(outputs, read, torch.tensor([1.0, 3.0], dtype=torch.float64))
    options: dict[str, Any] = dict(epochs=1, batch_size=20, lr=0.0, progress=False)
    (loss,) = fit(tagger, data, class_weights={"some": 3.0}, **options).losses
    assert loss == pytest.approx(wanted.item(), abs=1e-12)
    with pytest.raises(ValueError, match="class 'sone' that the model does not have; did you mean 'some'"):
        fit(tagger, data, class_weights={"sone": 3.0}, **options)


def test_weights_are_for_the_tasks_own_loss() -> None:
    with pytest.raises(ValueError, match="label_smoothing changes the loss of a task; an objective has its own"):
        fit(classifier(), pairs(), label_smoothing=0.1, objective=Objective())

    class Other(type(classifier())):  # type: ignore[misc]
        def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            return outputs.sum()

    with pytest.raises(ValueError, match="class_weights is for classification and tagging with their own loss"):
        fit(Other(classifier()), pairs(), class_weights="balanced")


def test_rates_fall_by_layer() -> None:
    net = classifier(original=True)
    optimizer = make_optimizer(net, Objective(), TrainingOptions(layer_decay=0.5))
    optimizer.set_lr(0.8)
    found = {p: group["lr"] for group in optimizer.optimizer.param_groups for p in group["params"]}
    names = dict(net.named_parameters())
    assert len(found) == len(names)
    for name, p in names.items():
        depth = 3 - int(name.split(".")[2]) if ".blks." in name else 4 if name.startswith("encoder.") else 0
        assert found[p] == pytest.approx(0.8 * 0.5**depth), name
    decays = {name: group["weight_decay"] for group in optimizer.optimizer.param_groups for name, p in names.items()
              if any(p is q for q in group["params"])}  # fmt: skip
    assert all((decays[name] == 0) == (name.endswith("bias") or "ln" in name or "norm" in name) for name in names)


def test_evaluation_by_steps_finds_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps an epoch, evaluated after 4, 8, 10, 12, 16, 20: the best is within the second epoch."""
    scores = iter([0.1, 0.2, 0.3, 0.9, 0.5, 0.4])
    states, seen = [], list[Evaluation]()

    def figures(model: Any) -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"loss": 1.0, "accuracy": next(scores)}

    pretend(monkeypatch, figures)
    net = classifier(dropout=0.1)
    options: dict[str, Any] = dict(epochs=2, batch_size=9, lr=1e-3, progress=False)
    history = fit(net, pairs(), pairs(9), eval_steps=4, callbacks=[Callback(on_eval=seen.append)], **options)
    assert [e.step for e in history.evaluations] == [4, 8, 10, 12, 16, 20]
    assert [e.epoch for e in history.evaluations] == [1, 1, 1, 2, 2, 2]
    assert seen == history.evaluations
    assert history.best is not None
    assert history.best.step == 12
    assert all(torch.equal(value, states[3][name]) for name, value in net.state_dict().items())
    assert [e.dev_score for e in history.epochs] == [0.3, 0.4]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_within_an_epoch_is_that_of_the_weights(precision: str) -> None:
    """The lazy optimizer's weights are brought up to date, and trained on."""
    data, dev, found = pairs(), pairs(40, seed=3), []
    net = classifier(dropout=0.1)
    check = Callback(on_eval=lambda e: found.append((e.loss, evaluate(net, dev, precision=precision)["loss"])))
    options: dict[str, Any] = dict(epochs=2, batch_size=9, lr=1e-3, precision=precision, progress=False)
    losses = fit(net, data, dev, eval_steps=3, callbacks=[check], **options).losses
    assert len(found) == 8
    assert all(a == b for a, b in found)
    wanted = fit(classifier(dropout=0.1), data, dev, **options).losses
    assert losses == pytest.approx(wanted, abs=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize(
    ("metric", "scores", "min_delta", "epochs"),
    [
        (None, [0.5, 0.6, 0.6, 0.5, 0.9], 0.0, 4),
        (None, [0.5, 0.55, 0.62, 0.64, 0.7], 0.1, 5),  # better by more than 0.1 in the third epoch
        (None, [0.5, 0.55, 0.6, 0.9, 0.9], 0.1, 3),
        ("loss", [3.0, 2.0, 2.5, 2.1, 1.0], 0.0, 4),
        ("macro_f1", [math.nan, math.nan, 0.3, 0.4, 0.5], 0.0, 2),
    ],
)
def test_early_stopping(
    metric: str | None, scores: list[float], min_delta: float, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(scores if metric in (None, "loss") else [0.0, *scores])  # a named figure is looked up before training
    name = metric or "accuracy"
    pretend(monkeypatch, lambda _: {"loss": 1.0, "accuracy": 0.0} | {name: next(left)})
    options: dict[str, Any] = dict(epochs=5, batch_size=30, patience=2, min_delta=min_delta, progress=False)
    history = fit(classifier(), pairs(), pairs(9), metric=metric, **options)
    assert len(history.epochs) == epochs
    known = [s for s in scores[:epochs] if not math.isnan(s)]
    best = None if not known else min(known) if metric == "loss" else max(known)
    assert (None if history.best is None else history.best.score) == best


def test_early_stopping_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, accuracies([0.5, 0.4, 0.3]))
    options: dict[str, Any] = dict(epochs=5, batch_size=9, eval_steps=4, patience=1, progress=False)
    history = fit(classifier(), pairs(), pairs(9), **options)
    assert (len(history.losses), len(history.epochs)) == (8, 1)
    assert history.epochs[0].dev_score == 0.4


def test_an_unknown_metric_is_named_before_training() -> None:
    trained: list[Step] = []
    callbacks = [Callback(on_step=trained.append)]
    with pytest.raises(ValueError, match=r"no figure metric='macro_f'; did you mean 'macro_f1'\?"):
        fit(classifier(), pairs(), pairs(9), metric="macro_f", progress=False, callbacks=callbacks)
    assert not trained


def test_steps_are_told() -> None:
    steps: list[Step] = []
    options: dict[str, Any] = dict(epochs=2, batch_size=9, lr=1e-3, progress=False)
    history = fit(classifier(), pairs(), callbacks=[Callback(on_step=steps.append)], **options)
    assert [s.step for s in steps] == list(range(1, 21))
    assert [s.epoch for s in steps] == [1] * 10 + [2] * 10
    assert [s.loss for s in steps] == history.losses
    assert steps[1].lr == 1e-3 > steps[2].lr > 0


def test_a_history_is_shown_and_tabulated() -> None:
    history = fit(classifier(), pairs(), pairs(20), epochs=2, progress=False)
    frame = history.to_pandas()
    assert frame.index.name == "epoch"
    assert frame["dev_score"].tolist() == [e.dev_score for e in history.epochs]
    shown = history._repr_html_()
    assert shown.count("<tr>") == 3
    assert f"<td>{history.epochs[1].dev_loss:.4f}</td>" in shown
    assert "no epochs" in History()._repr_html_()
    assert "dev" not in fit(classifier(), pairs(), epochs=1, progress=False)._repr_html_()
