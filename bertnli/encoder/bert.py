"""The encoder on packed tokens, the pretraining heads, and the model of all three.

Shapes in the comments: T tokens in B sequences, R tokens read, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli import ops
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.layers import EncoderBlock
from bertnli.encoder.padded import MAX_TOKENS_SEEN
from bertnli.encoder.plain import CountsReplacements, call, dropout_p, is_plain, is_plain_table
from bertnli.encoder.shapes import shapes_only
from bertnli.text.batch import PackedBatch, pad_amount

_MIN_RECURRENCE = 3  # project distinct tokens only if each occurs at least 3 times on average
_SIZES_PER_DOUBLING = 64  # numbers of rows to pad to between a number and its double: at most 1.6 % more rows


def _compiles_each_size(dtype: torch.dtype) -> bool:
    """True if products on the CPU are oneDNN's in bfloat16. It compiles one for each number of rows, which takes a
    millisecond, as long as a small product itself."""
    return torch.is_autocast_enabled("cpu") or (dtype == torch.bfloat16 and not ops.own_products(dtype))


def _pad_to_few_sizes(batch: PackedBatch) -> PackedBatch:
    """The batch with one more sequence, whose result is dropped, so that few numbers of tokens occur."""
    tokens = len(batch.input_ids)
    more = pad_amount(tokens, _SIZES_PER_DOUBLING)
    return batch.padded(tokens + more, len(batch) + 1) if more else batch


def check_length(batch: PackedBatch, max_len: int) -> None:
    """Raise ValueError for a sequence longer than `max_len`."""
    if batch.max_seqlen > max_len:
        raise ValueError(
            f"a sequence of {batch.max_seqlen} tokens is longer than the model's max_len={max_len}; "
            "encode the pairs with a smaller max_len"
        )


def check_no_transform() -> None:
    """Raise RuntimeError within a transform of torch.func, for which the operators have no rules."""
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "bertnli's operators have no rules for the transforms of torch.func (grad, vmap, jvp, ...); use "
            "loss.backward() or torch.autograd.grad. torch.func.functional_call alone works"
        )


class BERTEncoder(CountsReplacements):
    """Embeddings and encoder blocks. Arguments: a BERTConfig, or those of D2L (BERTConfig.from_d2l_arguments)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        config = BERTConfig.from_d2l_arguments(*args, **kwargs)
        self.config = config
        # By head, what bertnli/inference has made ready of this encoder.
        self.sessions: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
        width = config.embedding_size or config.num_hiddens
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.segment_embedding = nn.Embedding(config.num_segments, width)
        self.pos_embedding = nn.Parameter(nn.init.normal_(torch.empty(1, config.max_len, width)))
        if config.embedding_norm:
            self.embedding_norm = nn.LayerNorm(width, eps=config.norm_eps)
            self.embedding_dropout = nn.Dropout(config.dropout)
        if config.embedding_size is not None:
            self.embedding_projection = nn.Linear(width, config.num_hiddens)
        self.blks = nn.Sequential(*(EncoderBlock(config) for _ in range(config.num_layers)))
        if config.embedding_norm:
            self.apply(_init_original)
            nn.init.normal_(self.pos_embedding, std=0.02)
        if not config.train_segments:
            nn.init.zeros_(self.segment_embedding.weight)

    # Whatever may change the layers drops the sessions, and so the memory of their prepacked weights.

    def train(self, mode: bool = True) -> BERTEncoder:
        if mode:
            self.sessions.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BERTEncoder:
        self.sessions.clear()
        return cast(BERTEncoder, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        self.sessions.clear()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:  # of copies and pickles
        return {name: value for name, value in vars(self).items() if name != "sessions"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.sessions = WeakKeyDictionary()

    def forward(
        self,
        tokens: PackedBatch | Tensor,
        segments: Tensor | None = None,
        valid_lens: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        max_tokens_read: int | None = None,
    ) -> Tensor:
        """Encode a packed batch, or D2L's three padded tensors.

        (batch, rows=None)               to [T, H], or to [R, H] of the tokens `rows`, ascending int64 [R]
        (tokens, segments, valid_lens)   integer [B, L], [B, L], [B] or None, to [B, L, H], zeros in the padding.
                                         With valid_lens [B, L], the valid keys of each query, padding is computed too

        max_tokens_read  the most tokens in `rows` of one sequence. If it is given, nothing waits for a GPU; there
                         `rows` and ids are not checked then

        Raises ValueError for a sequence longer than `max_len`, for unsorted rows and for shapes that disagree;
        IndexError for a row or an id that does not exist.
        """
        if isinstance(tokens, PackedBatch):
            return self._encode(tokens, rows, max_tokens_read)
        if segments is None:
            raise TypeError("padded input needs segments: encoder(tokens, segments, valid_lens)")
        if rows is not None:
            raise TypeError("rows are for packed batches; index the padded result instead")
        shape = tokens.shape
        if valid_lens is not None and valid_lens.dim() == 2:
            batch = PackedBatch.from_padded(tokens, segments)
            check_length(batch, self.config.max_len)
            x = self.embed(batch).view(*shape, -1)
            for block in self.blks:
                x = block(x, valid_lens)
            return x
        batch = PackedBatch.from_padded(tokens, segments, valid_lens)
        return batch.pad(self._encode(batch, padded_to=shape[1]), shape[1])

    def _encode(
        self,
        batch: PackedBatch,
        rows: Tensor | None = None,
        max_tokens_read: int | None = None,
        padded_to: int | None = None,
    ) -> Tensor:
        check_length(batch, self.config.max_len)
        check_no_transform()
        checked = (max_tokens_read is None or batch.device.type == "cpu") and not torch.compiler.is_compiling()
        if rows is not None and checked and rows.numel():
            if bool((rows.diff() < 0).any()):
                raise ValueError("rows must be ascending")
            if int(rows[0]) < 0 or int(rows[-1]) >= batch.input_ids.numel():
                raise IndexError(f"rows must lie between 0 and {batch.input_ids.numel() - 1}, the last token")
        given, tokens = batch, batch.input_ids.shape[0]
        if torch.compiler.is_compiling() or tokens > MAX_TOKENS_SEEN:  # compiled code may not branch on a size
            padded_to = None
        if batch.device.type == "cpu" and _compiles_each_size(self._matrix_dtype):
            batch = _pad_to_few_sizes(batch)
        projects_all = len(self.blks) > (rows is not None)  # in the first layer
        x, qkv = self._embed_and_project(batch) if projects_all else (self.embed(batch), None)
        for i, block in enumerate(self.blks):
            read = (rows, max_tokens_read) if i == len(self.blks) - 1 else (None, None)
            if padded_to is not None:
                cast(EncoderBlock, block).attention.seen = x[:tokens].detach(), given, padded_to
            x = block(x, batch, *read, qkv if i == 0 else None)
        if rows is None:
            x = x[:tokens]
        elif not len(self.blks):
            x = x[rows]
        return x.to(self.pos_embedding.dtype)

    @property
    def _matrix_dtype(self) -> torch.dtype:
        """The dtype of the layers' matrices and of the activations between them.

        It is bfloat16 while training replaces the matrices by copies (training/optimizer.py), and under autocast on a
        GPU, where float32 activations would be written, read and cast at every product.
        """
        table = self.pos_embedding
        if table.is_cuda and table.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
            return torch.get_autocast_dtype("cuda")
        if not len(self.blks):
            return table.dtype
        layer = cast(EncoderBlock, self.blks[0]).attention.W_q
        if is_plain(layer, nn.Linear):
            return layer.weight.dtype
        return next((m.weight.dtype for m in self.blks.modules() if type(m) is nn.Linear), table.dtype)

    def embed(self, batch: PackedBatch) -> Tensor:
        """The sum of token, segment and position embeddings, [T, H]; with `embedding_norm`, normed and dropped out, and
        projected to H where they are narrower."""
        ids, dtype = (batch.input_ids, batch.segment_ids, batch.positions), self._matrix_dtype
        projected = self.config.embedding_size is not None
        if not self._has_plain_tables(batch):
            segments = self.segment_embedding(ids[1])
            segments = segments if self.config.train_segments else segments.detach()
            x: Tensor = self.token_embedding(ids[0]) + segments + F.embedding(ids[2], self._positions())
        else:
            tables, sparse = self._tables(), self.token_embedding.sparse
            if self.config.embedding_norm and is_plain(self.embedding_norm, nn.LayerNorm):
                norm, p = self.embedding_norm, dropout_p(self.embedding_dropout)
                if p is not None:
                    wanted = None if projected else dtype
                    x = ops.embed_norm(*tables, *ids, norm.weight, norm.bias, norm.eps, p, dtype=wanted, sparse=sparse)
                    return x if not projected else self.embedding_projection(x).to(dtype)
            x = ops.embed(*tables, *ids, sparse=sparse)
        if self.config.embedding_norm:
            x = self.embedding_dropout(call(self.embedding_norm, x))
        return (self.embedding_projection(x) if projected else x).to(dtype)

    def _has_plain_tables(self, batch: PackedBatch) -> bool:
        tokens, segments = self.token_embedding, self.segment_embedding
        return is_plain_table(tokens, batch.input_ids) and is_plain_table(segments, batch.segment_ids)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        segments = self.segment_embedding.weight
        segments = segments if self.config.train_segments else segments.detach()
        return self.token_embedding.weight, segments, self._positions()

    def _positions(self) -> Tensor:
        positions = self.pos_embedding if self.config.train_positions else self.pos_embedding.detach()
        return positions.view(-1, positions.shape[-1])  # bertnli's own has shape [1, max_len, H]

    def _embed_and_project(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """`embed(batch)` and the first layer's projection of it, [T, 3H]; None for the latter unless tokens recur.

        W (token + segment + position) + b = W token + (W segment + b) + W position: each distinct embedding is
        projected once, and the projections are added up. Backward, gradients are summed by embedding before they are
        multiplied by a matrix.
        """
        if self.config.embedding_norm or batch.device.type != "cpu" or torch.compiler.is_compiling():
            return self.embed(batch), None
        attention = cast(EncoderBlock, self.blks[0]).attention
        if not (self._has_plain_tables(batch) and attention.projects_plainly):
            return self.embed(batch), None
        distinct, slots = torch.unique(batch.input_ids, return_inverse=True)
        if len(distinct) == 0 or len(slots) < _MIN_RECURRENCE * len(distinct):
            return self.embed(batch), None
        dtype = self._matrix_dtype
        if _compiles_each_size(dtype):
            distinct = torch.cat([distinct, distinct[:1].expand(pad_amount(len(distinct), _SIZES_PER_DOUBLING))])
        tokens, segments, positions = self._tables()
        tokens = ops.take(tokens, distinct, sparse=self.token_embedding.sparse)
        ids = slots.to(torch.int32), batch.segment_ids, batch.positions
        x = ops.embed(tokens, segments, positions, *ids).to(dtype)
        weight, bias = attention.projection()
        used = positions[: int(batch.positions.max()) // 64 * 64 + 64]
        projected = (
            ops.linear(tokens.to(dtype), weight),
            ops.linear(segments.to(dtype), weight, bias),
            ops.linear(used.to(dtype), weight),
        )  # (U, 3H), (S, 3H), (P, 3H)
        return x, ops.embed(*projected, *ids)


def added_parameter(encoder: nn.Module) -> str | None:
    """The name of a parameter that an encoder of its config does not have, such as an adapter's; None without one."""
    if type(encoder) is not BERTEncoder:
        return None
    with shapes_only():
        names = BERTEncoder(encoder.config).state_dict().keys()
    return min(encoder.state_dict().keys() - names, default=None)


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

    Arguments: a BERTConfig, or those of D2L (BERTConfig.from_d2l_arguments).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.config = config = BERTConfig.from_d2l_arguments(*args, **kwargs)
        self.provenance: dict[str, Any] = {}  # what the model card says of the checkpoint that it was loaded from
        self.encoder = BERTEncoder(config)
        activation = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}[config.pooler_activation]
        self.hidden = nn.Sequential(nn.Linear(config.num_hiddens, config.num_hiddens), activation())
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
                raise ValueError("pred_positions need the masked-language-model head, which this model lacks")
            scores = self.mlm(encoded, pred_positions)
        return encoded, scores, None if self.nsp is None else self.nsp(self.hidden(encoded[:, 0]))


def _init_original(module: nn.Module) -> None:
    """The original BERT's initialisation: normal with standard deviation 0.02, zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
