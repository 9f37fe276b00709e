"""Training in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import classifier, pairs

from bertnli import (
    Callback,
    fit,
    ops,
    score,
)


@pytest.fixture
def multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in bfloat16 on every CPU."""
    monkeypatch.setattr(ops, "cpu_multiplies_bf16", lambda: True)


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16_is_near_fp32_and_leaves_float32(original: bool, accumulate: int) -> None:
    """Matrices and activations are bfloat16; the parameters that the optimizer updates stay float32."""
    data, losses = pairs(), []
    for precision in ("fp32", "bf16"):
        net = classifier(original)
        before = dict(net.named_parameters())
        options: dict[str, Any] = dict(
            epochs=4, batch_size=9, accumulate=accumulate, lr=1e-3, precision=precision, progress=False
        )
        losses.append(fit(net, data, **options).losses)
        assert all(p is before[name] and p.dtype == torch.float32 for name, p in net.named_parameters())
        assert not net.encoder.token_embedding.sparse
        with pytest.raises(ZeroDivisionError):
            fit(net, data, **{**options, "callbacks": [Callback(on_epoch=lambda _: 1 // 0)]})
        assert all(p is before[name] for name, p in net.named_parameters())
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1] != losses[0]


def test_whether_this_cpu_multiplies_bf16() -> None:
    found = ops.cpu_multiplies_bf16()
    assert isinstance(found, bool)
    assert found or torch.backends.cpu.get_cpu_capability() != "AVX512"


def test_bf16_on_a_cpu_that_is_slow_at_it_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cpu_multiplies_bf16", lambda: False)
    nets, data = [classifier(), classifier()], pairs(60)
    losses = [
        fit(net, data, epochs=1, precision=precision, progress=False).losses
        for net, precision in zip(nets, ("fp32", "bf16"), strict=True)
    ]
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("multiplies_bf16")
def test_bf16_follows_fp32() -> None:
    data = pairs(300)
    exact, rough = classifier(), classifier()
    wanted = fit(exact, data, epochs=2, batch_size=32, lr=1e-3, progress=False).losses
    losses = fit(rough, data, epochs=2, batch_size=32, lr=1e-3, precision="bf16", progress=False).losses
    assert losses == pytest.approx(wanted, abs=0.03)
    assert losses != wanted
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    torch.testing.assert_close(score(rough, data, precision="bf16"), score(rough, data), atol=0.05, rtol=0.05)
