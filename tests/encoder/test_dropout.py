"""Dropout of every kind is an nn.Dropout that can be found, set and switched off, as in D2L's own model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bertnli import BERTClassifier, BERTConfig, BERTModel


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(0, 20, (3, 8), generator=torch.Generator().manual_seed(1))
    return tokens, torch.zeros_like(tokens), torch.tensor([8, 5, 2])


def set_p_to_zero(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def set_eval_mode(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()


def replace_by_identity(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("switch_off", [set_p_to_zero, set_eval_mode, replace_by_identity])
def test_dropout_can_be_switched_off(original: bool, switch_off: Callable[[nn.Module], None]) -> None:
    sizes = dict(num_hiddens=8, ffn_num_hiddens=16, num_heads=2, dropout=0.5)
    config = BERTConfig.original(20, **sizes, num_layers=2) if original else BERTConfig(20, **sizes)  # type: ignore[arg-type]
    net = BERTClassifier(BERTModel(config), dropout=0.5).train()
    full, read = net.encoder(*inputs()), net(inputs())
    assert not torch.equal(full, net.encoder(*inputs()))
    assert not torch.equal(read, net(inputs()))
    switch_off(net)
    full, read = net.encoder(*inputs()), net(inputs())
    net.eval()
    torch.testing.assert_close(full, net.encoder(*inputs()))
    torch.testing.assert_close(read, net(inputs()))


def test_another_kind_of_dropout_is_refused() -> None:
    net = BERTModel(BERTConfig(20, num_hiddens=8, num_heads=2))
    attention = net.get_submodule("encoder.blks.0.attention")
    attention.dropout = nn.AlphaDropout(0.1)
    with pytest.raises(TypeError, match=r"nn.Dropout or nn.Identity; found AlphaDropout"):
        net.encoder(*inputs())
