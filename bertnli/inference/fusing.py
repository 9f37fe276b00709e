"""Which models the fused operator (csrc/ops/encoder.h) can compute in place of their modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from bertnli import _ops
from bertnli.encoder.bert import BERTEncoder
from bertnli.encoder.layers import AddNorm, EncoderBlock, MultiHeadAttention, PositionWiseFFN
from bertnli.encoder.plain import why_not_plain
from bertnli.tasks.base import Head


class CannotFuse(Exception):
    """The operator does not compute what the modules do; the message names the module in the way."""


def encoder_parts(model: Head) -> Parts:
    """The encoder's parts, with the parameters in the order of csrc/ops/prepacked.h.

    Raises CannotFuse unless `model.features` is the fused operator's result for them, and `model` calls nothing beside
    `features` and `head`.
    """
    if not isinstance(model, Head):
        raise CannotFuse(f"the model is a {type(model).__name__}")
    for name in ("__call__", "forward", "features"):
        _check_not_overridden(model, name)
    _check_module(model, type(model), "the model")
    if _has_any_global_hook():
        raise CannotFuse("hooks are registered for all modules")

    taker, config = _Taker(model), model.encoder.config
    if config.embedding_size is not None:
        raise CannotFuse("its embeddings are projected")
    taker.take("encoder", BERTEncoder)
    taker.take("encoder.token_embedding", nn.Embedding, "weight")
    taker.take("encoder.segment_embedding", nn.Embedding, "weight")
    taker.take("encoder", BERTEncoder, "pos_embedding")
    if model.encoder.pos_embedding.dim() == 2:  # shared with another library's model
        taker.parts.parameters[-1] = taker.parts.parameters[-1][None]
    if config.embedding_norm:
        taker.take_norm("encoder.embedding_norm", config.norm_eps)
    taker.take("encoder.blks", nn.Sequential)
    for name in model.encoder.blks._modules:
        block = f"encoder.blks.{name}"
        taker.take(block, EncoderBlock)
        taker.take(f"{block}.attention", MultiHeadAttention, num_heads=config.num_heads)
        for layer in ("W_q", "W_k", "W_v", "W_o"):
            taker.take(f"{block}.attention.{layer}", nn.Linear, "weight", "bias")
        taker.take(f"{block}.addnorm1", AddNorm)
        taker.take_norm(f"{block}.addnorm1.ln", config.norm_eps)
        taker.take(f"{block}.ffn", PositionWiseFFN, activation=config.activation)
        taker.take(f"{block}.ffn.dense1", nn.Linear, "weight", "bias")
        taker.take(f"{block}.ffn.dense2", nn.Linear, "weight", "bias")
        taker.take(f"{block}.addnorm2", AddNorm)
        taker.take_norm(f"{block}.addnorm2.ln", config.norm_eps)
    return taker.parts


def head_parts(model: Head) -> Parts:
    """The head's parts: weight and bias of the hidden layer, if it has one, and of the output layer.

    Raises CannotFuse unless they are all that `model.head` computes with.
    """
    for name in ("pool", "head"):
        _check_not_overridden(model, name)
    taker = _Taker(model)
    taker.take("dropout", nn.Dropout)
    if model.pooled:
        taker.take("hidden", nn.Sequential)
        if len(model.hidden._modules) != 2:
            raise CannotFuse("hidden has other layers")
        taker.take("hidden.0", nn.Linear, "weight", "bias")
        taker.take("hidden.1", nn.Tanh)
    taker.take("output", nn.Linear, "weight", "bias")
    return taker.parts


class Items:
    """Items of dicts, to be compared with what they were."""

    def __init__(self) -> None:
        self._dicts: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._values: list[Any] = []  # None for a key that was missing

    def add(self, items: dict[str, Any], key: str) -> None:
        self._dicts.append(items)
        self._keys.append(key)
        self._values.append(items.get(key))

    def are_same(self) -> bool:
        return _ops.same_items(self._dicts, self._keys, self._values)


@dataclass
class Parts:
    """The parameters of an operator, and what must stay as it is for the operator to do the modules' work."""

    parameters: list[Tensor] = field(default_factory=list)
    # Each parameter among those of its module, and each module with its class.
    sources: Items = field(default_factory=Items)
    modules: list[nn.Module] = field(default_factory=list)
    kinds: list[type] = field(default_factory=list)
    # Each module among the children of its parent (of the model: by name), its `forward`, which is None, and its hooks.
    places: Items = field(default_factory=Items)
    own: dict[str, nn.Module] = field(default_factory=dict)
    hooks: list[Mapping[int, object]] = field(default_factory=list)

    def are_in_place(self, model: Head) -> bool:
        """True if none of the modules has been replaced, hooked or changed in place since they were taken."""
        return (
            not _has_any_global_hook()
            and all(model._modules.get(name) is module for name, module in self.own.items())
            and self.places.are_same()
            and list(map(type, self.modules)) == self.kinds
            and not any(self.hooks)
        )


class _Taker:
    """Takes modules of a model by name; raises CannotFuse where one is not of the given kind and settings."""

    def __init__(self, model: Head) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parts = Parts()

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
            self.parts.parameters.append(parameter)
            self.parts.sources.add(module._parameters, name)  # type: ignore[union-attr]
        assert module is not None
        parent, _, name = path.rpartition(".")
        if parent:
            self.parts.places.add(self.modules[parent]._modules, name)
        else:
            self.parts.own[name] = module
        self.parts.places.add(module.__dict__, "forward")
        self.parts.modules.append(module)
        self.parts.kinds.append(kind)
        self.parts.hooks += [module._forward_hooks, module._forward_pre_hooks]

    def take_norm(self, path: str, eps: float) -> None:
        self.take(path, nn.LayerNorm, "weight", "bias", eps=eps)


def _check_module(module: nn.Module | None, kind: type[nn.Module], path: str) -> None:
    if (reason := why_not_plain(module, kind)) is not None:
        raise CannotFuse(f"{path} {reason}")


def is_overridden(model: Head, name: str) -> bool:
    """True if the model's class, or the model itself, has another attribute `name` than Head."""
    return getattr(type(model), name) is not getattr(Head, name) or name in vars(model)


def _check_not_overridden(model: Head, name: str) -> None:
    if is_overridden(model, name):
        raise CannotFuse(f"{type(model).__name__} overrides {name}")
