"""Interrupted runs: what they leave, and how they are continued."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_models import classifier, pairs

from bertnli import (
    BERTClassifier,
    Callback,
    Epoch,
    PackedBatch,
    fit,
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupt_restores_the_model(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = classifier()
    parameters = dict(net.named_parameters())
    units, calls = BERTClassifier.num_targets, []

    def interrupt(self: BERTClassifier, batch: PackedBatch) -> int:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return units(self, batch)

    monkeypatch.setattr(BERTClassifier, "num_targets", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(net, pairs(), epochs=1, batch_size=16, precision=precision, progress=False)
    assert not any(m.training for m in net.modules())
    assert not net.encoder.token_embedding.sparse
    assert all(p is parameters[name] and p.requires_grad for name, p in net.named_parameters())


def test_a_numpy_score_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BERTClassifier, "metrics", lambda *_: {"accuracy": np.float32(0.5)})
    options: dict[str, Any] = dict(batch_size=16, progress=False, state_file=tmp_path / "state.pt")
    history = fit(classifier(), pairs(), pairs(), epochs=1, **options)
    assert type(history.epochs[0].dev_score) is float
    again = fit(classifier(), pairs(), pairs(), epochs=1, **options)
    assert again.losses == history.losses


@pytest.mark.parametrize("batches", [{"batch_size": 16}, {"batch_tokens": 200, "accumulate": 2}], ids=str)
def test_an_interrupted_run_is_continued(tmp_path: Path, batches: dict[str, int]) -> None:
    data, dev = pairs(), pairs(30, seed=5)
    options: dict[str, Any] = dict(epochs=4, lr=1e-3, progress=False, **batches)
    whole = classifier(dropout=0.2)
    wanted = fit(whole, data, dev, **options)
    file = tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stop(e: Epoch) -> None:
        if e.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(classifier(dropout=0.2), data, dev, state_file=file, callbacks=[Callback(on_epoch=stop)], **options)
    assert file.exists()
    with pytest.raises(ValueError, match="other lr; remove it"):
        fit(classifier(dropout=0.2), data, dev, state_file=file, **{**options, "lr": 1.0})
    net = classifier(dropout=0.2, seed=99)
    history = fit(net, data, dev, state_file=file, **options)
    assert history.losses == wanted.losses
    assert [e.dev_score for e in history.epochs] == [e.dev_score for e in wanted.epochs]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in net.state_dict().items())
    assert list(tmp_path.iterdir()) == [file]


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    options: dict[str, Any] = dict(epochs=1, batch_size=16, progress=False, state_file=file)
    fit(classifier(), pairs(), **options)
    done = fit(classifier(), pairs(), **options)
    assert len(done.epochs) == 1
    with pytest.raises(ValueError, match="other train; remove it"):
        fit(classifier(), pairs(seed=9), **options)
    with pytest.raises(ValueError, match="other dev"):
        fit(classifier(), pairs(), pairs(9), **options)
    with pytest.raises(ValueError, match="other model"):
        fit(classifier(dropout=0.1), pairs(), **options)
    for content in (b"junk", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.pt is not the state of a training run"):
            fit(classifier(), pairs(), **options)
    torch.save({"weights": 1}, file)
    with pytest.raises(ValueError, match="is not the state"):
        fit(classifier(), pairs(), **options)


def test_a_state_file_has_one_writer(tmp_path: Path) -> None:
    """The second of two runs at once is refused, whether in this process or in another."""
    file = tmp_path / "state.pt"
    options: dict[str, Any] = dict(epochs=1, batch_size=16, progress=False, state_file=file)

    def again(_: Epoch) -> None:
        with pytest.raises(BlockingIOError, match=rf"state\.pt is in use: process {os.getpid()} writes it"):
            fit(classifier(), pairs(), **options)

    fit(classifier(), pairs(), callbacks=[Callback(on_epoch=again)], **options)
    assert list(tmp_path.iterdir()) == [file]
