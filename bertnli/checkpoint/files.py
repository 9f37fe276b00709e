"""What every checkpoint format becomes when it is read, and the files that the formats share."""

from __future__ import annotations

import json
import os
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bertnli.data import download as hub
from bertnli.data.files import atomic_path
from bertnli.encoder.config import BERTConfig
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer


@dataclass
class Checkpoint:
    """A folder of any format, read.

    folder          where it was read from, for messages
    state           parameters by D2L's names
    vocab           the Vocab of D2L's checkpoints, else the tokenizer
    task            of the output layer, if `state` has one
    label_names     one name a column of the output layer
    head_dropout    before the output layer; the config's dropout by default
    head_settings   the head's `settings`
    """

    folder: Path
    state: dict[str, Tensor]
    config: BERTConfig
    vocab: Vocab | Tokenizer
    task: str = "classification"
    label_names: tuple[str, ...] | None = None
    head_dropout: float | None = None
    head_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer:
        return WordTokenizer(self.vocab) if isinstance(self.vocab, Vocab) else self.vocab


def find_folder(name: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> Path:
    """The checkpoint's folder: `name` itself, or where a name of DATA_HUB or of the Hugging Face hub was downloaded.

    folder: where downloads go. Raises FileNotFoundError if `name` is none of these.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if str(name) in hub.DATA_HUB:
        return Path(hub.download_extract(str(name), into=folder))
    if path.is_absolute() or str(name).startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        raise FileNotFoundError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download  # an extra
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise FileNotFoundError(
            f"{name}: no such folder, and not bert.small or bert.base; to download it from the Hugging Face hub, "
            "pip install huggingface_hub"
        ) from None
    patterns = ["config.json", "*.safetensors", "pytorch_model.bin", "tokenizer*.json", "vocab.txt"]
    try:
        cache = None if folder is None else Path(folder)
        return Path(snapshot_download(str(name), allow_patterns=patterns, cache_dir=cache))
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: no such folder, not bert.small or bert.base, and downloading it from the Hugging Face hub "
            f"failed: {error}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


def write_json(path: Path, value: object) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a dict of tensors")
    return dict(state)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return dict(safetensors.torch.load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})


def write_vocab(folder: Path, tokenizer: Vocab | Tokenizer) -> None:
    """Write vocab.json for words, vocab.txt for WordPiece. Raises TypeError for another tokenizer."""
    vocab = tokenizer.vocab if isinstance(tokenizer, WordTokenizer) else tokenizer
    if not isinstance(vocab, (Vocab, WordPieceTokenizer)):
        raise TypeError(f"a {type(vocab).__name__} cannot be saved; give a Vocab, WordTokenizer or WordPieceTokenizer")
    vocab.save(folder / ("vocab.json" if isinstance(vocab, Vocab) else "vocab.txt"))
