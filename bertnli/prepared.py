"""A model in inference: weights packed once for its state, and one operator for all layers of the encoder and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter, is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.heads import Head
from bertnli.model import AddNorm, BERTEncoder, EncoderBlock, MultiHeadAttention, PositionWiseFFN, operators

TRAINING_PRECISIONS = ("fp32", "bf16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")

_version = attrgetter("_version")
_COMPUTING = ("forward", "features", "head")  # the methods of Head that make outputs of a batch


class _Packed:
    """A model's weights, packed in one precision, and what to look at to know that they are still its own."""

    def __init__(self, encoder: BERTEncoder, parts: _Parts, precision: str) -> None:
        config = encoder.config
        self.parts, self.state = parts, (precision, ops.cpu_isa(), *parts.state())
        self.operator = torch.classes.bertnli.PreparedEncoder(
            parts.tensors, parts.head, config.num_heads, config.norm_eps, config.activation, precision
        )

    def holds(self, precision: str) -> bool:
        return self.parts.stand() and self.state == (precision, ops.cpu_isa(), *self.parts.state())


# Of each model the weights last packed.
_packed: WeakKeyDictionary[BERTEncoder | Head, _Packed] = WeakKeyDictionary()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`: "fp32" or "bf16" (weights and statistics stay float32; on a GPU what lies between
    the encoder's products is bfloat16 too)."""
    if precision not in TRAINING_PRECISIONS:
        raise ValueError(f"precision must be one of {TRAINING_PRECISIONS}; found {precision!r}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def prepared(model: BERTEncoder | Head, precision: str, keep: bool = True) -> Iterator[Sequence[nn.Module]]:
    """Within it, in this thread, `model` computes without gradients and dropout, with products in `precision`.

    model      an encoder, or a head with its encoder
    precision  "fp32"; "bf16": weights and the products' inputs rounded to bfloat16; "int8": the weights of each output
               rounded to 8 bits by their largest element, the inputs of each token by their range, the attention in
               bfloat16.
               Sums and statistics are float32 in all of them, and so are the residual stream on the CPU and the head.
    keep       whether the packed weights are kept for the next time; a change of any parameter packs them anew

    On the CPU, for float32 parameters and the encoder's own layers, all layers are one operator, and so is a head that
    computes as Head does. Otherwise (another device or dtype, layers that were replaced or have hooks) the modules run
    as they stand, under autocast for "bf16".
    Gives the modules that the operator stands for, whose mode does not count: none, the encoder, or it and the head.
    Raises ValueError for an unknown precision, and for "int8" where the encoder cannot be prepared.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}; found {precision!r}")
    packed = _packed.get(model)
    if packed is None or not keep or not packed.holds(precision):
        encoder = model.encoder if isinstance(model, Head) else model
        parts = _parts(encoder, model if isinstance(model, Head) else None)
        if parts is None:
            if precision == "int8":
                raise ValueError(
                    "precision 'int8' is for float32 encoders on the CPU whose layers are the model's own and without "
                    "hooks"
                )
            with autocast(encoder.pos_embedding.device, precision):
                yield ()
            return
        packed = _Packed(encoder, parts, precision)
        # An inference tensor counts no versions: its changes cannot be seen, so nothing is kept.
        if keep and not any(t.is_inference() for t in (*parts.tensors, *parts.head)):
            _packed[model] = packed
        else:
            _packed.pop(model, None)
    of = operators.of
    outer = {module: of.get(module) for module in packed.parts.modules}
    for module in outer:
        of[module] = packed.operator
    try:
        yield packed.parts.modules
    finally:
        for module, operator in outer.items():
            if operator is None:
                del of[module]
            else:
                of[module] = operator


class _Parts:
    """The parameters of a model in the operator's order, and the modules that they were found in."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []  # that the operator stands for
        self.tensors: list[Tensor] = []  # of the encoder
        self.head: list[Tensor] = []
        # Every part is still the `found` of its `name` in its `owner`, no module has more parts, and nothing has hooks:
        # loops without bytecode, since they run before each call.
        self.owners: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.found: list[Any] = []
        self.lists: list[dict[str, Any]] = []
        self.counts: list[int] = []
        self.hooks: list[dict[int, Any]] = []

    def stand(self) -> bool:
        return (
            not any(self.hooks)
            and all(map(is_, map(dict.get, self.owners, self.names), self.found))
            and list(map(len, self.lists)) == self.counts
        )

    def state(self) -> tuple[Any, ...]:
        """It changes with any parameter."""
        tensors = self.tensors + self.head
        return *map(Tensor.data_ptr, tensors), *map(_version, tensors)

    def add(self, other: _Parts) -> None:
        for name, items in vars(self).items():
            items += getattr(other, name)

    # Each raises KeyError for what the operator does not know.

    def take(self, owner: dict[str, Any], name: str) -> Any:
        found = owner[name]
        self.owners.append(owner)
        self.names.append(name)
        self.found.append(found)
        return found

    def child(self, parent: nn.Module, name: str, kind: type[nn.Module]) -> nn.Module:
        module = self.take(parent._modules, name)
        if type(module) is not kind:
            raise KeyError(name)
        self.hooks += module._forward_hooks, module._forward_pre_hooks
        return module

    def sequence(self, parent: nn.Module, name: str) -> tuple[nn.Module, list[str]]:
        module = self.child(parent, name, nn.Sequential)
        self.lists.append(module._modules)
        self.counts.append(len(module._modules))
        return module, list(module._modules)

    def parameter(self, module: nn.Module, name: str) -> Tensor:
        tensor = self.take(module._parameters, name)
        if tensor is None or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise KeyError(name)
        return tensor  # type: ignore[no-any-return]

    def linear(self, parent: nn.Module, name: str, kind: type[nn.Module] = nn.Linear) -> tuple[Tensor, Tensor]:
        module = self.child(parent, name, kind)
        return self.parameter(module, "weight"), self.parameter(module, "bias")


def _parts(encoder: BERTEncoder, head: Head | None) -> _Parts | None:
    """What the operator (csrc/ops/encoder.cpp) takes, or None where it cannot stand for the encoder's modules."""
    parts, above = _Parts(), _Parts()
    try:
        parts.tensors += (
            parts.parameter(parts.child(encoder, "token_embedding", nn.Embedding), "weight"),
            parts.parameter(parts.child(encoder, "segment_embedding", nn.Embedding), "weight"),
            parts.parameter(encoder, "pos_embedding").flatten(0, 1),
        )
        if encoder.config.embedding_norm:
            parts.tensors += parts.linear(encoder, "embedding_norm", nn.LayerNorm)
        blocks, names = parts.sequence(encoder, "blks")
        for name in names:
            block = parts.child(blocks, name, EncoderBlock)
            attention = parts.child(block, "attention", MultiHeadAttention)
            for part in ("W_q", "W_k", "W_v", "W_o"):
                parts.tensors += parts.linear(attention, part)
            parts.tensors += parts.linear(parts.child(block, "addnorm1", AddNorm), "ln", nn.LayerNorm)
            ffn = parts.child(block, "ffn", PositionWiseFFN)
            parts.tensors += (*parts.linear(ffn, "dense1"), *parts.linear(ffn, "dense2"))
            parts.tensors += parts.linear(parts.child(block, "addnorm2", AddNorm), "ln", nn.LayerNorm)
    except KeyError:
        return None
    if not parts.stand():
        return None
    parts.modules.append(encoder)
    with suppress(KeyError):
        if head is not None and all(getattr(type(head), name) is vars(Head)[name] for name in _COMPUTING):
            for name in _COMPUTING:  # nor has the instance its own
                above.owners.append(vars(head))
                above.names.append(name)
                above.found.append(None)
            above.child(head, "encoder", BERTEncoder)
            if head.pooled:
                hidden, names = above.sequence(head, "hidden")
                above.head += above.linear(hidden, "0")
                above.child(hidden, "1", nn.Tanh)
                if names != ["0", "1"] or above.head[0].shape != (encoder.config.num_hiddens,) * 2:
                    return parts
            above.child(head, "dropout", nn.Dropout)
            above.head += above.linear(head, "output")
            if above.stand() and above.head[-2].shape[1] == encoder.config.num_hiddens:
                above.modules.append(head)
                parts.add(above)
    return parts
