"""Bias + activation: `bertnli::bias_act`."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.ops.devices import has_kernel

ACTIVATIONS = ("relu", "gelu", "gelu_tanh")


def check_activation(kind: str) -> None:
    if kind not in ACTIVATIONS:
        raise RuntimeError(f"kind must be 'relu', 'gelu' or 'gelu_tanh'; found {kind!r}")


def bias_act(x: Tensor, bias: Tensor, kind: str) -> Tensor:
    """The activation of x + bias, [T, F]: "relu", "gelu" (exact) or "gelu_tanh" (its approximation by tanh).

    x [T, F], float32, bfloat16 or float64 (slow), the product of a linear layer whose `bias` [F] is left to be added
    here. Differentiable, once, in both. Raises RuntimeError that names the argument which does not fit.
    """
    if not has_kernel(x):
        check_activation(kind)
        x = x + bias.to(x.dtype)
        return F.relu(x) if kind == "relu" else F.gelu(x, approximate="none" if kind == "gelu" else "tanh")
    return cast(Tensor, torch.ops.bertnli.bias_act(x, bias, kind))


def _fake_bias_act(x: Tensor, bias: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape)


torch.library.register_fake("bertnli::bias_act", _fake_bias_act)


def _fake_bias_act_backward(dout: Tensor, x: Tensor, bias: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(bias)


torch.library.register_fake("bertnli::bias_act_backward", _fake_bias_act_backward)
