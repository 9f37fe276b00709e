"""A model in inference: weights packed once for a state of the encoder, one operator for all layers and the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertnli import _ops
from bertnli.encoder.bert import BERTEncoder, operators, packed
from bertnli.encoder.layers import AddNorm, EncoderBlock, MultiHeadAttention, PositionWiseFFN
from bertnli.runtime.precision import PRECISIONS, autocast, uses_bf16
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch


class _Packed:
    """An encoder's weights, packed in one precision, and what to look at to know that they are still its own."""

    def __init__(self, encoder: BERTEncoder, parts: _Parts, precision: str, kept: bool) -> None:
        config = encoder.config
        self.parts, self.precision, self.state = parts, precision, _ops.state(parts.tensors) if kept else b""
        self.operator = _ops.PreparedEncoder(
            parts.tensors, config.num_heads, config.norm_eps, config.activation, precision
        )

    def holds(self, precision: str) -> bool:
        same = self.precision == precision and self.state == _ops.state(self.parts.tensors)
        return same and self.parts.stand()


# The parts of each head. (None leads to it.)
_heads: WeakKeyDictionary[Head, _Parts] = WeakKeyDictionary()


@contextmanager
def prepared(model: BERTEncoder | Head, precision: str, keep: bool = True) -> Iterator[Mapping[nn.Module, Any]]:
    """Within it, in this thread, `model` computes without gradients and dropout, with products in `precision`.

    model      an encoder, or a head with its encoder
    precision  "fp32"; "bf16": weights and the products' inputs rounded to bfloat16; "int8": the weights of each output
               rounded to 8 bits by their largest element, the inputs of each token by their range, the attention in
               bfloat16. A CPU without instructions for bfloat16 rounds only the weights of "bf16" to it.
               Sums and statistics are float32 in all of them, and so are the residual stream on the CPU and the head.
    keep       whether the packed weights are kept for the next time; a change of any parameter packs them anew, but one
               through `.data`, which nobody sees: after that `train` forgets them

    On the CPU, for float32 parameters and the encoder's own layers, all layers are one operator, and so is a head that
    computes as Head does. Otherwise (another device or dtype, layers that were replaced or have hooks) the modules run
    as they stand, under autocast for "bf16" where `uses_bf16` says so.
    Gives what `stand_ins` does. Raises ValueError for an unknown precision, and for "int8" where the encoder cannot be
    prepared.
    """
    stand_in = stand_ins(model, precision, keep)
    with computing(model, precision, stand_in):
        yield stand_in


def stand_ins(model: BERTEncoder | Head, precision: str, keep: bool) -> Mapping[nn.Module, Any]:
    """What computes for the encoder, an operator, and for a head, a function of batches: with all within them, whose
    mode does not count. Empty where modules run as they stand. The arguments and errors are those of `prepared`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}; found {precision!r}")
    encoder = model.encoder if isinstance(model, Head) else model
    found = packed.get(encoder)
    if found is None or not keep or not found.holds(precision):
        parts = _encoder_parts(encoder)
        if parts is None:
            packed.pop(encoder, None)
            _heads.pop(cast(Head, model), None)
            if precision == "int8":
                raise ValueError(
                    "precision 'int8' is for float32 encoders on the CPU whose layers are the model's own and without "
                    "hooks"
                )
            return {}
        # An inference tensor counts no versions: its changes cannot be seen, so nothing is kept.
        keep = keep and not any(t.is_inference() for t in parts.tensors)
        found = _Packed(encoder, parts, precision, keep)
        if keep:
            packed[encoder] = found
        else:
            packed.pop(encoder, None)
    if isinstance(model, Head) and (outputs := _outputs(model, encoder, found.operator)) is not None:
        return {encoder: found.operator, model: outputs}
    return {encoder: found.operator}


@contextmanager
def computing(model: BERTEncoder | Head, precision: str, stand_in: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Within it, in this thread, calls of the modules come to what stands in for them; see `prepared`."""
    if not stand_in:
        device = (model.encoder if isinstance(model, Head) else model).pos_embedding.device
        with autocast(device, uses_bf16(device, precision)):
            yield
        return
    of = operators.of
    outer = {module: of.get(module) for module in stand_in}
    of.update(stand_in)
    try:
        yield
    finally:
        for module, before in outer.items():
            if before is None:
                del of[module]
            else:
                of[module] = before


def _outputs(
    head: Head, encoder: BERTEncoder, operator: _ops.PreparedEncoder
) -> Callable[[PackedBatch], Tensor] | None:
    """What Head.forward does, by the operator; None where this one may do anything else, or somebody listens."""
    kind = type(head)
    if kind.forward is not Head.forward or kind.features is not Head.features or kind.head is not Head.head:
        return None
    if not _OWN.isdisjoint(vars(head)):
        return None
    parts = _heads.get(head)
    if parts is None or not parts.stand():
        parts = _head_parts(head)
        if parts is None:
            _heads.pop(head, None)
            return None
        _heads[head] = parts
    weights, first = (
        parts.tensors,
        head.pooled and kind.token_index is Head.token_index and "token_index" not in vars(head),
    )

    def outputs(batch: PackedBatch) -> Tensor:
        encoder.check_length(batch)
        ids = batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens
        return operator.outputs(*ids, None if first else head.token_index(batch), first, weights)

    return outputs


_OWN = frozenset({"forward", "features", "head", "pooled"})  # what an instance may have of its own


class _Parts:
    """The parameters of a model in the operator's order, and the modules that they were found in."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        # Every part is still the `found` of its `name` in its `owner`, and nothing has hooks.
        self.owners: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.found: list[Any] = []
        self.hooks: list[dict[int, Any]] = []
        self.sequences: list[dict[str, Any]] = []  # whose lengths are still the same
        self.lengths: list[int] = []

    def stand(self) -> bool:
        as_found = _ops.stand(self.owners, self.names, self.found, self.hooks)
        return as_found and list(map(len, self.sequences)) == self.lengths

    # These raise KeyError for what the operator does not know.

    def take(self, owner: dict[str, Any], name: str) -> Any:
        self.keep(owner, name, owner[name])
        return owner[name]

    def keep(self, owner: dict[str, Any], name: str, found: Any) -> None:
        self.owners.append(owner)
        self.names.append(name)
        self.found.append(found)

    def child(self, parent: nn.Module, name: str, kind: type[nn.Module]) -> nn.Module:
        module = self.take(parent._modules, name)
        if type(module) is not kind:
            raise KeyError(name)
        self.hooks += module._forward_hooks, module._forward_pre_hooks
        self.keep(vars(module), "forward", None)
        return module

    def setting(self, module: nn.Module, name: str, value: Any) -> None:
        found = self.take(vars(module), name)
        if found != value:
            raise KeyError(name)

    def sequence(self, parent: nn.Module, name: str) -> nn.Module:
        module = self.child(parent, name, nn.Sequential)
        self.sequences.append(module._modules)
        self.lengths.append(len(module._modules))
        return module

    def parameter(self, module: nn.Module, name: str) -> Tensor:
        tensor = self.take(module._parameters, name)
        if tensor is None or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise KeyError(name)
        self.tensors.append(tensor)
        return tensor  # type: ignore[no-any-return]

    def linear(self, parent: nn.Module, name: str, kind: type[nn.Module] = nn.Linear) -> nn.Module:
        module = self.child(parent, name, kind)
        self.parameter(module, "weight")
        self.parameter(module, "bias")
        return module


def _encoder_parts(encoder: BERTEncoder) -> _Parts | None:
    """What the operator (csrc/ops/encoder.cpp) takes, or None where it cannot stand for the modules."""
    parts = _Parts()
    try:
        parts.parameter(parts.child(encoder, "token_embedding", nn.Embedding), "weight")
        parts.parameter(parts.child(encoder, "segment_embedding", nn.Embedding), "weight")
        parts.parameter(encoder, "pos_embedding")
        config = encoder.config
        if config.embedding_norm:
            parts.setting(parts.linear(encoder, "embedding_norm", nn.LayerNorm), "eps", config.norm_eps)
        blocks = parts.sequence(encoder, "blks")
        for name in blocks._modules:
            block = parts.child(blocks, name, EncoderBlock)
            attention = parts.child(block, "attention", MultiHeadAttention)
            parts.setting(attention, "num_heads", config.num_heads)
            for part in ("W_q", "W_k", "W_v", "W_o"):
                parts.linear(attention, part)
            norm = parts.linear(parts.child(block, "addnorm1", AddNorm), "ln", nn.LayerNorm)
            parts.setting(norm, "eps", config.norm_eps)
            ffn = parts.child(block, "ffn", PositionWiseFFN)
            parts.setting(ffn, "activation", config.activation)
            parts.linear(ffn, "dense1")
            parts.linear(ffn, "dense2")
            norm = parts.linear(parts.child(block, "addnorm2", AddNorm), "ln", nn.LayerNorm)
            parts.setting(norm, "eps", config.norm_eps)
    except KeyError:
        return None
    return parts if parts.stand() else None


def _head_parts(head: Head) -> _Parts | None:
    """The same of a head's own layers."""
    parts = _Parts()
    parts.hooks += head._forward_hooks, head._forward_pre_hooks
    try:
        parts.child(head, "encoder", BERTEncoder)
        parts.child(head, "dropout", nn.Dropout)
        if head.pooled:
            hidden = parts.sequence(head, "hidden")
            parts.linear(hidden, "0")
            parts.child(hidden, "1", nn.Tanh)
            if len(hidden._modules) != 2:
                return None
        parts.linear(head, "output")
    except KeyError:
        return None
    return parts if parts.stand() else None
