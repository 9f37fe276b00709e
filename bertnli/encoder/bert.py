"""BERT on packed tokens: one encoder for the textbook's variant and the original's, and no padding anywhere.

Shapes in the comments: T tokens in B sequences, R rows read, H hidden units in h heads of d.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.text.batch import PackedBatch, pad_amount

_ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
_RECUR = 3  # so many tokens for each distinct one make it pay to project the distinct ones: a batch of some 32 pairs

# The book's two sizes, for training from scratch: BERTConfig(vocab_size, **SIZES["bert.small"]).
SIZES: dict[str, dict[str, Any]] = {
    "bert.small": dict(num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1, max_len=512),
    "bert.base": dict(num_hiddens=768, ffn_num_hiddens=3072, num_heads=12, num_layers=12, dropout=0.1, max_len=512),
}


@dataclass(frozen=True)
class BERTConfig:
    """Sizes and variant of a BERT. The defaults are the textbook's bert.small.

    vocab_size           rows of the token embedding
    num_hiddens          H, the width of every token's vector
    ffn_num_hiddens      width of the feed-forward layer between
    num_heads            attention heads; must divide num_hiddens
    num_layers           encoder blocks
    dropout              on sublayer outputs (and on the embeddings where `embedding_norm`)
    attention_dropout    on attention weights; None means the same as `dropout`
    max_len              positions that have an embedding: the longest sequence
    num_segments         rows of the segment embedding
    activation           "relu" (D2L), "gelu" (original, exact) or "gelu_tanh"
    embedding_norm       LayerNorm and dropout on the embedding sum (original) or neither (D2L)
    norm_eps             epsilon of every LayerNorm
    train_positions      False reproduces the book's code, whose position embeddings get no gradient
    pretraining_heads    whether BERTModel has the masked-language-model and next-sentence heads

    Sources: Devlin et al. 2019; Dive into Deep Learning, "Bidirectional Encoder Representations from Transformers".
    Raises ValueError for sizes that cannot work together.
    """

    vocab_size: int
    num_hiddens: int = 256
    ffn_num_hiddens: int = 512
    num_heads: int = 4
    num_layers: int = 2
    dropout: float = 0.2
    attention_dropout: float | None = None
    max_len: int = 512
    num_segments: int = 2
    activation: str = "relu"
    embedding_norm: bool = False
    norm_eps: float = 1e-5
    train_positions: bool = True
    pretraining_heads: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_hiddens", "ffn_num_hiddens", "num_heads", "max_len", "num_segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; found {getattr(self, name)}")
        if self.num_layers < 0:
            raise ValueError(f"num_layers must be at least 0; found {self.num_layers}")
        if self.num_hiddens % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide num_hiddens={self.num_hiddens}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {_ACTIVATIONS}; found {self.activation!r}")
        for name in ("dropout", "attention_dropout"):
            p = getattr(self, name)
            if p is not None and not 0 <= p < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1; found {p}")

    @classmethod
    def original(cls, vocab_size: int, **sizes: Any) -> BERTConfig:
        """The original BERT's variant: GELU, LayerNorm and dropout on the embeddings, epsilon 1e-12.

        The default sizes are bert.base's: 768 hidden, 3072 feed-forward, 12 heads, 12 layers, dropout 0.1.
        """
        variant: dict[str, Any] = dict(activation="gelu", embedding_norm=True, norm_eps=1e-12)
        return cls(vocab_size, **{**SIZES["bert.base"], **variant, **sizes})

    @classmethod
    def from_d2l_arguments(cls, *args: Any, **kwargs: Any) -> BERTConfig:
        """Read the arguments of either edition's BERTModel or BERTEncoder, or a single BERTConfig.

        The older edition has `(vocab_size, num_hiddens, norm_shape, ffn_num_input, ffn_num_hiddens, num_heads,
        num_layers, dropout, max_len=1000, key_size=..., query_size=..., value_size=..., hid_in_features=...,
        mlm_in_features=..., nsp_in_features=...)`; the newer one has `(vocab_size, num_hiddens, ffn_num_hiddens,
        num_heads, num_blks, dropout, max_len=1000)`. `norm_shape`, a list, tells them apart.
        """
        if args and isinstance(args[0], BERTConfig):
            if len(args) > 1 or kwargs:
                raise TypeError("give either one BERTConfig or the book's arguments, not both")
            return args[0]
        older = "norm_shape" in kwargs or (len(args) > 2 and isinstance(args[2], (list, tuple)))
        names = (
            "vocab_size num_hiddens norm_shape ffn_num_input ffn_num_hiddens num_heads num_layers dropout max_len "
            "key_size query_size value_size hid_in_features mlm_in_features nsp_in_features"
            if older
            else "vocab_size num_hiddens ffn_num_hiddens num_heads num_layers dropout max_len"
        ).split()
        if len(args) > len(names):
            raise TypeError(f"at most {len(names)} positional arguments ({', '.join(names)}); found {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            name = "num_layers" if name == "num_blks" else name
            if name in given:
                raise TypeError(f"{name} is given twice")
            given[name] = value
        # Widths that must equal num_hiddens for the book's own code to run.
        for name in names if older else ():
            if name in given and (name.endswith(("_size", "_features", "_input", "_shape")) and name != "vocab_size"):
                value = given.pop(name)
                width = value[-1] if isinstance(value, (list, tuple)) else value
                if width != given.get("num_hiddens"):
                    raise ValueError(f"{name}={value} must equal num_hiddens={given.get('num_hiddens')}")
        return cls(**{"max_len": 1000, **given})


class MultiHeadAttention(nn.Module):
    """Attention of D2L's parameter names over packed tokens; without the bias of W_o, which AddNorm adds."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        width = config.num_hiddens
        self.num_heads = config.num_heads
        self.dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.W_q = nn.Linear(width, width)
        self.W_k = nn.Linear(width, width)
        self.W_v = nn.Linear(width, width)
        self.W_o = nn.Linear(width, width)

    def forward(self, x: Tensor, batch: PackedBatch, qkv: Tensor | None = None) -> Tensor:
        """[T, H] to [T, H]: every token attends to the tokens of its sequence. `qkv` [T, 3H] is x's projection."""
        tokens, width = x.shape
        qkv = ops.linear(x, *self.projection()) if qkv is None else qkv
        out = ops.varlen_attention_packed(
            qkv.view(tokens, 3, self.num_heads, width // self.num_heads),
            batch.cu_seqlens,
            batch.max_seqlen,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (T, h, d)
        return ops.linear(out.flatten(1), self.W_o.weight)

    def projection(self) -> tuple[Tensor, Tensor]:
        """Weight [3H, H] and bias [3H] of query, key and value: one GEMM for the three."""
        weight = torch.cat([self.W_q.weight, self.W_k.weight, self.W_v.weight])
        return weight, torch.cat([self.W_q.bias, self.W_k.bias, self.W_v.bias]).to(weight.dtype)

    def read_rows(
        self, x: Tensor, batch: PackedBatch, rows: Tensor, read: Tensor, max_tokens_read: int | None = None
    ) -> Tensor:
        """[T, H] and R rows of it, `read` [R, H], to [R, H], without projecting keys and values of all tokens.

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
            dropout_p=self.dropout if self.training else 0.0,
            scale=1 / math.sqrt(d),
            cu_seqlens_q=cu_seqlens_q,
            max_seqlen_q=max_tokens_read,
        )  # (R, h, H), (R, h)
        out = torch.bmm(context.transpose(0, 1), self.W_v.weight.view(h, d, width).transpose(1, 2))  # (h, R, d)
        # The key bias has no influence and so a gradient of zero; optimizers should find that zero, not a None.
        bias = self.W_v.bias + 0 * self.W_k.bias
        out = out.transpose(0, 1) + weight_sum[:, :, None] * bias.view(h, d)  # (R, h, d)
        return ops.linear(out.reshape(count, width).to(q.dtype), self.W_o.weight)


class AddNorm(nn.Module):
    """LayerNorm(x + dropout(y + y_bias)); y_bias is that of the linear layer that made y, which left it out."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.ln = nn.LayerNorm(config.num_hiddens, eps=config.norm_eps)

    def forward(self, x: Tensor, y: Tensor, y_bias: Tensor) -> Tensor:
        p = self.dropout.p if self.training else 0.0
        return ops.add_norm(x, y, self.ln.weight, self.ln.bias, self.ln.eps, p, y_bias=y_bias)


class PositionWiseFFN(nn.Module):
    """Two linear layers with an activation between; without the bias of the second, which AddNorm adds."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense1 = nn.Linear(config.num_hiddens, config.ffn_num_hiddens)
        self.dense2 = nn.Linear(config.ffn_num_hiddens, config.num_hiddens)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = ops.bias_act(ops.linear(x, self.dense1.weight), self.dense1.bias, self.activation)  # (T, F)
        return ops.linear(hidden, self.dense2.weight)


class EncoderBlock(nn.Module):
    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config)
        self.addnorm1 = AddNorm(config)
        self.ffn = PositionWiseFFN(config)
        self.addnorm2 = AddNorm(config)

    def forward(
        self,
        x: Tensor,
        batch: PackedBatch,
        rows: Tensor | None = None,
        max_tokens_read: int | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """[T, H] to [T, H], or to [R, H] where only some rows of the result are read; `qkv` as in the attention."""
        if rows is None:
            attended = self.attention(x, batch, qkv)
        elif rows.numel() < batch.cu_seqlens.numel():
            everything, x = _TakeRows.apply(x, rows)  # type: ignore[no-untyped-call]
            attended = self.attention.read_rows(everything, batch, rows, x, max_tokens_read)
        else:  # several rows a sequence: projecting the keys and values once is the cheaper way
            attended, x = self.attention(x, batch)[rows], x[rows]
        y = self.addnorm1(x, attended, self.attention.W_o.bias)
        return cast(Tensor, self.addnorm2(y, self.ffn(y), self.ffn.dense2.bias))


class _TakeRows(torch.autograd.Function):
    """x and x[rows]: `x[rows]` alone would fill a gradient of zeros for x, and add it to the rest of x's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return x.view_as(x), x[rows]

    @staticmethod
    def backward(ctx: Any, dx: Tensor, drows: Tensor) -> tuple[Tensor, None]:
        return dx.index_add(0, ctx.saved_tensors[0], drows), None


_PER_DOUBLING = 64  # of products between a size and its double, where each is compiled: at most 1.6 % more rows


def _compiles_products(dtype: torch.dtype) -> bool:
    """Whether products on the CPU are oneDNN's, which compiles those of bfloat16 for their sizes: a millisecond the
    first time, as much as a small product itself takes."""
    return torch.is_autocast_enabled("cpu") or (dtype == torch.bfloat16 and not ops.own_products(dtype))


def _rounded(batch: PackedBatch) -> PackedBatch:
    """The batch with a last sequence that nobody reads, so that its number of tokens is one of few."""
    tokens = len(batch.input_ids)
    return batch.padded(tokens + more, len(batch) + 1) if (more := pad_amount(tokens, _PER_DOUBLING)) else batch


class _Operators(threading.local):
    """What stands for all layers of an encoder, and for a head, while this thread is in inference
    (bertnli/prepared.py)."""

    def __init__(self) -> None:
        self.of: dict[nn.Module, Any] = {}


operators = _Operators()

# Of each encoder what bertnli/prepared.py has made of its weights.
packed: WeakKeyDictionary[BERTEncoder, Any] = WeakKeyDictionary()


class BERTEncoder(nn.Module):
    """Embeddings and encoder blocks. Arguments: a BERTConfig, or those of either edition of the book."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        config = BERTConfig.from_d2l_arguments(*args, **kwargs)
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.num_hiddens)
        self.segment_embedding = nn.Embedding(config.num_segments, config.num_hiddens)
        self.pos_embedding = nn.Parameter(torch.randn(1, config.max_len, config.num_hiddens))
        if config.embedding_norm:
            self.embedding_norm = nn.LayerNorm(config.num_hiddens, eps=config.norm_eps)
            self.embedding_dropout = nn.Dropout(config.dropout)
        self.blks = nn.Sequential(*(EncoderBlock(config) for _ in range(config.num_layers)))
        if config.embedding_norm:
            self.apply(_init_original)
            nn.init.normal_(self.pos_embedding, std=0.02)

    def train(self, mode: bool = True) -> BERTEncoder:
        if mode:  # training code may write to `parameter.data`, which nobody sees
            packed.pop(self, None)
        return super().train(mode)

    def forward(
        self,
        inputs: PackedBatch | Tensor,
        segments: Tensor | None = None,
        valid_lens: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        max_tokens_read: int | None = None,
    ) -> Tensor:
        """Encode a packed batch, or D2L's three padded tensors.

        (batch, rows=None)               [T, H]; with `rows`, ascending int64 [R] of token indices, [R, H]. Where
                                         `max_tokens_read` says how many of them a sequence has at most, nothing waits
                                         for the device: there the rows are not checked, nor the ids
        (tokens, segments, valid_lens)   integer [B, L], [B, L], [B] or None to [B, L, H], zeros in the padding

        Raises ValueError for a sequence longer than `max_len`, for unsorted rows and for shapes that disagree;
        IndexError for a token id outside the vocabulary.
        """
        if isinstance(inputs, PackedBatch):
            return self._encode(inputs, rows, max_tokens_read)
        if segments is None:
            raise TypeError("padded input needs segments: encoder(tokens, segments, valid_lens)")
        if rows is not None:
            raise TypeError("rows are for packed batches; index the padded result instead")
        batch = PackedBatch.from_padded(inputs, segments, valid_lens)
        return batch.pad(self._encode(batch), inputs.shape[1])

    def check_length(self, batch: PackedBatch) -> None:
        """Raise ValueError for a sequence longer than `max_len`."""
        if batch.max_seqlen > self.config.max_len:
            raise ValueError(
                f"a sequence of {batch.max_seqlen} tokens is longer than the model's max_len={self.config.max_len}; "
                "encode the pairs with a smaller max_len"
            )

    def _encode(self, batch: PackedBatch, rows: Tensor | None = None, max_tokens_read: int | None = None) -> Tensor:
        self.check_length(batch)
        operator = None if torch.compiler.is_compiling() else operators.of.get(self)
        if operator is not None:
            found = operator.forward(batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens, rows)
            return cast(Tensor, found)
        looked_at = (max_tokens_read is None or batch.device.type == "cpu") and not torch.compiler.is_compiling()
        if rows is not None and looked_at and rows.numel():
            if bool((rows.diff() < 0).any()):
                raise ValueError("rows must be ascending")
            if int(rows[0]) < 0 or int(rows[-1]) >= batch.input_ids.numel():
                raise IndexError(f"rows must lie between 0 and {batch.input_ids.numel() - 1}, the last token")
        tokens = batch.input_ids.shape[0]
        if batch.device.type == "cpu" and _compiles_products(self._matrix_dtype):
            batch = _rounded(batch)
        projecting = len(self.blks) > (rows is not None)  # the first layer projects all tokens
        x, qkv = self._embed_and_project(batch) if projecting else (self.embed(batch), None)
        for i, block in enumerate(self.blks):
            read = (rows, max_tokens_read) if i == len(self.blks) - 1 else (None, None)
            x = block(x, batch, *read, qkv if i == 0 else None)
        if rows is None:
            x = x[:tokens]
        elif not len(self.blks):
            x = x[rows]
        return x.to(self.token_embedding.weight.dtype)

    @property
    def _matrix_dtype(self) -> torch.dtype:
        """Of the layers' matrices and of what lies between them: bfloat16 copies, of `train.lazily` or of autocast on
        a GPU, where float32 between them would be written, read and cast at every product."""
        table = self.token_embedding.weight
        if table.is_cuda and table.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
            return torch.get_autocast_dtype("cuda")
        block = cast(EncoderBlock, self.blks[0]) if len(self.blks) else None
        return table.dtype if block is None else block.attention.W_q.weight.dtype

    def embed(self, batch: PackedBatch) -> Tensor:
        """Sum of token, segment and position embeddings, [T, H]; the original variant's LayerNorm and dropout of it."""
        tables = self._tables()
        ids = batch.input_ids, batch.segment_ids, batch.positions
        sparse, dtype = self.token_embedding.sparse, self._matrix_dtype
        if not self.config.embedding_norm:
            return ops.embed(*tables, *ids, sparse=sparse).to(dtype)
        norm, p = self.embedding_norm, self.embedding_dropout.p if self.embedding_dropout.training else 0.0
        return ops.embed_norm(*tables, *ids, norm.weight, norm.bias, norm.eps, p, dtype=dtype, sparse=sparse)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        positions = self.pos_embedding if self.config.train_positions else self.pos_embedding.detach()
        return self.token_embedding.weight, self.segment_embedding.weight, positions.flatten(0, 1)

    def _embed_and_project(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """`embed(batch)`, and the first layer's projection of it, [T, 3H], where tokens recur; else None for that.

        W (token + segment + position) + b = W token + (W segment + b) + W position: each distinct row is projected
        once, and the products' rows are added up. Backward, gradients are summed by row before they meet a matrix.
        """
        if self.config.embedding_norm or batch.device.type != "cpu" or torch.compiler.is_compiling():
            return self.embed(batch), None
        distinct, slots = torch.unique(batch.input_ids, return_inverse=True)
        if len(distinct) == 0 or len(slots) < _RECUR * len(distinct):
            return self.embed(batch), None
        dtype = self._matrix_dtype
        if _compiles_products(dtype):
            distinct = torch.cat([distinct, distinct[:1].expand(pad_amount(len(distinct), _PER_DOUBLING))])
        tokens, segments, positions = self._tables()
        tokens = ops.take(tokens, distinct, sparse=self.token_embedding.sparse)
        ids = slots.to(torch.int32), batch.segment_ids, batch.positions
        x = ops.embed(tokens, segments, positions, *ids).to(dtype)
        weight, bias = cast(EncoderBlock, self.blks[0]).attention.projection()
        reached = positions[: int(batch.positions.max()) // 64 * 64 + 64]
        projected = (
            ops.linear(tokens.to(dtype), weight),
            ops.linear(segments.to(dtype), weight, bias),
            ops.linear(reached.to(dtype), weight),
        )  # (U, 3H), (S, 3H), (P, 3H)
        return x, ops.embed(*projected, *ids)


class MaskLM(nn.Module):
    """D2L's masked-language-model head: [B, L, H] and positions [B, n] to scores [B, n, vocab_size]."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        activation: nn.Module = nn.ReLU()
        if config.activation != "relu":
            activation = nn.GELU("none" if config.activation == "gelu" else "tanh")
        self.mlp = nn.Sequential(
            nn.Linear(config.num_hiddens, config.num_hiddens),
            activation,
            nn.LayerNorm(config.num_hiddens, eps=config.norm_eps),
            nn.Linear(config.num_hiddens, config.vocab_size),
        )

    def forward(self, encoded: Tensor, pred_positions: Tensor) -> Tensor:
        sequence = torch.arange(len(encoded), device=encoded.device)[:, None]
        return cast(Tensor, self.mlp(encoded[sequence, pred_positions]))


class NextSentencePred(nn.Module):
    """D2L's next-sentence head: [B, H] to scores [B, 2]."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.output = nn.Linear(config.num_hiddens, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.output(x))


class BERTModel(nn.Module):
    """Encoder, the `hidden` layer on `<cls>`, and the two pretraining heads, under D2L's names.

    Arguments: a BERTConfig, or those of either edition of the book (see BERTConfig.from_d2l_arguments).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.config = config = BERTConfig.from_d2l_arguments(*args, **kwargs)
        self.encoder = BERTEncoder(config)
        self.hidden = nn.Sequential(nn.Linear(config.num_hiddens, config.num_hiddens), nn.Tanh())
        self.mlm = MaskLM(config) if config.pretraining_heads else None
        self.nsp = NextSentencePred(config) if config.pretraining_heads else None
        if config.embedding_norm:
            for module in (self.hidden, self.mlm, self.nsp):
                if module is not None:
                    module.apply(_init_original)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor,
        valid_lens: Tensor | None = None,
        pred_positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """D2L's triple: encoded [B, L, H], masked-token scores [B, n, vocab_size] or None, next-sentence scores [B, 2].

        A head that the model lacks (`pretraining_heads=False`) gives None; asking it for positions is a ValueError.
        """
        encoded = self.encoder(tokens, segments, valid_lens)
        scores = None
        if pred_positions is not None:
            if self.mlm is None:
                raise ValueError("pred_positions need the masked-language-model head, which this checkpoint lacks")
            scores = self.mlm(encoded, pred_positions)
        return encoded, scores, None if self.nsp is None else self.nsp(self.hidden(encoded[:, 0]))


def _init_original(module: nn.Module) -> None:
    """The original BERT's initialisation: normal with standard deviation 0.02, zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
