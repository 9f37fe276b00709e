"""What sentence-transformers adds to a Hugging Face folder: modules that make sentence vectors, and the activation of a
CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertnli.checkpoint.files import Checkpoint, read_object, read_weights
from bertnli.data.files import read_json
from bertnli.tasks.embedding import ACTIVATIONS

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
_TEXTS = tuple(
    f"sentence_{kind}_config.json"  # in the order in which they are looked for
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
FILES = (_MODULES, _SETTINGS, *_TEXTS)
# In _TEXTS: arguments of transformers' tokenizer and configuration.
_KWARGS = ("tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_POOLING = {  # keys of older versions
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_CROSS_ENCODER = {"identity": "torch.nn.modules.linear.Identity", "sigmoid": "torch.nn.modules.activation.Sigmoid"}


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


def add_embedding(checkpoint: Checkpoint, folder: Path) -> None:
    """Make the checkpoint of an encoder one of sentence vectors, by the modules of `folder` that follow it.

    Raises ValueError naming file and key for modules that a BERTEmbedder does not have.
    """
    (_, encoder), *others = modules(folder)
    kinds = [kind for kind, _ in others]
    if kinds not in (["Pooling", *rest] for rest in ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"])):
        raise ValueError(
            f"{folder / _MODULES}: after the Transformer come {', '.join(kinds)}; only Pooling, then at most one Dense "
            "and Normalize can be computed. load_pretrained_model loads the encoder alone"
        )
    checkpoint.task = "embedding"
    settings = checkpoint.head_settings
    settings |= {"pooling": _pooling(others[0][1] / "config.json"), "normalize": "Normalize" in kinds}
    if "Dense" in kinds:
        _add_dense(checkpoint, others[1][1])
    if (path := next((encoder / name for name in _TEXTS if (encoder / name).exists()), None)) is not None:
        texts = read_object(path)
        for key in _KWARGS:
            if texts.get(key):
                raise ValueError(
                    f"{path} has {key} {texts[key]}, which are not read; change the files that they change"
                )
        longest = texts.get("max_seq_length")
        if longest is not None:
            if type(longest) is not int or longest < 2:
                raise ValueError(f"{path}: max_seq_length must be an integer of at least 2; found {longest!r}")
            settings["max_len"] = min(longest, checkpoint.config.max_len)
        if texts.get("do_lower_case") and not getattr(checkpoint.tokenizer, "lowercase", True):
            raise ValueError(f"{path} has do_lower_case true, and the tokenizer keeps upper case")
    path = folder / _SETTINGS
    extra = read_object(path) if path.exists() else {}
    prompts, name = extra.get("prompts") or {}, extra.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(f"{path}: prompts must be an object of texts by name; found {prompts!r}")
    if name is not None and name not in prompts:
        raise ValueError(f"{path}: default_prompt_name is {name!r}; prompts has {', '.join(prompts) or 'none'}")
    settings |= {"prompts": prompts, "default_prompt_name": name} if prompts else {}
    if (width := extra.get("truncate_dim")) is not None:
        if type(width) is not int or width < 1:
            raise ValueError(f"{path}: truncate_dim must be a positive integer; found {width!r}")
        settings["truncate_dim"] = width


def _pooling(path: Path) -> str:
    settings = read_object(path)
    kinds = settings.get("pooling_mode", [kind for key, kind in _POOLING.items() if settings.get(key)] or "mean")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or len(kinds) != 1 or kinds[0] not in _POOLING.values():
        raise ValueError(f"{path}: pooling is {kinds!r}; expected one of {', '.join(_POOLING.values())}")
    if settings.get("include_prompt") is False:
        raise ValueError(f"{path} has include_prompt false; vectors are pooled over all tokens")
    return str(kinds[0])


def _add_dense(checkpoint: Checkpoint, folder: Path) -> None:
    path = folder / "config.json"
    settings = read_object(path)
    kind = str(settings.get("activation_function", "Tanh")).rpartition(".")[2].lower()
    if kind not in ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function is {settings['activation_function']!r}; known: {', '.join(ACTIVATIONS)}"
        )
    if settings.get("use_residual"):
        raise ValueError(f"{path} has use_residual true; a dense layer has no residual here")
    state, where, _ = read_weights(folder)
    width = checkpoint.config.num_hiddens
    weight = state.get("linear.weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != width:
        found = "nothing" if weight is None else f"shape {list(weight.shape)}"
        raise ValueError(f"{where}: linear.weight must have shape [width, {width}]; found {found}")
    checkpoint.state["output.weight"] = weight
    checkpoint.state["output.bias"] = state.get("linear.bias", torch.zeros(len(weight)))
    checkpoint.head_settings["activation"] = kind


def _activation_name(folder: Path, settings: dict[str, Any]) -> tuple[str, str | None]:
    """Where a CrossEncoder's folder says the class of its activation, as file and key, and that class; else None.

    settings  of config.json
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
        if name is not None:
            return f"{where}: {key}", str(name)
    return "", "torch.nn.Sigmoid" if extra.get("model_type") == "CrossEncoder" else None


def activation(folder: Path, settings: dict[str, Any], columns: int) -> str | None:
    """The activation of a CrossEncoder's outputs, "identity" or "sigmoid"; None if the folder is not a CrossEncoder's.

    settings  of config.json
    columns   outputs; several are logits of classes, which have no activation of their own

    Raises ValueError naming file and key for another activation of one output.
    """
    where, name = _activation_name(folder, settings)
    kind = None if name is None or (columns > 1 and not where) else name.rpartition(".")[2].lower()
    if kind is not None and kind not in _CROSS_ENCODER:
        if columns == 1:
            raise ValueError(f"{where} is {name!r}; only Identity and Sigmoid can be computed")
        return None
    return kind


def cross_encoder_activation(folder: Path, columns: int) -> Callable[[Tensor], Tensor]:
    """What sentence-transformers' CrossEncoder does with the outputs of a folder: the activation that the folder names,
    else a sigmoid of one output, nothing with several.

    Raises ValueError naming file and key for a class that torch.nn does not have.
    """
    folder = next((inner for _, inner in modules(folder)), folder)
    settings = read_object(folder / "config.json")
    if settings.get("format") == "bertnli":
        kind = (settings.get("settings") or {}).get("activation", "identity")
        return torch.sigmoid if kind == "sigmoid" else nn.Identity()
    where, name = _activation_name(folder, settings)
    if name is None or not where:
        return torch.sigmoid if columns == 1 else nn.Identity()
    kind = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"{where} is {name!r}; expected a class of torch.nn")
    return kind()


def embedding_files(settings: dict[str, Any], width: int, max_len: int) -> dict[str, Any]:
    """The JSON files of a SentenceTransformer beside its encoder's: of the `settings` of a BERTEmbedder without a dense
    layer."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | (
        {"2_Normalize": "Normalize"} if settings["normalize"] else {}
    )
    pooling = {"word_embedding_dimension": width} | {key: kind == settings["pooling"] for key, kind in _POOLING.items()}
    return {
        "1_Pooling/config.json": pooling,
        _MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ],
        _SETTINGS: {"prompts": {}, "default_prompt_name": None}
        | {key: settings[key] for key in ("prompts", "default_prompt_name", "truncate_dim") if key in settings},
        _TEXTS[0]: {"max_seq_length": max_len, "do_lower_case": False},
    }


def config(kind: str) -> dict[str, Any]:
    """The keys of config.json that tell CrossEncoder the activation of its output."""
    return {"sentence_transformers": {"activation_fn": _CROSS_ENCODER[kind]}}
