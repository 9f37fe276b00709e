"""Sizes and variant of a BERT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Any

from bertnli.data.arguments import choice
from bertnli.ops.activation import ACTIVATIONS

# D2L's two sizes, for training from scratch: BERTConfig(vocab_size, **SIZES["bert.small"]).
SIZES: dict[str, dict[str, Any]] = {
    "bert.small": dict(num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1, max_len=512),
    "bert.base": dict(num_hiddens=768, ffn_num_hiddens=3072, num_heads=12, num_layers=12, dropout=0.1, max_len=512),
}

POOLER_ACTIVATIONS = ("tanh", "relu", "gelu")
_OTHER_NAMES = {
    "hidden_size": "num_hiddens",  # Hugging Face
    "intermediate_size": "ffn_num_hiddens",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_len",
    "type_vocab_size": "num_segments",
    "layer_norm_eps": "norm_eps",
    "num_blks": "num_layers",  # D2L's English edition
}


def _renamed(sizes: dict[str, Any]) -> dict[str, Any]:
    """Sizes under BERTConfig's own names. Raises TypeError for a size that is given under two names."""
    found: dict[str, Any] = {}
    for name, value in sizes.items():
        own = _OTHER_NAMES.get(name, name)
        if own in found:
            others = " and ".join(other for other in sizes if _OTHER_NAMES.get(other, other) == own)
            raise TypeError(f"{others} are names of the same size; give one of them")
        found[own] = value
    return found


@dataclass(frozen=True)
class BERTConfig:
    """Sizes and variant of a BERT. The defaults are D2L's bert.small.

    vocab_size           rows of the token embedding
    num_hiddens          H, the width of every token's vector
    ffn_num_hiddens      width of the feed-forward layer
    num_heads            attention heads; must divide num_hiddens
    num_layers           encoder blocks
    dropout              probability, on sublayer outputs (and on the embeddings with `embedding_norm`)
    attention_dropout    probability, on attention weights (default: that of `dropout`)
    max_len              positions that have an embedding: tokens of the longest sequence
    num_segments         rows of the segment embedding
    activation           "relu" (D2L), "gelu" (original BERT, exact) or "gelu_tanh"
    embedding_norm       LayerNorm and dropout on the embedding sum (original BERT) or neither (D2L)
    norm_eps             epsilon of every LayerNorm
    train_positions      whether position embeddings get a gradient (in D2L's code they get none)
    train_segments       whether segment embeddings get a gradient (DistilBERT's are zeros and get none)
    pooler_activation    of the hidden layer on `<cls>`: "tanh" (BERT), "relu" (DistilBERT) or "gelu" (ELECTRA)
    embedding_size       width of the embeddings, which a linear layer projects to H (ELECTRA; default: H, no layer)
    pretraining_heads    whether BERTModel has the masked-language-model and next-sentence heads

    Hugging Face's names are accepted too: `hidden_size`, `intermediate_size`, `num_attention_heads`,
    `num_hidden_layers`, `hidden_dropout_prob`, `attention_probs_dropout_prob`, `max_position_embeddings`,
    `type_vocab_size`, `layer_norm_eps`.

    Sources: Devlin et al. 2019; Dive into Deep Learning, "Bidirectional Encoder Representations from Transformers".
    Raises ValueError for sizes that cannot work together, TypeError for a value of another type and for a size that is
    given under two names.
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
    train_segments: bool = True
    pooler_activation: str = "tanh"
    embedding_size: int | None = None
    pretraining_heads: bool = True

    def __post_init__(self) -> None:
        sizes = ["vocab_size", "num_hiddens", "ffn_num_hiddens", "num_heads", "max_len", "num_segments"]
        sizes += [] if self.embedding_size is None else ["embedding_size"]
        for name in (*sizes, "num_layers"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), Integral):
                raise TypeError(f"{name} must be an integer; found {getattr(self, name)!r}")
        for name in ("embedding_norm", "train_positions", "train_segments", "pretraining_heads"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False; found {getattr(self, name)!r}")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; found {getattr(self, name)}")
        if self.embedding_size == self.num_hiddens:
            object.__setattr__(self, "embedding_size", None)
        if self.embedding_size is not None and not self.embedding_norm:
            raise ValueError(f"embedding_size={self.embedding_size} needs embedding_norm=True")
        if self.num_layers < 0:
            raise ValueError(f"num_layers must be at least 0; found {self.num_layers}")
        if self.num_hiddens % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide num_hiddens={self.num_hiddens}")
        choice(self.activation, "activation", ACTIVATIONS)
        choice(self.pooler_activation, "pooler_activation", POOLER_ACTIVATIONS)
        for name in ("dropout", "attention_dropout"):
            p = getattr(self, name)
            if p is None and name == "attention_dropout":
                continue
            if isinstance(p, bool) or not isinstance(p, Real):
                raise TypeError(f"{name} must be a number; found {p!r}")
            if not 0 <= float(p) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1; found {p}")

        if isinstance(self.norm_eps, bool) or not isinstance(self.norm_eps, Real) or not 0 <= float(self.norm_eps) < 1:
            raise ValueError(f"norm_eps must be a number from 0 to below 1; found {self.norm_eps!r}")

    @classmethod
    def original(cls, vocab_size: int, **sizes: Any) -> BERTConfig:
        """The original BERT's variant: GELU, LayerNorm and dropout on the embeddings, epsilon 1e-12.

        The default sizes are bert.base's: 768 hidden, 3072 feed-forward, 12 heads, 12 layers, dropout 0.1.
        """
        variant: dict[str, Any] = dict(activation="gelu", embedding_norm=True, norm_eps=1e-12)
        return cls(vocab_size, **{**SIZES["bert.base"], **variant, **_renamed(sizes)})

    @classmethod
    def from_d2l_arguments(cls, *args: Any, **kwargs: Any) -> BERTConfig:
        """The config of the arguments of D2L's BERTModel or BERTEncoder, or a single BERTConfig itself.

        The English edition has `(vocab_size, num_hiddens, ffn_num_hiddens, num_heads, num_blks, dropout,
        max_len=1000)`. The Chinese one has `(vocab_size, num_hiddens, norm_shape, ffn_num_input, ffn_num_hiddens,
        num_heads, num_layers, dropout, max_len=1000, key_size=..., query_size=..., value_size=...,
        hid_in_features=..., mlm_in_features=..., nsp_in_features=...)`; `norm_shape`, a list, tells them apart.
        """
        if args and isinstance(args[0], BERTConfig):
            if len(args) > 1 or kwargs:
                raise TypeError("give either one BERTConfig or D2L's arguments, not both")
            return args[0]
        names = ["vocab_size", "num_hiddens", "ffn_num_hiddens", "num_heads", "num_layers", "dropout", "max_len"]
        widths = []  # arguments that must equal num_hiddens for D2L's own code to run
        if "norm_shape" in kwargs or (len(args) > 2 and isinstance(args[2], (list, tuple))):
            inputs = ["key_size", "query_size", "value_size", "hid_in_features", "mlm_in_features", "nsp_in_features"]
            widths = ["norm_shape", "ffn_num_input", *inputs]
            names = [*names[:2], *widths[:2], *names[2:], *inputs]
        if len(args) > len(names):
            raise TypeError(f"at most {len(names)} positional arguments ({', '.join(names)}); found {len(args)}")
        given, named = dict(zip(names, args, strict=False)), _renamed(kwargs)
        if repeated := given.keys() & named.keys():
            raise TypeError(f"{min(repeated)} is given twice, by position and by name")
        given |= named
        for name in given.keys() & widths:
            value = given.pop(name)
            if (value[-1] if isinstance(value, (list, tuple)) else value) != given.get("num_hiddens"):
                raise ValueError(f"{name}={value} must equal num_hiddens={given.get('num_hiddens')}")
        return cls(**{"max_len": 1000, **given})


_init = BERTConfig.__init__


@wraps(_init)
def _init_by_any_name(self: BERTConfig, *args: Any, **sizes: Any) -> None:
    _init(self, *args, **_renamed(sizes))


BERTConfig.__init__ = _init_by_any_name  # type: ignore[method-assign]
