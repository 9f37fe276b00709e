"""Frozen parts: they stay, have no backward pass, and a whole encoder runs once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tiny_models import SIZES, VOCAB, classifier, pairs
from torch import Tensor

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    PackedBatch,
    fit,
)
from bertnli.training import freezing


@pytest.mark.parametrize(("freeze", "depth"), [("embeddings", 0), (0, 0), (1, 1), (2, 2), ("encoder", 3), (3, 3)])
def test_frozen_modules_do_not_change_and_run_in_eval_mode(freeze: str | int, depth: int) -> None:
    net = classifier(dropout=0.5)
    before = copy.deepcopy(net.state_dict())
    fit(net, pairs(), epochs=2, batch_size=16, lr=1e-2, freeze=freeze, progress=False)
    for name, value in net.state_dict().items():
        layer = int(name.split(".")[2]) if name.startswith("encoder.blks") else -1
        frozen = name.startswith("encoder.") and layer < depth
        if not name.endswith("W_k.bias"):  # without influence: it stays anyway, but for rounding
            assert torch.equal(value, before[name]) == frozen, name


def test_frozen_modules_have_no_backward_pass() -> None:
    for freeze, low in ((0, 0), (2, 2), ("embeddings", 0), ("encoder", 3)):
        net = classifier(dropout=0.5)
        seen: list[bool] = []
        for block in net.encoder.blks:
            block.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out.requires_grad))
        fit(net, pairs(16), epochs=1, batch_size=16, freeze=freeze, progress=False)
        assert seen == [False] * low + [True] * (3 - low)


@pytest.mark.parametrize("freeze", ["encoder", 3])
def test_a_wholly_frozen_encoder_runs_once(freeze: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features are the same as when the encoder runs at every step, in eval mode."""
    data = pairs()
    cached, layered, large = (classifier(dropout=0.5) for _ in range(3))
    calls: list[int] = []
    whole = BERTClassifier.features

    def counted(self: BERTClassifier, batch: PackedBatch) -> Tensor:
        calls.append(len(batch))
        return whole(self, batch)

    monkeypatch.setattr(BERTClassifier, "features", counted)
    losses = fit(cached, data, epochs=3, batch_size=16, lr=1e-2, freeze=freeze, progress=False).losses
    assert sum(calls) == len(data)
    # The same by hand: the encoder runs at every step, in eval mode.
    layered.encoder.requires_grad_(False)
    layered.encoder.train = lambda mode=True: layered.encoder  # type: ignore[method-assign]
    layered.encoder.eval()
    for module in layered.encoder.modules():
        module.training = False
    wanted = fit(layered, data, epochs=3, batch_size=16, lr=1e-2, progress=False).losses
    assert sum(calls) > 3 * len(data)
    assert losses == pytest.approx(wanted, abs=1e-5)
    # With too little memory for the features.
    monkeypatch.setattr(freezing, "_MAX_FEATURE_BYTES", len(data) * large.config.num_hiddens * 4 - 1)
    calls.clear()
    losses = fit(large, data, epochs=3, batch_size=16, lr=1e-2, freeze=freeze, progress=False).losses
    assert sum(calls) == 3 * len(data)
    assert losses == pytest.approx(wanted, abs=1e-5)


def test_a_custom_forward_is_called_on_a_frozen_encoder() -> None:
    class Doubled(BERTClassifier):
        def forward(self, inputs: Any) -> torch.Tensor:
            return 2 * super().forward(inputs)

    def losses(kind: type[BERTClassifier]) -> list[float]:
        torch.manual_seed(0)
        net = kind(BERTModel(BERTConfig(VOCAB, dropout=0.0, **SIZES)))
        return fit(net, pairs(), epochs=1, batch_size=16, lr=1e-2, freeze="encoder", progress=False).losses

    twice, once = losses(Doubled), losses(BERTClassifier)
    assert twice[0] != pytest.approx(once[0], abs=1e-4)
