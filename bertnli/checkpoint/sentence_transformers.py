"""What sentence-transformers adds to a Hugging Face folder: modules, and the activation of a CrossEncoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertnli.checkpoint.files import read_object
from bertnli.data.files import read_json

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
FILES = (_MODULES, _SETTINGS, "sentence_bert_config.json")
_ACTIVATIONS = {"identity": "torch.nn.modules.linear.Identity", "sigmoid": "torch.nn.modules.activation.Sigmoid"}


def modules(folder: Path) -> list[tuple[str, Path]]:
    """The kind ("Transformer", "Pooling", ...) and folder of each module of modules.json; none without that file.

    Raises ValueError where the file is not a list of modules, or the first is no Transformer.
    """
    path = folder / _MODULES
    if not path.exists():
        return []
    entries = read_json(path)
    try:
        found = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected a list of objects with type and path: {error!r}") from None
    for kind, name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path}: the path of {kind} is {name!r}; expected one within the folder")
    if not found or found[0][0] != "Transformer":
        raise ValueError(f"{path}: the first module is {found[0][0] if found else 'missing'}; expected a Transformer")
    return [(kind, folder / name) for kind, name in found]


def activation(folder: Path, settings: dict[str, Any], columns: int) -> str | None:
    """The activation of a CrossEncoder's outputs, "identity" or "sigmoid"; None if the folder is not a CrossEncoder's.

    settings  of config.json
    columns   outputs; several are logits of classes, which have no activation of their own

    Raises ValueError naming file and key for another activation of one output.
    """
    path = folder / _SETTINGS
    extra = read_object(path) if path.exists() else {}
    places = (
        (path, "activation_fn", extra),
        (folder / "config.json", "sentence_transformers.activation_fn", settings.get("sentence_transformers") or {}),
        (folder / "config.json", "sbert_ce_default_activation_function", settings),
    )
    for where, key, values in places:
        name = values.get(key.rpartition(".")[2]) if isinstance(values, dict) else None
        if name is None:
            continue
        kind = str(name).rpartition(".")[2].lower()
        if kind in _ACTIVATIONS:
            return kind
        if columns == 1:
            raise ValueError(f"{where}: {key} is {name!r}; only Identity and Sigmoid can be computed")
    return "sigmoid" if extra.get("model_type") == "CrossEncoder" and columns == 1 else None


def config(kind: str) -> dict[str, Any]:
    """The keys of config.json that tell CrossEncoder the activation of its output."""
    return {"sentence_transformers": {"activation_fn": _ACTIVATIONS[kind]}}
