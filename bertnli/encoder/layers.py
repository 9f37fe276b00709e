"""The layers of an encoder block on packed tokens.

Shapes in the comments: T tokens in B sequences, R tokens read, H hidden units in h heads of d.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.padded import AttentionWeights, run_block
from bertnli.encoder.plain import CountsReplacements, call, dropout_p, is_plain, linear
from bertnli.text.batch import PackedBatch


class MultiHeadAttention(CountsReplacements):
    """Multi-head attention over packed tokens, with D2L's parameter names.

    The linear layers are computed together where they are plain (bertnli/encoder/plain.py), else called.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        width = config.num_hiddens
        self.num_heads = config.num_heads
        # Never called, since the attention operator drops weights with its p: hooks on it do nothing.
        self.dropout = nn.Dropout(config.dropout if config.attention_dropout is None else config.attention_dropout)
        self.W_q = nn.Linear(width, width)
        self.W_k = nn.Linear(width, width)
        self.W_v = nn.Linear(width, width)
        self.W_o = nn.Linear(width, width)
        # Input, lengths and padded length of the last call on padded tensors, for `attention`.
        self.seen: tuple[Tensor, PackedBatch | Tensor | None, int] | None = None

    @property
    def attention(self) -> AttentionWeights:
        """Its `attention_weights` are those of the last call on padded tensors."""
        return AttentionWeights(self)

    def forward(self, x: Tensor, batch: PackedBatch, qkv: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """[T, H] to [T, H], and W_o's bias where it is left to be added: each token attends to those of its sequence.

        `qkv`, [T, 3H], is x's projection if known.
        """
        tokens, width = x.shape
        if qkv is None:
            layers = self.W_q, self.W_k, self.W_v
            plain = self.projects_plainly
            qkv = ops.linear(x, *self.projection()) if plain else torch.cat([call(layer, x) for layer in layers], 1)
        out = ops.varlen_attention_packed(
            qkv.view(tokens, 3, self.num_heads, width // self.num_heads),
            batch.cu_seqlens,
            batch.max_seqlen,
            dropout_p=self._dropout_p(),
        )  # (T, h, d)
        return linear(self.W_o, out.flatten(1))

    @property
    def projects_plainly(self) -> bool:
        """Whether query, key and value may be computed by their parameters alone."""
        return is_plain(self.W_q, nn.Linear) and is_plain(self.W_k, nn.Linear) and is_plain(self.W_v, nn.Linear)

    def _dropout_p(self) -> float:
        if isinstance(self.dropout, nn.Dropout):
            return self.dropout.p if self.dropout.training else 0.0
        if isinstance(self.dropout, nn.Identity):
            return 0.0
        raise TypeError(
            "attention drops weights in its operator, so its dropout must be nn.Dropout or nn.Identity; "
            f"found {type(self.dropout).__name__}"
        )

    def projection(self) -> tuple[Tensor, Tensor]:
        """Weight [3H, H] and bias [3H] of query, key and value: one GEMM for the three."""
        weight = torch.cat([self.W_q.weight, self.W_k.weight, self.W_v.weight])
        return weight, torch.cat([self.W_q.bias, self.W_k.bias, self.W_v.bias]).to(weight.dtype)

    def absorbed(
        self, x: Tensor, batch: PackedBatch, rows: Tensor, read: Tensor, max_tokens_read: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the tokens `rows`, int64 [R], without projecting keys and values of all tokens.

        x [T, H] and `read`, x[rows], [R, H], to [R, H] and the bias, as of a call. `max_tokens_read` is the most of
        them in one sequence; to find it (None) waits for the device.

        A score is q_i . (W_k x_j + b_k) = (W_k^T q_i) . x_j + q_i . b_k, whose last term is the same for every j and so
        cancels in the softmax. The output is W_v (sum_j a_j x_j) + b_v sum_j a_j. So each head's query is absorbed into
        W_k, and the attention's keys and values are the layer's inputs themselves.
        """
        count, width = read.shape
        cu_seqlens_q = torch.searchsorted(rows, batch.cu_seqlens.to(rows.dtype)).to(torch.int32)
        if max_tokens_read is None:
            max_tokens_read = int(cu_seqlens_q.diff().max()) if len(batch) else 0
        h, d = self.num_heads, width // self.num_heads
        weight = self.W_q.weight
        q = ops.linear(read, weight, self.W_q.bias.to(weight.dtype)).view(count, h, d).transpose(0, 1)  # (h, R, d)
        absorbed = torch.bmm(q, self.W_k.weight.view(h, d, width))  # (h, R, H)
        keys = x.to(absorbed.dtype)[:, None]  # (T, 1, H)
        context, weight_sum = ops.varlen_attention_with_sum(
            absorbed.transpose(0, 1),
            keys,
            keys,
            batch.cu_seqlens,
            batch.max_seqlen,
            dropout_p=self._dropout_p(),
            scale=1 / math.sqrt(d),
            cu_seqlens_q=cu_seqlens_q,
            max_seqlen_q=max_tokens_read,
        )  # (R, h, H), (R, h)
        out = torch.bmm(context.transpose(0, 1), self.W_v.weight.view(h, d, width).transpose(1, 2))  # (h, R, d)
        # The key bias has no influence: optimizers should find a gradient of zero for it, not None.
        bias = self.W_v.bias + 0 * self.W_k.bias
        out = out.transpose(0, 1) + weight_sum[:, :, None] * bias.view(h, d)  # (R, h, d)
        return linear(self.W_o, out.reshape(count, width).to(q.dtype))


class AddNorm(CountsReplacements):
    """LayerNorm(x + dropout(y + y_bias)); y_bias is the bias that the linear layer before has left out."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.ln = nn.LayerNorm(config.num_hiddens, eps=config.norm_eps)

    def forward(self, x: Tensor, y: Tensor, y_bias: Tensor | None) -> Tensor:
        p = dropout_p(self.dropout)
        if p is not None and is_plain(self.ln, nn.LayerNorm):
            return ops.add_norm(x, y, self.ln.weight, self.ln.bias, self.ln.eps, p, y_bias=y_bias)
        y = y if y_bias is None else y + y_bias
        return call(self.ln, (x + self.dropout(y)).to(x.dtype))


class PositionWiseFFN(CountsReplacements):
    """Two linear layers with an activation between: [T, H] to [T, H], and the second bias as the attention's."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense1 = nn.Linear(config.num_hiddens, config.ffn_num_hiddens)
        self.dense2 = nn.Linear(config.ffn_num_hiddens, config.num_hiddens)
        self.activation = config.activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, bias = linear(self.dense1, x)  # (T, F)
        hidden = ops.bias_act(hidden, hidden.new_zeros(hidden.shape[1]) if bias is None else bias, self.activation)
        return linear(self.dense2, hidden)


class EncoderBlock(CountsReplacements):
    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config)
        self.addnorm1 = AddNorm(config)
        self.ffn = PositionWiseFFN(config)
        self.addnorm2 = AddNorm(config)

    def forward(
        self,
        x: Tensor,
        batch: PackedBatch | Tensor | None,
        rows: Tensor | None = None,
        max_tokens_read: int | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """[T, H] to [T, H], or to [R, H] of the tokens `rows`; `max_tokens_read` and `qkv` as in the attention.

        D2L's call, X [B, L, H] and valid_lens [B], [B, L] or None in place of the batch, gives [B, L, H].
        """
        if not isinstance(batch, PackedBatch):
            return run_block(self, x, batch)
        attention = self.attention
        if rows is None:
            attended, bias = attention(x, batch, qkv)
        elif (
            rows.numel() < batch.cu_seqlens.numel()
            and is_plain(attention, MultiHeadAttention)
            and attention.projects_plainly
        ):
            whole, x = _TakeRows.apply(x, rows)  # type: ignore[no-untyped-call]
            attended, bias = attention.absorbed(whole, batch, rows, x, max_tokens_read)
        else:  # several tokens a sequence: projecting keys and values once is cheaper
            attended, bias = attention(x, batch)
            attended, x = attended[rows], x[rows]
        y = self.addnorm1(x, attended, bias)
        return cast(Tensor, self.addnorm2(y, *self.ffn(y)))


class _TakeRows(torch.autograd.Function):
    """x and x[rows] in one node. Backward, `x[rows]` alone would fill zeros like x and add them to x's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return x.view_as(x), x[rows]

    @staticmethod
    def backward(ctx: Any, dx: Tensor, drows: Tensor) -> tuple[Tensor, None]:
        return dx.index_add(0, ctx.saved_tensors[0], drows), None
