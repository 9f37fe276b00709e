"""The encoder in inference: weights packed once for a state of the model, and one operator for all of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter, is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.model import AddNorm, BERTEncoder, EncoderBlock, MultiHeadAttention, PositionWiseFFN, operators

TRAINING_PRECISIONS = ("fp32", "bf16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")

_version = attrgetter("_version")


class _Packed:
    """An encoder's weights, packed in one precision, and what to look at to know that they are still its own."""

    def __init__(self, encoder: BERTEncoder, parts: _Parts, precision: str) -> None:
        config = encoder.config
        self.parts, self.state = parts, (precision, ops.cpu_isa(), *parts.state())
        self.operator = torch.classes.bertnli.PreparedEncoder(
            parts.tensors, config.num_heads, config.norm_eps, config.activation, precision
        )

    def holds(self, precision: str) -> bool:
        return self.parts.stand() and self.state == (precision, ops.cpu_isa(), *self.parts.state())


# Of each encoder the weights last packed.
_packed: WeakKeyDictionary[BERTEncoder, _Packed] = WeakKeyDictionary()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`: "fp32" or "bf16" (weights and statistics stay float32; on a GPU what lies between
    the encoder's products is bfloat16 too)."""
    if precision not in TRAINING_PRECISIONS:
        raise ValueError(f"precision must be one of {TRAINING_PRECISIONS}; found {precision!r}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def prepared(encoder: BERTEncoder, precision: str, keep: bool = True) -> Iterator[bool]:
    """Within it, in this thread, `encoder` computes without gradients and dropout, with products in `precision`.

    precision  "fp32"; "bf16": weights and the products' inputs rounded to bfloat16; "int8": the weights of each output
               rounded to 8 bits by their largest element, the inputs of each token by their range, the attention in
               bfloat16.
               Sums and statistics are float32 in all of them, and so is the residual stream on the CPU.
    keep       whether the packed weights are kept for the next time; a change of any parameter packs them anew

    On the CPU, for float32 parameters and the encoder's own layers, all layers are one operator. Otherwise (another
    device or dtype, layers that were replaced or have hooks) the encoder runs as it stands, under autocast for "bf16".
    Gives whether the operator stands for the layers, so that their mode does not count.
    Raises ValueError for an unknown precision, and for "int8" where the encoder cannot be prepared.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}; found {precision!r}")
    packed = _packed.get(encoder)
    if packed is None or not keep or not packed.holds(precision):
        parts = _parts(encoder)
        if parts is None:
            if precision == "int8":
                raise ValueError(
                    "precision 'int8' is for float32 encoders on the CPU whose layers are the model's own and without "
                    "hooks"
                )
            with autocast(encoder.pos_embedding.device, precision):
                yield False
            return
        packed = _Packed(encoder, parts, precision)
        # An inference tensor counts no versions: its changes cannot be seen, so nothing is kept.
        if keep and not any(t.is_inference() for t in parts.tensors):
            _packed[encoder] = packed
        else:
            _packed.pop(encoder, None)
    outer = operators.of.get(encoder)
    operators.of[encoder] = packed.operator
    try:
        yield True
    finally:
        if outer is None:
            del operators.of[encoder]
        else:
            operators.of[encoder] = outer


class _Parts:
    """The parameters of an encoder in the operator's order, and the modules that they were found in."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        # Every part is still the `found` of its `name` in its `owner`, and nothing has hooks: loops without bytecode,
        # since they run before each call.
        self.owners: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.found: list[Any] = []
        self.hooks: list[dict[int, Any]] = []

    def take(self, owner: dict[str, Any], name: str) -> Any:
        found = owner[name]
        self.owners.append(owner)
        self.names.append(name)
        self.found.append(found)
        return found

    def stand(self) -> bool:
        return not any(self.hooks) and all(map(is_, map(dict.get, self.owners, self.names), self.found))

    def state(self) -> tuple[Any, ...]:
        """It changes with any parameter."""
        return *map(Tensor.data_ptr, self.tensors), *map(_version, self.tensors)


def _parts(encoder: BERTEncoder) -> _Parts | None:
    """What the operator (csrc/ops/encoder.cpp) takes, or None where it cannot stand for the modules."""
    parts = _Parts()

    def child(parent: nn.Module, name: str, kind: type[nn.Module]) -> nn.Module:
        module = parts.take(parent._modules, name)
        if type(module) is not kind:
            raise KeyError(name)
        parts.hooks += module._forward_hooks, module._forward_pre_hooks
        return module

    def parameter(module: nn.Module, name: str) -> Tensor:
        tensor = parts.take(module._parameters, name)
        if tensor is None or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise KeyError(name)
        return tensor  # type: ignore[no-any-return]

    def linear(parent: nn.Module, name: str, kind: type[nn.Module] = nn.Linear) -> tuple[Tensor, Tensor]:
        module = child(parent, name, kind)
        return parameter(module, "weight"), parameter(module, "bias")

    try:
        tensors = [
            parameter(child(encoder, "token_embedding", nn.Embedding), "weight"),
            parameter(child(encoder, "segment_embedding", nn.Embedding), "weight"),
            parameter(encoder, "pos_embedding").flatten(0, 1),
        ]
        if encoder.config.embedding_norm:
            tensors += linear(encoder, "embedding_norm", nn.LayerNorm)
        blocks = child(encoder, "blks", nn.Sequential)
        for name in blocks._modules:
            block = child(blocks, name, EncoderBlock)
            attention = child(block, "attention", MultiHeadAttention)
            for part in ("W_q", "W_k", "W_v", "W_o"):
                tensors += linear(attention, part)
            tensors += linear(child(block, "addnorm1", AddNorm), "ln", nn.LayerNorm)
            ffn = child(block, "ffn", PositionWiseFFN)
            tensors += (*linear(ffn, "dense1"), *linear(ffn, "dense2"))
            tensors += linear(child(block, "addnorm2", AddNorm), "ln", nn.LayerNorm)
    except KeyError:
        return None
    if parts.stand():
        parts.tensors = tensors
        return parts
    return None
