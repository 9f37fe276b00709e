"""bertnli's format: config.json, model.safetensors, and vocab.json or vocab.txt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from bertnli.checkpoint.card import check_provenance
from bertnli.checkpoint.files import (
    Checkpoint,
    check_dropout,
    check_fingerprint,
    check_labels,
    check_sizes,
    num_columns,
    read_object,
    read_safetensors,
    write_with_weights,
)
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer, read_vocab_txt

_VERSION = 1


def read(folder: Path) -> Checkpoint:
    """Raises FileNotFoundError for a missing file, ValueError naming the file and key for a broken one."""
    where = folder / "config.json"
    settings = read_object(where)
    version = settings.get("format_version")
    if type(version) is not int or version != _VERSION:
        raise ValueError(f"{where}: format_version is {version!r}; this bertnli reads {_VERSION}. Update bertnli")
    model, tokenizer = _part(settings, "model", where), _part(settings, "tokenizer", where)
    try:
        config = BERTConfig(**model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: model: {error}") from None
    vocab = _read_vocab(folder, tokenizer, where)
    state, mark = read_safetensors(folder / "model.safetensors")
    check_sizes(config, state, where, {})
    if not isinstance(settings.get("task", ""), str):
        raise ValueError(f"{where}: task must be a string; found {settings['task']!r}")
    checkpoint = Checkpoint(
        folder,
        state,
        config,
        vocab,
        task=settings.get("task", "classification"),
        label_names=check_labels(settings.get("labels"), num_columns(state, where), f"{where}: labels"),
        head_dropout=check_dropout(settings.get("classifier_dropout"), f"{where}: classifier_dropout"),
        provenance=check_provenance(settings.get("provenance"), f"{where}: provenance"),
        head_settings=_part(settings, "settings", where) if settings.get("settings") else {},
    )
    check_fingerprint(folder, checkpoint.tokenizer, mark)
    return checkpoint


def _part(settings: dict[str, Any], key: str, where: Path) -> dict[str, Any]:
    if not isinstance(settings.get(key), dict):
        raise ValueError(f"{where}: {key} must be an object; found {settings.get(key)!r}")
    return dict(settings[key])


def _read_vocab(folder: Path, options: dict[str, Any], where: Path) -> Vocab | Tokenizer:
    kind = options.get("type")
    if kind == "words":
        return Vocab.from_json(folder / "vocab.json")
    if kind != "wordpiece":
        raise ValueError(f'{where}: tokenizer.type is {kind!r}; expected "words" or "wordpiece"')
    for key in ("lowercase", "split_special_tokens"):
        if not isinstance(options.get(key), bool):
            raise ValueError(f"{where}: tokenizer.{key} must be true or false; found {options.get(key)!r}")
    return read_vocab_txt(folder / "vocab.txt", options["lowercase"], options["split_special_tokens"])


def write(model: Head | BERTModel, state: dict[str, Tensor], folder: Path, tokenizer: Vocab | Tokenizer) -> None:
    write_with_weights(folder, state, config(model, tokenizer), tokenizer)


def config(model: Head | BERTModel, tokenizer: Vocab | Tokenizer) -> dict[str, Any]:
    """The content of config.json."""
    settings: dict[str, Any] = {
        "format": "bertnli",
        "format_version": _VERSION,
        "model": dataclasses.asdict(model.config),
        "tokenizer": {"type": "words"},
    }
    if isinstance(tokenizer, WordPieceTokenizer):
        settings["tokenizer"] = {
            "type": "wordpiece",
            "lowercase": tokenizer.lowercase,
            "split_special_tokens": tokenizer.split_special_tokens,
        }
    if model.provenance:
        settings["provenance"] = model.provenance
    if isinstance(model, Head):
        settings["task"], settings["settings"] = model.task, model.settings
        settings["labels"] = None if model.label_names is None else list(model.label_names)
        settings["classifier_dropout"] = model.dropout.p
    return settings
