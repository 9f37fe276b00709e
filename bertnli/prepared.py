"""The encoder in inference: weights packed once for a state of the model, and one operator for all of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.model import AddNorm, BERTEncoder, EncoderBlock, MultiHeadAttention, PositionWiseFFN, operators

TRAINING_PRECISIONS = ("fp32", "bf16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")

# Of each encoder the weights last packed, and what they were packed from.
_packed: WeakKeyDictionary[BERTEncoder, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`: "fp32" or "bf16" (weights and statistics stay float32)."""
    if precision not in TRAINING_PRECISIONS:
        raise ValueError(f"precision must be one of {TRAINING_PRECISIONS}; found {precision!r}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def prepared(encoder: BERTEncoder, precision: str, keep: bool = True) -> Iterator[None]:
    """Within it, in this thread, `encoder` computes without gradients and dropout, with products in `precision`.

    precision  "fp32"; "bf16": weights and the products' inputs rounded to bfloat16; "int8": the weights of each output
               rounded to 8 bits by their largest element, the inputs of each token by their range, the attention in
               bfloat16.
               Sums, statistics and the residual stream are float32 in all of them.
    keep       whether the packed weights are kept for the next time; a change of any parameter packs them anew

    On the CPU, for float32 parameters and the encoder's own layers, all layers are one operator. Otherwise (another
    device or dtype, layers that were replaced or have hooks) the encoder runs as it stands, under autocast for "bf16".
    Raises ValueError for an unknown precision, and for "int8" where the encoder cannot be prepared.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}; found {precision!r}")
    tensors = _tensors(encoder)
    if tensors is None:
        if precision == "int8":
            raise ValueError(
                "precision 'int8' is for float32 encoders on the CPU whose layers are the model's own and without hooks"
            )
        with autocast(encoder.pos_embedding.device, precision):
            yield
        return
    # An inference tensor counts no versions: its changes cannot be seen, so nothing is kept.
    keep = keep and not any(t.is_inference() for t in tensors)
    state = (precision, ops.cpu_isa(), *(x for t in tensors for x in (t.data_ptr(), t._version))) if keep else ()
    found = _packed.get(encoder)
    if found is None or found[0] != state or not keep:
        config = encoder.config
        operator = torch.classes.bertnli.PreparedEncoder(
            tensors, config.num_heads, config.norm_eps, config.activation, precision
        )
        found = state, operator
        if keep:
            _packed[encoder] = found
        else:
            _packed.pop(encoder, None)
    outer = operators.of.get(encoder)
    operators.of[encoder] = found[1]
    try:
        yield
    finally:
        if outer is None:
            del operators.of[encoder]
        else:
            operators.of[encoder] = outer


def _tensors(encoder: BERTEncoder) -> list[Tensor] | None:
    """The parameters in the operator's order (csrc/ops/encoder.cpp), or None where it cannot stand for the modules."""

    def child(parent: nn.Module, name: str, kind: type[nn.Module]) -> nn.Module:
        module = parent._modules[name]
        if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
            raise KeyError(name)
        return module

    def linear(parent: nn.Module, name: str, kind: type[nn.Module] = nn.Linear) -> tuple[Tensor, ...]:
        parameters = child(parent, name, kind)._parameters
        found = parameters["weight"], parameters["bias"]
        if found[0] is None or found[1] is None:
            raise KeyError(name)
        return found[0], found[1]

    try:
        tensors: list[Tensor | None] = [
            child(encoder, "token_embedding", nn.Embedding)._parameters["weight"],
            child(encoder, "segment_embedding", nn.Embedding)._parameters["weight"],
            encoder._parameters["pos_embedding"],
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
    found = [t for t in tensors if t is not None and t.dtype == torch.float32 and t.device.type == "cpu"]
    if len(found) < len(tensors):
        return None
    found[2] = found[2].flatten(0, 1)
    return found
