"""The layers of D2L's BERT chapters with the arguments of both editions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bertnli.encoder import bert, layers
from bertnli.encoder.config import BERTConfig


class TransformerEncoderBlock(layers.EncoderBlock):
    """The English edition's block: `block(X, valid_lens)` takes X [B, L, H] and valid_lens [B], [B, L] or None.

    Raises ValueError without `use_bias`, as BERT has no such layers.
    """

    def __init__(
        self, num_hiddens: int, ffn_num_hiddens: int, num_heads: int, dropout: float, use_bias: bool = False
    ) -> None:
        if not use_bias:
            raise ValueError("BERT's blocks have biases: give use_bias=True, or take the block of an installed d2l")
        super().__init__(
            BERTConfig(
                1, num_hiddens=num_hiddens, ffn_num_hiddens=ffn_num_hiddens, num_heads=num_heads, dropout=dropout
            )
        )


class EncoderBlock(TransformerEncoderBlock):
    """The Chinese edition's name and arguments of TransformerEncoderBlock. All widths but the FFN's are equal."""

    def __init__(
        self,
        key_size: int,
        query_size: int,
        value_size: int,
        num_hiddens: int,
        norm_shape: Sequence[int],
        ffn_num_input: int,
        ffn_num_hiddens: int,
        num_heads: int,
        dropout: float,
        use_bias: bool = False,
    ) -> None:
        widths = dict(
            key_size=key_size, query_size=query_size, value_size=value_size, norm_shape=norm_shape[-1],
            ffn_num_input=ffn_num_input,
        )  # fmt: skip
        for name, width in widths.items():
            if width != num_hiddens:
                raise ValueError(f"{name}={width} must equal num_hiddens={num_hiddens}")
        super().__init__(num_hiddens, ffn_num_hiddens, num_heads, dropout, use_bias)


class MaskLM(bert.MaskLM):
    """`MaskLM(vocab_size, num_hiddens)`, in the Chinese edition with `num_inputs`, the width of its input."""

    def __init__(self, vocab_size: int, num_hiddens: int, num_inputs: int | None = None) -> None:
        super().__init__(BERTConfig(vocab_size, num_hiddens=num_hiddens, num_heads=1))
        if num_inputs not in (None, num_hiddens):
            self.mlp[0] = nn.Linear(num_inputs, num_hiddens)


class NextSentencePred(nn.Module):
    """`NextSentencePred()`, in the Chinese edition with `num_inputs`, the width of its input [B, H]."""

    def __init__(self, num_inputs: int | None = None) -> None:
        super().__init__()
        self.output = nn.LazyLinear(2) if num_inputs is None else nn.Linear(num_inputs, 2)

    def forward(self, x: Any) -> Any:
        return self.output(x)
