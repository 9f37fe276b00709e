"""Training runs in threads of one process."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
from helpers.tiny_models import classifier, pairs
from torch import nn

from bertnli import BERTClassifier, Callback, Epoch, fit
from bertnli.runtime.random_numbers import random_numbers
from bertnli.tasks.base import Head

State = dict[str, torch.Tensor]


class Custom(BERTClassifier):
    """A head that might draw from torch's generators."""


def head(kind: type[BERTClassifier], original: bool, seed: int = 0) -> BERTClassifier:
    net = classifier(original, dropout=0.3, seed=seed)
    net.__class__ = kind
    return net


def train(net: Head, seed: int, **more: Any) -> State:
    options: dict[str, Any] = dict(epochs=2, lr=3e-3, batch_size=16, seed=seed, progress=False)
    fit(net, pairs(), pairs(30, seed=5), **{**options, **more})
    return net.state_dict()


def assert_equal(found: State, wanted: State) -> None:
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("original", [False, True], ids=["d2l", "original"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_generator_of_its_own_draws_what_torchs_would(original: bool, precision: str) -> None:
    """Custom heads draw from torch's default generators, which `fit` seeds."""
    own, shared = (train(head(kind, original), 7, precision=precision) for kind in (BERTClassifier, Custom))
    assert_equal(own, shared)


@pytest.mark.parametrize("kind", [BERTClassifier, Custom])
def test_two_runs_at_once(kind: type[BERTClassifier]) -> None:
    """Each gives what it gives alone, while another thread seeds torch's generator and draws from it."""
    wanted = [train(head(kind, True, seed), seed) for seed in range(3)]
    nets = [head(kind, True, seed) for seed in range(3)]
    state = torch.random.get_rng_state()
    done = threading.Event()

    def disturb() -> None:
        while kind is BERTClassifier and not done.is_set():
            torch.manual_seed(3)
            torch.rand(100)

    threads = [threading.Thread(target=train, args=(net, seed)) for seed, net in enumerate(nets)]
    other = threading.Thread(target=disturb)
    for thread in (*threads, other):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    other.join()
    for net, weights in zip(nets, wanted, strict=True):
        assert_equal(net.state_dict(), weights)
    if kind is Custom:
        assert torch.equal(torch.random.get_rng_state(), state)


def test_runs_in_step() -> None:
    """Two runs that wait for each other after each epoch do not deadlock, and give what they give alone."""
    wanted = [train(head(BERTClassifier, True, seed), seed) for seed in range(2)]
    nets = [head(BERTClassifier, True, seed) for seed in range(2)]
    barrier = threading.Barrier(2, timeout=60)

    def meet(_: Epoch) -> None:
        barrier.wait()

    callbacks = [Callback(on_epoch=meet)]
    threads = [
        threading.Thread(target=train, args=(net, i), kwargs={"callbacks": callbacks}) for i, net in enumerate(nets)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for net, weights in zip(nets, wanted, strict=True):
        assert_equal(net.state_dict(), weights)


def _train_within(net: Head, _: Epoch) -> None:
    train(net, 2, epochs=1)


def test_a_run_within_a_run() -> None:
    for kind in (BERTClassifier, Custom):
        wanted, net, inner = train(head(kind, True), 1), head(kind, True), head(kind, True)
        nested = Callback(on_epoch=partial(_train_within, inner))
        assert_equal(train(net, 1, callbacks=[nested]), wanted)


def test_what_may_draw_uses_torchs_generators() -> None:
    cpu = torch.device("cpu")

    def has_own(net: nn.Module) -> bool:
        with random_numbers(cpu, net) as numbers:
            return numbers.generator is not None

    assert has_own(classifier(True, dropout=0.1))
    assert not has_own(head(Custom, True))
    net = classifier(True, dropout=0.1)
    net.output = nn.Sequential(nn.Dropout(0.5), net.output)  # type: ignore[assignment]
    assert not has_own(net)
    net = classifier(True, dropout=0.1)
    net.hidden.register_forward_hook(lambda *_: None)
    assert not has_own(net)
