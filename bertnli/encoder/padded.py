"""An encoder block on padded vectors, as D2L calls it, and its attention weights. Slow and plain: for looking inside.

Shapes in the comments: B sequences of length L, H hidden units in h heads of d.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.text.batch import PackedBatch

MAX_TOKENS_SEEN = 4096  # of a batch whose attention weights can be read afterwards


def attention_weights(attention: Any, x: Tensor, valid_lens: Tensor | None) -> Tensor:
    """The weights of a MultiHeadAttention, [B, h, L, L]: softmax of q k / sqrt(d) over the valid keys.

    x           [B, L, H]
    valid_lens  number of valid keys, [B] or for each query [B, L]; None where all are valid
    """
    batch, length, width = x.shape
    heads = attention.num_heads
    q, k = (layer(x).view(batch, length, heads, -1).transpose(1, 2) for layer in (attention.W_q, attention.W_k))
    scores = q @ k.transpose(2, 3) / math.sqrt(width // heads)
    if valid_lens is not None:
        lens = valid_lens.to(x.device).view(batch, 1, -1, 1)  # (B, 1, 1 or L, 1)
        scores = scores.masked_fill(torch.arange(length, device=x.device) >= lens, -1e6)  # D2L's number
    return torch.softmax(scores, -1)


def run_block(block: Any, x: Tensor, valid_lens: Tensor | None) -> Tensor:
    """An EncoderBlock on padded vectors [B, L, H], by calls of its modules. `valid_lens` as in `attention_weights`.

    Raises ValueError for other shapes.
    """
    if x.dim() != 3 or (valid_lens is not None and tuple(valid_lens.shape) not in (x.shape[:1], x.shape[:2])):
        found = f"{list(x.shape)} and {None if valid_lens is None else list(valid_lens.shape)}"
        raise ValueError(f"block(X, valid_lens) takes X [B, L, H] and valid_lens [B], [B, L] or None; found {found}")
    attention, ffn = block.attention, block.ffn
    attention.seen = x.detach(), valid_lens, x.shape[1]
    values = attention.W_v(x).view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)
    context = attention.dropout(attention_weights(attention, x, valid_lens)) @ values  # (B, h, L, d)
    y = attention.W_o(context.transpose(1, 2).flatten(2))
    x = block.addnorm1.ln(x + block.addnorm1.dropout(y))
    hidden = ffn.dense1(x)
    activated = ops.bias_act(hidden.flatten(0, 1), hidden.new_zeros(hidden.shape[-1]), ffn.activation)
    return cast(Tensor, block.addnorm2.ln(x + block.addnorm2.dropout(ffn.dense2(activated.view_as(hidden)))))


class AttentionWeights:
    """What `block.attention.attention` is: D2L's way to the weights, computed anew when they are read."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer: Any = layer

    @property
    def attention_weights(self) -> Tensor:
        """Of the last call on padded tensors, [B * h, L, L], without dropout and with zeros for invalid keys.

        Raises RuntimeError if there was none, or none of at most MAX_TOKENS_SEEN tokens.
        """
        if self._layer.seen is None:
            raise RuntimeError(
                "attention weights are those of the last call encoder(tokens, segments, valid_lens), of at most "
                f"{MAX_TOKENS_SEEN} valid tokens; there was none"
            )
        x, valid_lens, length = self._layer.seen
        if isinstance(valid_lens, PackedBatch):
            x, valid_lens = valid_lens.pad(x, length), valid_lens.cu_seqlens.diff()
        with torch.no_grad():
            return attention_weights(self._layer, x, valid_lens).flatten(0, 1)
