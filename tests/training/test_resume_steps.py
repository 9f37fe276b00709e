"""Runs that are interrupted within an epoch, by an error or a signal, and continued at their step, bit for bit."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import classifier, pairs

from bertnli import BERTClassifier, Callback, History, fit
from bertnli.inference.predict import evaluate_outputs
from bertnli.training import loop
from bertnli.training.callbacks import Step
from bertnli.training.resume import write_state

DATA, DEV = pairs(seed=7), pairs(20, seed=5)  # ten steps of nine pairs an epoch


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """Python's own handling of SIGINT, which a process that a shell started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_step(number: int, act: Callable[[], object]) -> list[Callback]:
    """A callback that acts after this step."""
    return [Callback(on_step=lambda step: act() if step.step == number else None)]


def stop() -> None:
    raise Stop


def run(file: Path | None = None, net: BERTClassifier | None = None, **options: Any) -> tuple[History, dict[str, Any]]:
    """Train for two epochs with dropout; the history and the weights."""
    net = net or classifier(original=True, dropout=0.2)
    options = dict(epochs=2, lr=1e-3, progress=False, state_file=file) | options
    options |= {} if "batch_tokens" in options else {"batch_size": 9}
    history = fit(net, DATA, DEV, **options)
    return history, {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(found: tuple[History, dict[str, Any]], wanted: tuple[History, dict[str, Any]]) -> None:
    (history, weights), (whole, expected) = found, wanted
    assert history.losses == whole.losses
    assert history.evaluations == whole.evaluations
    for epoch, other in zip(history.epochs, whole.epochs, strict=True):
        assert (epoch.train_loss, epoch.train_accuracy) == (other.train_loss, other.train_accuracy)
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "accumulated": {"batch_tokens": 50, "accumulate": 2, "schedule": "cosine"},
    "evaluated": {"eval_steps": 3, "metric": "loss", "label_smoothing": 0.1, "layer_decay": 0.8},
    "frozen": {"freeze": "encoder"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_continued_at_any_step(kind: str, tmp_path: Path) -> None:
    """The state before each step, written every step or only there, is enough for the rest of the run."""
    options, wanted = KINDS[kind], run(**KINDS[kind])
    for number in (2, 4, 10, 13, len(wanted[0].losses)):
        file = tmp_path / f"{number}.pt"
        with pytest.raises(Stop):
            run(file, save_steps=number - 1, callbacks=at_step(number, stop), **options)
        state = torch.load(file, weights_only=True)
        seen = len(state["history"]["losses"]) + sum(len(r["results"]["counts"]) for r in state["by_rank"])
        assert seen == number - 1
        other = classifier(original=True, dropout=0.2, seed=99)
        assert_same(run(file, other, **options), wanted)
        assert list(tmp_path.iterdir()) == [file]
        file.unlink()


def test_writing_the_state_changes_nothing(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        assert_same(run(tmp_path / precision, save_steps=1, precision=precision), run(precision=precision))


def test_the_state_is_written_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes, written = itertools.count(), list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: 60.0 * next(minutes))

    def count(path: Path, state: dict[str, Any]) -> None:
        written.append(sum(len(r["results"]["counts"]) for r in state["by_rank"]))
        write_state(path, state)

    monkeypatch.setattr(loop, "write_state", count)
    run(tmp_path / "state.pt", epochs=1, save_minutes=3)
    assert written == [3, 6, 9, 0]
    written.clear()
    run(tmp_path / "other.pt", epochs=1, save_minutes=0)
    assert written == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_state_is_saved(number: signal.Signals, tmp_path: Path) -> None:
    file, wanted, before = tmp_path / "state.pt", run(), signal.getsignal(number)
    taken: list[int] = []
    kill = at_step(7, lambda: os.kill(os.getpid(), number))
    kill.append(Callback(on_step=lambda step: taken.append(step.step)))
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        run(file, callbacks=kill)
    assert taken[-1] == 7
    assert number == signal.SIGINT or caught.value.args == (128 + number,)
    assert signal.getsignal(number) == before
    assert_same(run(file), wanted)
    assert signal.getsignal(number) == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("options", [{}, {"eval_steps": 4}], ids=str)
def test_a_signal_during_evaluation_acts_at_once(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, wanted = tmp_path / "state.pt", run(**options)

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the evaluation went on")

    monkeypatch.setattr(loop, "evaluate_outputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(file, **options)
    monkeypatch.setattr(loop, "evaluate_outputs", evaluate_outputs)
    taken: list[Step] = []
    assert_same(run(file, callbacks=[Callback(on_step=taken.append)], **options), wanted)
    assert len(taken) == (16 if options else 10)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was ignored")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.pt", callbacks=at_step(3, twice))
    assert not list(tmp_path.iterdir())


def test_another_thread_sets_no_handlers(tmp_path: Path) -> None:
    found: list[tuple[History, dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path / "state.pt", save_steps=4)))
    thread.start()
    thread.join()
    assert_same(found[0], run())


def test_a_finished_run_goes_on_for_more_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is trained at the rates of the longer run; the best weights may be those of the shorter one."""
    file = tmp_path / "state.pt"
    first, _ = run(file, epochs=1)
    history, _ = run(file, epochs=3, progress=True)
    assert "continuing after step 10, in epoch 2, from" in capsys.readouterr().err
    assert history.epochs[0] == first.epochs[0]
    assert len(history.losses) == 30
    assert history.losses[:10] == first.losses
    again, _ = run(file, epochs=3)
    assert again.losses == history.losses
    with pytest.raises(ValueError, match=r"state\.pt has 3 epochs, more than epochs=2"):
        run(file, epochs=2)
