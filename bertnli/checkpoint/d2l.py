"""D2L's format: vocab.json and pretrained.params, without a head's output layer."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from bertnli.checkpoint.files import Checkpoint, read_torch, write_vocab
from bertnli.data.files import atomic_path
from bertnli.encoder.config import BERTConfig
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab

_log = logging.getLogger("bertnli")


def read(folder: Path, num_heads: int | None) -> Checkpoint:
    """The sizes are those of the weights; `num_heads`, which no weight tells, is heads of 64 by default.

    Raises FileNotFoundError for a missing file, ValueError for a broken one.
    """
    state = read_torch(folder / "pretrained.params")
    vocab = Vocab.from_json(folder / "vocab.json")
    for name, dims in (("token_embedding.weight", 2), ("segment_embedding.weight", 2), ("pos_embedding", 3)):
        if f"encoder.{name}" not in state or state[f"encoder.{name}"].dim() != dims:
            raise ValueError(f"{folder / 'pretrained.params'} has no encoder.{name} of {dims} dimensions")
    vocab_size, width = state["encoder.token_embedding.weight"].shape
    layers = {int(m[1]) for name in state if (m := re.match(r"encoder\.blks\.(\d+)\.", name))}
    ffn = state.get("encoder.blks.0.ffn.dense1.weight")
    config = BERTConfig(
        vocab_size,
        num_hiddens=width,
        ffn_num_hiddens=width if ffn is None else len(ffn),
        num_heads=_default_num_heads(width) if num_heads is None else num_heads,
        num_layers=max(layers, default=-1) + 1,
        max_len=state["encoder.pos_embedding"].shape[1],
        num_segments=len(state["encoder.segment_embedding.weight"]),
        pretraining_heads="mlm.mlp.3.weight" in state,
    )
    return Checkpoint(folder, state, config, vocab)


def write(config: BERTConfig, state: dict[str, Tensor], folder: Path, tokenizer: Vocab | Tokenizer) -> None:
    """Raises ValueError for a model or tokenizer that the format cannot hold."""
    vocab = tokenizer.vocab if isinstance(tokenizer, WordTokenizer) else tokenizer
    if not isinstance(vocab, Vocab):
        raise ValueError("D2L's format needs a Vocab or WordTokenizer; save WordPiece models in another format")
    d2l = BERTConfig(config.vocab_size)
    for name in ("activation", "embedding_norm", "norm_eps"):
        if getattr(config, name) != getattr(d2l, name):
            raise ValueError(f"D2L's format has no place for {name}={getattr(config, name)!r}")
    if config.num_heads != _default_num_heads(config.num_hiddens):
        _log.warning("D2L's format does not hold num_heads=%d: give it to load_pretrained_model", config.num_heads)
    write_vocab(folder, vocab)
    with atomic_path(folder / "pretrained.params") as path:
        torch.save({name: value for name, value in state.items() if not name.startswith("output.")}, path)
    (folder / "config.json").unlink(missing_ok=True)  # another format's, which would be read instead


def _default_num_heads(width: int) -> int:
    """D2L's models have heads of 64."""
    return width // 64 if width % 64 == 0 else 1
