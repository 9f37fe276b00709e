"""What every checkpoint format becomes when it is read, and the files that the formats share."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertnli.data.files import atomic_paths, read_json, writing
from bertnli.data.tensors import read_tensors, write_tensors
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.shapes import shapes_only
from bertnli.text.tokenizer import Tokenizer, WordTokenizer, as_tokenizer
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
    provenance      for the model card; empty where the format does not hold it
    """

    folder: Path
    state: dict[str, Tensor]
    config: BERTConfig
    vocab: Vocab | Tokenizer
    task: str = "classification"
    label_names: tuple[str, ...] | None = None
    head_dropout: float | None = None
    head_settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer:
        return as_tokenizer(self.vocab)


def read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors by name. Raises ValueError for a file that is none, or whose contents are larger than the file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it holds more bytes than it has")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch and pickle raise any kind
        raise ValueError(f"{path} is not a file of tensors: {error}") from error
    if isinstance(state, dict) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = [value for value in state.values() if isinstance(value, dict) and _are_tensors(value.values())]
        state = inner[0] if len(inner) == 1 else state  # {"state_dict": ..., "epoch": ...}
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} must hold a dict of tensors by name")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}; expected a tensor")
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} has shape {list(value.shape)} without as many values")
    return _without_wrappers(dict(state), path)


def _are_tensors(values: Collection[Any]) -> bool:
    return len(values) > 0 and all(isinstance(value, Tensor) for value in values)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors by name, and the fingerprint for `check_fingerprint`. Errors: see `read_tensors`."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    tensors, metadata = read_tensors(path)
    return _without_wrappers(tensors, path), metadata.get("bertnli.fingerprint")


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path, str | None]:
    """The tensors of a Hugging Face folder, be they in one file or in shards; that file or the shards' index; and the
    fingerprint for `check_fingerprint`, which shards do not have.

    Raises FileNotFoundError for a missing file, ValueError for a broken one.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor pytorch_model.bin, be it whole or in shards"
        )
    if path.suffix != ".json":
        state, mark = _read_tensors(path)
        return state, path, mark
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path}: weight_map must be an object of each parameter's file; found {places!r}")
    state = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"{path}: weight_map names the file {name!r}; expected one in the same folder")
        shard, _ = _read_tensors(folder / name)
        if twice := state.keys() & shard.keys():
            raise ValueError(f"{folder / name} has {min(twice)}, which another shard has too")
        state.update(shard)
    if lacks := sorted(places.keys() - state.keys()):
        raise ValueError(f"{path}: weight_map has {lacks[0]}, which is not in {places[lacks[0]]}")
    return state, path, None


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    return read_safetensors(path) if path.suffix == ".safetensors" else (read_torch(path), None)


def _without_wrappers(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The names without the prefixes of DataParallel and torch.compile."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
        if plain in result:
            raise ValueError(
                f"{path} has {plain} twice, once with the prefix {name.removesuffix(plain) or 'module.'!r}"
            )
        result[plain] = value
    return result


# The dimension of a parameter that each size of the configuration must equal.
_SIZES = (
    ("vocab_size", "encoder.token_embedding.weight", 0, 2),
    ("embedding_width", "encoder.token_embedding.weight", 1, 2),
    ("num_segments", "encoder.segment_embedding.weight", 0, 2),
    ("max_len", "encoder.pos_embedding", 1, 3),
    ("ffn_num_hiddens", "encoder.blks.0.ffn.dense1.weight", 0, 2),
)
_OURS = ("encoder.", "hidden.", "mlm.", "nsp.", "output.")


def num_layers(state: dict[str, Tensor]) -> int:
    """The number of encoder blocks that have parameters."""
    return len({match[1] for name in state if (match := re.match(r"encoder\.blks\.([0-9]+)\.", name))})


def check_sizes(config: BERTConfig, state: dict[str, Tensor], where: Path, keys: Mapping[str, str]) -> None:
    """Compare the configuration and the tensors before a module is built.

    where    the file of the configuration
    keys     the names there of the config's fields, where they differ

    Raises ValueError naming file and key, or parameter. Missing or unknown encoder parameters are errors.
    """
    for name, value in state.items():
        if name.startswith(_OURS) and not value.is_floating_point():
            raise ValueError(f"{where.parent}: {name} is of {value.dtype}; expected floating-point weights")
    layers = num_layers(state)
    if not layers:
        raise ValueError(
            f"{where.parent} has no encoder layers; its parameters are {', '.join(sorted(state)[:3])}, ..."
        )
    if config.num_layers != layers:
        raise ValueError(
            f"{where}: {keys.get('num_layers', 'num_layers')} is {config.num_layers}, "
            f"but the weights have {layers} layers"
        )
    for field_name, name, dim, dims in _SIZES:
        if name not in state:
            continue  # counted below
        if field_name == "embedding_width":
            field_name = "num_hiddens" if config.embedding_size is None else "embedding_size"
        shape = list(state[name].shape)
        if len(shape) != dims or shape[dim] != getattr(config, field_name):
            raise ValueError(
                f"{where}: {keys.get(field_name, field_name)} is {getattr(config, field_name)}, "
                f"but {name} in {where.parent} has shape {shape}"
            )
    with shapes_only():
        skeleton = BERTModel(config)
    parameters = skeleton.state_dict()
    if lacks := sorted(name for name in parameters.keys() - state.keys() if name.startswith("encoder.")):
        raise ValueError(f"{where.parent} lacks {lacks[0]} ({len(lacks)} encoder parameters are missing)")
    if surplus := sorted(name for name in state.keys() - parameters.keys() if name.startswith("encoder.")):
        raise ValueError(f"{where.parent} has {surplus[0]}, for which its config has no place")
    for name, parameter in parameters.items():
        if name in state and state[name].shape != parameter.shape:
            raise ValueError(
                f"{name} in {where.parent} has shape {list(state[name].shape)}; the model needs {list(parameter.shape)}"
            )


def num_columns(state: dict[str, Tensor], where: Path) -> int:
    """The width of the output layer; 0 if there is none. Raises ValueError naming the parameter."""
    if "output.weight" not in state:
        return 0
    shape = list(state["output.weight"].shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{where.parent}: output.weight has shape {shape}; expected [labels, hidden units]")
    return shape[0]


def check_labels(labels: Any, columns: int, where: str) -> tuple[str, ...] | None:
    """The names of the output layer's columns. Raises ValueError where they are not as many different strings."""
    if labels is None or not columns:
        return None
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ValueError(f"{where} must be a list of strings; found {labels!r}")
    if len(labels) != columns or len(set(labels)) < columns:
        raise ValueError(f"{where} must be {columns} different names, one a column of the output layer; found {labels}")
    return tuple(labels)


def check_dropout(value: Any, where: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1):
        raise ValueError(f"{where} must be a number from 0 to below 1; found {value!r}")
    return value


# ---- writing: all files of a checkpoint, or none ---------------------------------------------------------------------

Writer = Callable[[Path], object]


def write_files(folder: Path, files: Mapping[str, Writer], remove: Sequence[str] = ()) -> None:
    """Write the files by their writers and let them take their names together: see `atomic_paths`.

    Raises OSError naming the file that cannot be written.
    """
    with atomic_paths(folder, list(files), remove) as temporaries:
        for (name, write), temporary in zip(files.items(), temporaries, strict=True):
            with writing(folder / name):
                write(temporary)


def write_with_weights(
    folder: Path,
    state: dict[str, Tensor],
    settings: object,
    tokenizer: Vocab | Tokenizer,
    others: Mapping[str, object] | None = None,
    remove: Sequence[str] = (),
) -> None:
    """Write model.safetensors, other JSON files, config.json and the vocabulary, in this order of names.

    The weights hold a fingerprint of configuration and vocabulary, and they take their name first: if the process is
    killed before the last file has its name, `check_fingerprint` finds that the files do not belong together.
    """
    name, vocab = vocab_file(tokenizer)
    content = {key: to_json(value) for key, value in {**(others or {}), "config.json": settings}.items()}
    text = {**content, name: vocab.to_text()}
    mark = _fingerprint(text["config.json"].encode(), text[name].encode(), tokenizer)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    metadata = {"format": "pt", "bertnli.fingerprint": mark}
    files: dict[str, Writer] = {"model.safetensors": lambda path: write_tensors(path, tensors, metadata)}
    for key, value in text.items():
        files[key] = partial(write_text, value)
    write_files(folder, files, remove)


def check_fingerprint(folder: Path, tokenizer: Vocab | Tokenizer, mark: str | None) -> None:
    """Raise ValueError if the weights were saved with another configuration or vocabulary.

    mark    the fingerprint in the weights; None if another program wrote them
    """
    if mark is None:
        return
    name, vocab = vocab_file(tokenizer)
    text, path = vocab.to_text().encode(), folder / name
    same = path.exists() and path.read_bytes() == text  # what was read may be tokenizer.json
    if not same or mark != _fingerprint((folder / "config.json").read_bytes(), text, tokenizer):
        raise ValueError(
            f"{folder}: config.json and {name} are not of the same save as model.safetensors; a save was interrupted, "
            "or a file was edited or copied. Save the checkpoint again"
        )


def _fingerprint(config: bytes, vocab: bytes, tokenizer: Vocab | Tokenizer) -> str:
    digest = hashlib.sha256()
    for part in (config, vocab, str(getattr(tokenizer, "lowercase", None)).encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def vocab_file(tokenizer: Vocab | Tokenizer) -> tuple[str, Vocab | WordPieceTokenizer]:
    """vocab.json for words, vocab.txt for WordPiece, and what is in it. Raises TypeError for another tokenizer."""
    vocab = tokenizer.vocab if isinstance(tokenizer, WordTokenizer) else tokenizer
    if not isinstance(vocab, (Vocab, WordPieceTokenizer)):
        raise TypeError(
            f"tokenizer must be a Vocab, WordTokenizer or WordPieceTokenizer to be saved; found {vocab!r:.60}"
        )
    return ("vocab.json" if isinstance(vocab, Vocab) else "vocab.txt"), vocab


def to_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
