"""D2L's format: vocab.json and pretrained.params, without a head's output layer."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from bertnli.checkpoint.files import Checkpoint, Writer, check_sizes, num_layers, read_torch, write_files
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
    ffn = state.get("encoder.blks.0.ffn.dense1.weight")
    config = BERTConfig(
        vocab_size,
        num_hiddens=width,
        ffn_num_hiddens=width if ffn is None else len(ffn),
        num_heads=_default_num_heads(width) if num_heads is None else num_heads,
        num_layers=num_layers(state),
        max_len=state["encoder.pos_embedding"].shape[1],
        num_segments=len(state["encoder.segment_embedding.weight"]),
        pretraining_heads="mlm.mlp.3.weight" in state,
    )
    check_sizes(config, state, folder / "pretrained.params", {})
    if len(vocab) != vocab_size:
        raise ValueError(f"{folder} has a vocabulary of {len(vocab)} tokens, but a model of vocab_size {vocab_size}")
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
    if len(vocab) != config.vocab_size:
        raise ValueError(
            f"D2L's format needs a vocabulary of vocab_size={config.vocab_size} tokens; found {len(vocab)}"
        )
    tensors = {name: value for name, value in state.items() if not name.startswith("output.")}
    files: dict[str, Writer] = {"pretrained.params": lambda path: torch.save(tensors, path)}
    files["vocab.json"] = lambda path: path.write_text(vocab.to_text(), encoding="utf-8", newline="\n")
    # The old vocabulary goes first, so that a folder of an interrupted save does not load. The configuration is
    # another format's, which would be read instead.
    write_files(folder, files, remove=("vocab.json", "config.json"))


def _default_num_heads(width: int) -> int:
    """D2L's models have heads of 64."""
    return width // 64 if width % 64 == 0 else 1
