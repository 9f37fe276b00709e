"""D2L's BERT in plain PyTorch, padded and slow: what the packed encoder is checked against.

Two forms of the same equations. The functions take a state dict with D2L's names, in any floating dtype, and have no
dropout: they are the oracle of values and gradients. `PlainD2LClassifier` has D2L's modules as D2L has them,
dropout included: it is the baseline of training runs and timings.

Shapes: B sequences padded to L positions, H hidden units, F units in the FFN, h heads of d = H / h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]


@dataclass(frozen=True)
class OracleConfig:
    """What a state dict does not say. `original` is the first BERT: exact GELU, embedding LayerNorm, eps 1e-12."""

    heads: int
    layers: int
    original: bool = False

    @property
    def eps(self) -> float:
        return 1e-12 if self.original else 1e-5


def masked_softmax(scores: Tensor, valid_lens: Tensor | None) -> Tensor:
    """Softmax over the last axis of [B, h, L, L]; keys at `valid_lens` [B] or, by query, [B, L], and beyond get the
    score -1e6."""
    if valid_lens is not None:
        lens = valid_lens.view(len(valid_lens), 1, -1, 1)
        scores = scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) >= lens, -1e6)
    return torch.softmax(scores, dim=-1)


def d2l_bert_encoder(
    state: State, config: OracleConfig, tokens: Tensor, segments: Tensor, valid_lens: Tensor | None
) -> Tensor:
    """Hidden states [B, L, H] of token ids and segment ids [B, L]; `valid_lens` [B], or None: all are valid."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + config.eps) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def activation(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2))) if config.original else torch.relu(x)

    batch, length = tokens.shape
    x = state["encoder.token_embedding.weight"][tokens] + state["encoder.segment_embedding.weight"][segments]
    x = x + state["encoder.pos_embedding"][:, :length]
    if config.original:
        x = layer_norm("encoder.embedding_norm", x)
    for i in range(config.layers):
        block = f"encoder.blks.{i}"
        q, k, v = (
            linear(f"{block}.attention.{name}", x).view(batch, length, config.heads, -1).transpose(1, 2)
            for name in ("W_q", "W_k", "W_v")
        )  # (B, h, L, d) each
        weights = masked_softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), valid_lens)  # (B, h, L, L)
        attended = (weights @ v).transpose(1, 2).reshape(batch, length, -1)  # (B, L, H)
        x = layer_norm(f"{block}.addnorm1.ln", x + linear(f"{block}.attention.W_o", attended))
        inner = activation(linear(f"{block}.ffn.dense1", x))  # (B, L, F)
        x = layer_norm(f"{block}.addnorm2.ln", x + linear(f"{block}.ffn.dense2", inner))
    return x


def d2l_bert_classifier(
    state: State, config: OracleConfig, tokens: Tensor, segments: Tensor, valid_lens: Tensor | None
) -> Tensor:
    """Logits [B, labels] of the tanh layer on position 0 and the output layer."""
    encoded = d2l_bert_encoder(state, config, tokens, segments, valid_lens)
    return d2l_pooled(state, encoded) @ state["output.weight"].T + state["output.bias"]


def d2l_pooled(state: State, encoded: Tensor) -> Tensor:
    """[B, H] from hidden states [B, L, H]: the linear layer `hidden.0` and tanh on position 0."""
    return torch.tanh(encoded[:, 0] @ state["hidden.0.weight"].T + state["hidden.0.bias"])


def d2l_mlm(state: State, encoded: Tensor, pred_positions: Tensor) -> Tensor:
    """Logits [B, P, vocabulary] of the masked positions [B, P] of hidden states [B, L, H] (D2L's head: ReLU)."""
    rows = torch.arange(len(encoded), device=encoded.device)[:, None]
    x = encoded[rows, pred_positions]  # (B, P, H)
    x = torch.relu(x @ state["mlm.mlp.0.weight"].T + state["mlm.mlp.0.bias"])
    x = functional.layer_norm(x, x.shape[-1:], state["mlm.mlp.2.weight"], state["mlm.mlp.2.bias"], 1e-5)
    return x @ state["mlm.mlp.3.weight"].T + state["mlm.mlp.3.bias"]


def d2l_nsp(state: State, encoded: Tensor) -> Tensor:
    """Logits [B, 2] of next-sentence prediction from hidden states [B, L, H], through `hidden.0` as in D2L."""
    return d2l_pooled(state, encoded) @ state["nsp.output.weight"].T + state["nsp.output.bias"]


def random_state(
    vocab_size: int,
    hidden: int,
    ffn: int,
    heads: int,
    layers: int,
    max_len: int,
    num_labels: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    original: bool = False,
) -> State:
    """A state dict with every key of D2L's BERTModel and the classifier's `output`, no value at its default.

    The values do not depend on `dtype`, but for rounding.
    """
    if hidden % heads:
        raise ValueError(f"hidden ({hidden}) must be divisible by heads ({heads})")
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = draw(outputs, inputs) / math.sqrt(inputs)
        state[f"{name}.bias"] = draw(outputs) * 0.1

    def norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + draw(hidden) * 0.1
        state[f"{name}.bias"] = draw(hidden) * 0.1

    state["encoder.token_embedding.weight"] = draw(vocab_size, hidden)
    state["encoder.segment_embedding.weight"] = draw(2, hidden)
    state["encoder.pos_embedding"] = draw(1, max_len, hidden)
    if original:
        norm("encoder.embedding_norm")
    for i in range(layers):
        block = f"encoder.blks.{i}"
        for name in ("W_q", "W_k", "W_v", "W_o"):
            linear(f"{block}.attention.{name}", hidden, hidden)
        norm(f"{block}.addnorm1.ln")
        linear(f"{block}.ffn.dense1", hidden, ffn)
        linear(f"{block}.ffn.dense2", ffn, hidden)
        norm(f"{block}.addnorm2.ln")
    linear("hidden.0", hidden, hidden)
    linear("mlm.mlp.0", hidden, hidden)
    norm("mlm.mlp.2")
    linear("mlm.mlp.3", hidden, vocab_size)
    linear("nsp.output", hidden, 2)
    linear("output", hidden, num_labels)
    return {name: value.to(dtype) for name, value in state.items()}


def huggingface_state(state: State, layers: int) -> State:
    """The same weights (of the original variant) under the names of transformers' BertModel."""
    found: State = {}

    def move(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            found[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]

    found["embeddings.word_embeddings.weight"] = state["encoder.token_embedding.weight"]
    found["embeddings.token_type_embeddings.weight"] = state["encoder.segment_embedding.weight"]
    found["embeddings.position_embeddings.weight"] = state["encoder.pos_embedding"][0]
    move("encoder.embedding_norm", "embeddings.LayerNorm")
    for i in range(layers):
        ours, theirs = f"encoder.blks.{i}", f"encoder.layer.{i}"
        move(f"{ours}.attention.W_q", f"{theirs}.attention.self.query")
        move(f"{ours}.attention.W_k", f"{theirs}.attention.self.key")
        move(f"{ours}.attention.W_v", f"{theirs}.attention.self.value")
        move(f"{ours}.attention.W_o", f"{theirs}.attention.output.dense")
        move(f"{ours}.addnorm1.ln", f"{theirs}.attention.output.LayerNorm")
        move(f"{ours}.ffn.dense1", f"{theirs}.intermediate.dense")
        move(f"{ours}.ffn.dense2", f"{theirs}.output.dense")
        move(f"{ours}.addnorm2.ln", f"{theirs}.output.LayerNorm")
    move("hidden.0", "pooler.dense")
    return found


class PlainAttention(nn.Module):
    """Multi-head scaled dot-product attention; dropout on the weights."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.W_q = nn.Linear(hidden, hidden)
        self.W_k = nn.Linear(hidden, hidden)
        self.W_v = nn.Linear(hidden, hidden)
        self.W_o = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, valid_lens: Tensor | None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.W_q, self.W_k, self.W_v))
        weights = masked_softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), valid_lens)
        out: Tensor = self.W_o((self.dropout(weights) @ v).transpose(1, 2).flatten(-2))
        return out


class PlainAddNorm(nn.Module):
    """LayerNorm of the input plus the sublayer's output, the latter under dropout."""

    def __init__(self, hidden: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.ln = nn.LayerNorm(hidden, eps=eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.ln(self.dropout(y) + x)
        return out


class PlainFFN(nn.Module):
    def __init__(self, hidden: int, ffn: int, original: bool) -> None:
        super().__init__()
        self.dense1 = nn.Linear(hidden, ffn)
        self.activation = nn.GELU() if original else nn.ReLU()
        self.dense2 = nn.Linear(ffn, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense2(self.activation(self.dense1(x)))
        return out


class PlainBlock(nn.Module):
    def __init__(self, hidden: int, ffn: int, heads: int, dropout: float, original: bool) -> None:
        super().__init__()
        eps = 1e-12 if original else 1e-5
        self.attention = PlainAttention(hidden, heads, dropout)
        self.addnorm1 = PlainAddNorm(hidden, dropout, eps)
        self.ffn = PlainFFN(hidden, ffn, original)
        self.addnorm2 = PlainAddNorm(hidden, dropout, eps)

    def forward(self, x: Tensor, valid_lens: Tensor | None) -> Tensor:
        y = self.addnorm1(x, self.attention(x, valid_lens))
        out: Tensor = self.addnorm2(y, self.ffn(y))
        return out


class PlainEncoder(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden: int,
        ffn: int,
        heads: int,
        layers: int,
        max_len: int,
        dropout: float,
        original: bool,
        train_positions: bool,
    ) -> None:
        super().__init__()
        self.train_positions = train_positions
        self.token_embedding = nn.Embedding(vocab_size, hidden)
        self.segment_embedding = nn.Embedding(2, hidden)
        self.blks = nn.ModuleList([PlainBlock(hidden, ffn, heads, dropout, original) for _ in range(layers)])
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len, hidden))
        if original:
            self.embedding_norm = nn.LayerNorm(hidden, eps=1e-12)
            self.embedding_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, segments: Tensor, valid_lens: Tensor | None) -> Tensor:
        # D2L adds `pos_embedding.data`, so that its position embeddings never learn.
        positions = self.pos_embedding if self.train_positions else self.pos_embedding.detach()
        x: Tensor = self.token_embedding(tokens) + self.segment_embedding(segments) + positions[:, : tokens.shape[1]]
        if hasattr(self, "embedding_norm"):
            x = self.embedding_dropout(self.embedding_norm(x))
        for block in self.blks:
            x = block(x, valid_lens)
        return x


class PlainD2LClassifier(nn.Module):
    """D2L's BERTClassifier, padded: `forward((tokens, segments, valid_lens))` gives logits [B, num_labels].

    Parameters bear D2L's names and start as PyTorch's modules start them. Dropout is where D2L has it (attention
    weights, output of each sublayer); the original variant adds it after the embedding norm and before the output
    layer, as transformers does. `train_positions=False` is D2L's own behaviour.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden: int,
        ffn: int,
        heads: int,
        layers: int,
        max_len: int,
        num_labels: int = 3,
        dropout: float = 0.1,
        original: bool = False,
        train_positions: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = PlainEncoder(vocab_size, hidden, ffn, heads, layers, max_len, dropout, original, train_positions)
        self.hidden = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh())
        self.dropout = nn.Dropout(dropout if original else 0.0)
        self.output = nn.Linear(hidden, num_labels)

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        encoded = self.encoder(*inputs)
        logits: Tensor = self.output(self.dropout(self.hidden(encoded[:, 0])))
        return logits
