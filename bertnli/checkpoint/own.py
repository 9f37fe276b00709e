"""bertnli's format: config.json, model.safetensors, and vocab.json or vocab.txt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from bertnli.checkpoint.files import (
    Checkpoint,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
    write_vocab,
)
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer


def read(folder: Path) -> Checkpoint:
    """Raises FileNotFoundError for a missing file, ValueError naming the file and key for a broken one."""
    settings = read_json(folder / "config.json")
    known = {f.name for f in dataclasses.fields(BERTConfig)}
    try:
        config = BERTConfig(**{name: value for name, value in settings["model"].items() if name in known})
        vocab: Vocab | Tokenizer
        if settings["tokenizer"]["type"] == "words":
            vocab = Vocab.from_json(folder / "vocab.json")
        else:
            options = {name: settings["tokenizer"][name] for name in ("lowercase", "split_special_tokens")}
            vocab = WordPieceTokenizer.from_file(folder / "vocab.txt", **options)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} lacks or misuses {error}") from error
    labels = settings.get("labels")
    return Checkpoint(
        folder,
        read_safetensors(folder / "model.safetensors"),
        config,
        vocab,
        task=settings.get("task", "classification"),
        label_names=None if labels is None else tuple(labels),
        head_dropout=settings.get("classifier_dropout"),
        head_settings=settings.get("settings") or {},
    )


def write(model: Head | BERTModel, state: dict[str, Tensor], folder: Path, tokenizer: Vocab | Tokenizer) -> None:
    settings: dict[str, Any] = {
        "format": "bertnli",
        "format_version": 1,
        "model": dataclasses.asdict(model.config),
        "tokenizer": {"type": "words"},
    }
    if isinstance(tokenizer, WordPieceTokenizer):
        settings["tokenizer"] = {
            "type": "wordpiece",
            "lowercase": tokenizer.lowercase,
            "split_special_tokens": tokenizer.split_special_tokens,
        }
    if isinstance(model, Head):
        settings["task"], settings["settings"] = model.task, model.settings
        settings["labels"] = None if model.label_names is None else list(model.label_names)
        settings["classifier_dropout"] = model.dropout.p
    write_vocab(folder, tokenizer)
    write_json(folder / "config.json", settings)
    write_safetensors(folder / "model.safetensors", state)
