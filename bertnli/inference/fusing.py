"""Which models the fused operator (csrc/ops/encoder.h) can compute in place of their modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertnli.encoder.bert import BERTEncoder
from bertnli.encoder.layers import AddNorm, EncoderBlock, MultiHeadAttention, PositionWiseFFN
from bertnli.tasks.base import Head


class CannotFuse(Exception):
    """The operator does not compute what the modules do; the message names the module in the way."""


def encoder_parameters(model: Head) -> list[Tensor]:
    """The encoder's parameters in the order of csrc/ops/prepacked.h.

    Raises CannotFuse unless `model.features` is the fused operator's result for them, and `model` calls nothing beside
    `features` and `head`.
    """
    if not isinstance(model, Head):
        raise CannotFuse(f"the model is a {type(model).__name__}")
    for name in ("__call__", "forward", "features"):
        _check_not_overridden(model, name)
    _check_module(model, type(model), "the model")
    hooks = torch.nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        raise CannotFuse("hooks are registered for all modules")

    parts, config = _Parts(model), model.encoder.config
    parts.take("encoder", BERTEncoder)
    parts.take("encoder.token_embedding", nn.Embedding, "weight")
    parts.take("encoder.segment_embedding", nn.Embedding, "weight")
    parts.take("encoder", BERTEncoder, "pos_embedding")
    if config.embedding_norm:
        parts.take_norm("encoder.embedding_norm", config.norm_eps)
    parts.take("encoder.blks", nn.Sequential)
    for name in model.encoder.blks._modules:
        block = f"encoder.blks.{name}"
        parts.take(block, EncoderBlock)
        parts.take(f"{block}.attention", MultiHeadAttention, num_heads=config.num_heads)
        for layer in ("W_q", "W_k", "W_v", "W_o"):
            parts.take(f"{block}.attention.{layer}", nn.Linear, "weight", "bias")
        parts.take(f"{block}.addnorm1", AddNorm)
        parts.take_norm(f"{block}.addnorm1.ln", config.norm_eps)
        parts.take(f"{block}.ffn", PositionWiseFFN, activation=config.activation)
        parts.take(f"{block}.ffn.dense1", nn.Linear, "weight", "bias")
        parts.take(f"{block}.ffn.dense2", nn.Linear, "weight", "bias")
        parts.take(f"{block}.addnorm2", AddNorm)
        parts.take_norm(f"{block}.addnorm2.ln", config.norm_eps)
    return parts.parameters


def head_parameters(model: Head) -> list[Tensor]:
    """Weight and bias of the hidden layer, if the head has one, and of the output layer.

    Raises CannotFuse unless they are all that `model.head` computes with.
    """
    _check_not_overridden(model, "head")
    parts = _Parts(model)
    parts.take("dropout", nn.Dropout)
    if model.pooled:
        parts.take("hidden", nn.Sequential)
        if len(model.hidden._modules) != 2:
            raise CannotFuse("hidden has other layers")
        parts.take("hidden.0", nn.Linear, "weight", "bias")
        parts.take("hidden.1", nn.Tanh)
    parts.take("output", nn.Linear, "weight", "bias")
    return parts.parameters


class _Parts:
    """Takes modules of a model by name; raises CannotFuse where one is not of the given kind and settings."""

    def __init__(self, model: Head) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters: list[Tensor] = []

    def take(self, path: str, kind: type[nn.Module], *parameters: str, **settings: object) -> None:
        module = self.modules.get(path)
        _check_module(module, kind, path)
        for name, value in settings.items():
            if getattr(module, name) != value:
                raise CannotFuse(f"{path}.{name} is {getattr(module, name)!r}, the config's is {value!r}")
        for name in parameters:
            parameter = module._parameters.get(name)  # type: ignore[union-attr]
            if parameter is None:
                raise CannotFuse(f"{path}.{name} is not a parameter")
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                raise CannotFuse(f"{path}.{name} is {parameter.dtype} on {parameter.device}")
            self.parameters.append(parameter)

    def take_norm(self, path: str, eps: float) -> None:
        self.take(path, nn.LayerNorm, "weight", "bias", eps=eps)


def _check_module(module: nn.Module | None, kind: type[nn.Module], path: str) -> None:
    if module is None or type(module) is not kind:
        raise CannotFuse(f"{path} is a {type(module).__name__}, not a {kind.__name__}")
    if module._forward_hooks or module._forward_pre_hooks:
        raise CannotFuse(f"{path} has hooks")
    if "forward" in vars(module):
        raise CannotFuse(f"{path} has a `forward` of its own")
    if module._compiled_call_impl is not None:
        raise CannotFuse(f"{path} is compiled")


def is_overridden(model: Head, name: str) -> bool:
    """True if the model's class, or the model itself, has another attribute `name` than Head."""
    return getattr(type(model), name) is not getattr(Head, name) or name in vars(model)


def _check_not_overridden(model: Head, name: str) -> None:
    if is_overridden(model, name):
        raise CannotFuse(f"{type(model).__name__} overrides {name}")
