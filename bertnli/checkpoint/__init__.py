"""Checkpoints in and out: the book's, Hugging Face's, and our own.

    book            vocab.json  pretrained.params
    Hugging Face    config.json  model.safetensors or pytorch_model.bin  tokenizer.json or vocab.txt
    ours            config.json  model.safetensors  vocab.json or vocab.txt

All become one thing first: a state dict in D2L's names, a BERTConfig, and a vocabulary or tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bertnli.data import download as hub
from bertnli.data.files import atomic_path
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.tasks.base import HEADS, Head
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

_log = logging.getLogger("bertnli")

# Hugging Face's names of parameters, in order, and D2L's. {i} is the layer.
_NAMES = {
    "embeddings.word_embeddings": "encoder.token_embedding",
    "embeddings.token_type_embeddings": "encoder.segment_embedding",
    "embeddings.position_embeddings.weight": "encoder.pos_embedding",
    "embeddings.LayerNorm": "encoder.embedding_norm",
    "encoder.layer.{i}.attention.self.query": "encoder.blks.{i}.attention.W_q",
    "encoder.layer.{i}.attention.self.key": "encoder.blks.{i}.attention.W_k",
    "encoder.layer.{i}.attention.self.value": "encoder.blks.{i}.attention.W_v",
    "encoder.layer.{i}.attention.output.dense": "encoder.blks.{i}.attention.W_o",
    "encoder.layer.{i}.attention.output.LayerNorm": "encoder.blks.{i}.addnorm1.ln",
    "encoder.layer.{i}.intermediate.dense": "encoder.blks.{i}.ffn.dense1",
    "encoder.layer.{i}.output.dense": "encoder.blks.{i}.ffn.dense2",
    "encoder.layer.{i}.output.LayerNorm": "encoder.blks.{i}.addnorm2.ln",
    "pooler.dense": "hidden.0",
    "cls.predictions.transform.dense": "mlm.mlp.0",
    "cls.predictions.transform.LayerNorm": "mlm.mlp.2",
    "cls.predictions.decoder": "mlm.mlp.3",
    "cls.seq_relationship": "nsp.output",
    "classifier": "output",
    "qa_outputs": "output",
}
# The class of transformers that has each task's head.
_ARCHITECTURES = {
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "tagging": "BertForTokenClassification",
    "qa": "BertForQuestionAnswering",
}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass
class _Checkpoint:
    """What every kind of folder becomes."""

    folder: Path
    state: dict[str, Tensor]  # D2L's names
    config: BERTConfig
    vocab: Vocab | Tokenizer
    task: str = "classification"  # of the output layer, where there is one
    label_names: tuple[str, ...] | None = None
    head_dropout: float | None = None
    head_settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer:
        return WordTokenizer(self.vocab) if isinstance(self.vocab, Vocab) else self.vocab


# ---- public ---------------------------------------------------------------------------------------------------------


def load_pretrained_model(
    pretrained_model: str | os.PathLike[str],
    num_hiddens: int | None = None,
    ffn_num_hiddens: int | None = None,
    num_heads: int | None = None,
    num_layers: int | None = None,
    dropout: float | None = None,
    max_len: int | None = None,
    devices: Sequence[torch.device | str] | None = None,
    *,
    num_blks: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> tuple[BERTModel, Vocab | Tokenizer]:
    """The chapter's function: a pretrained BERT and its vocabulary.

    pretrained_model    "bert.small", "bert.base" or another name of DATA_HUB (downloaded to `folder`), a folder of any
                        of the three kinds above, or a name on the Hugging Face hub
    num_hiddens ... max_len   as in the book; None takes what the checkpoint has. Sizes that the weights contradict
                        raise ValueError. `num_heads` is not in the book's files: None means heads of 64
    dropout             None means the checkpoint's, or the book's 0.2 where it has none
    devices             the model is moved to the first

    Returns the BERTModel, and a Vocab (book) or a WordPieceTokenizer (Hugging Face).
    Raises FileNotFoundError for a missing file, ValueError for a broken or contradicting one.

    Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT", `load_pretrained_model`.
    """
    checkpoint = _read(_find(pretrained_model, folder), num_heads)
    for name, value, witness in (
        ("num_heads", num_heads, "num_heads"),
        ("num_hiddens", num_hiddens, "encoder.token_embedding.weight"),
        ("ffn_num_hiddens", ffn_num_hiddens, "encoder.blks.0.ffn.dense1.weight"),
        ("num_layers", num_layers if num_blks is None else num_blks, "encoder.blks"),
        ("max_len", max_len, "encoder.pos_embedding"),
    ):
        found = getattr(checkpoint.config, name)
        if value is not None and value != found:
            raise ValueError(f"{name}={value}, but {witness} in {checkpoint.folder} has {found}")
    bert = BERTModel(_with_dropout(checkpoint.config, dropout))
    _load_state(bert, checkpoint, skip=("output.",))
    return bert.to(devices[0]) if devices else bert, checkpoint.vocab


def from_pretrained(
    name_or_dir: str | os.PathLike[str],
    *,
    dropout: float | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> tuple[Head | BERTModel, Tokenizer]:
    """A model in eval mode with its tokenizer: where the checkpoint has an output layer, the head of its task
    (a BERTClassifier, say; a head of your own must be defined before), else a BERTModel. Arguments and errors as for
    `load_pretrained_model`.
    """
    checkpoint = _read(_find(name_or_dir, folder))
    bert = BERTModel(_with_dropout(checkpoint.config, dropout))
    model: Head | BERTModel = bert
    if "output.weight" in checkpoint.state:
        if checkpoint.task not in HEADS:
            raise ValueError(
                f"{checkpoint.folder} is of the task {checkpoint.task!r}, and no head of that task is defined; "
                f"known: {', '.join(HEADS)}"
            )
        num_labels = len(checkpoint.state["output.weight"])
        before_output = checkpoint.head_dropout if dropout is None else None
        model = HEADS[checkpoint.task](bert, num_labels, checkpoint.label_names, before_output)
        model.settings.update(checkpoint.head_settings)
    _load_state(model, checkpoint)
    return model.eval(), checkpoint.tokenizer


def save_pretrained(
    model: Head | BERTModel,
    folder: str | os.PathLike[str],
    tokenizer: Vocab | Tokenizer,
    *,
    format: str = "bertnli",
) -> None:
    """Write a checkpoint folder, each file atomically, the weights last.

    format    "bertnli"; "huggingface" (original variant and WordPiece only); or "d2l" (vocab.json and
              pretrained.params: the encoder, `hidden` and pretraining heads, without a head's output layer)

    Raises ValueError for a model that the format cannot hold.
    """
    folder = Path(folder)
    state = _state_of(model)
    if len(tokenizer) != model.config.vocab_size:
        raise ValueError(f"a vocabulary of {len(tokenizer)} tokens for a model of vocab_size {model.config.vocab_size}")
    if format == "bertnli":
        _save_vocab(tokenizer, folder)
        _write_json(folder / "config.json", _config_json(model, tokenizer))
        _save_safetensors(state, folder / "model.safetensors")
    elif format == "huggingface":
        config = _huggingface_config(model, tokenizer)
        _save_vocab(tokenizer, folder)
        _write_json(folder / "config.json", config)
        _write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": getattr(tokenizer, "lowercase", True),
                "model_max_length": model.config.max_len,
            },
        )
        (folder / "tokenizer.json").unlink(missing_ok=True)  # another model's, which would be read instead
        if isinstance(model, Head) and not model.pooled:  # Hugging Face's has no pooler there
            state = {name: value for name, value in state.items() if not name.startswith("hidden.")}
        theirs = _to_huggingface(
            state, "qa_outputs" if isinstance(model, Head) and model.task == "qa" else "classifier"
        )
        _save_safetensors(theirs, folder / "model.safetensors")
    elif format == "d2l":
        vocab = tokenizer.vocab if isinstance(tokenizer, WordTokenizer) else tokenizer
        if not isinstance(vocab, Vocab):
            raise ValueError(
                "the book's format needs a Vocab or WordTokenizer; save WordPiece models in another format"
            )
        mine = model.config
        book = BERTConfig(mine.vocab_size)
        for name in ("activation", "embedding_norm", "norm_eps"):
            if getattr(mine, name) != getattr(book, name):
                raise ValueError(f"the book's format has no place for {name}={getattr(mine, name)!r}")
        if mine.num_heads != _book_heads(mine.num_hiddens):
            _log.warning("the book's format does not say num_heads=%d: give it when loading", mine.num_heads)
        _save_vocab(vocab, folder)
        with atomic_path(folder / "pretrained.params") as path:
            torch.save({name: value for name, value in state.items() if not name.startswith("output.")}, path)
        (folder / "config.json").unlink(missing_ok=True)  # another format's, which would be read instead
    else:
        raise ValueError(f'format must be "bertnli", "huggingface" or "d2l"; found {format!r}')


def _with_dropout(config: BERTConfig, dropout: float | None) -> BERTConfig:
    return config if dropout is None else dataclasses.replace(config, dropout=dropout, attention_dropout=None)


# ---- finding --------------------------------------------------------------------------------------------------------


def _find(name: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if str(name) in hub.DATA_HUB:
        return Path(hub.download_extract(str(name), into=folder))
    if path.is_absolute() or str(name).startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        raise FileNotFoundError(f"{name} is not a folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise FileNotFoundError(
            f"{name} is neither a folder nor one of {sorted(hub.DATA_HUB)}; to fetch it from the Hugging Face hub, "
            "pip install huggingface_hub"
        ) from None
    wanted = ["config.json", "*.safetensors", "pytorch_model.bin", "tokenizer*.json", "vocab.txt"]
    try:
        cache = None if folder is None else Path(folder)
        return Path(snapshot_download(str(name), allow_patterns=wanted, cache_dir=cache))
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is neither a folder nor one of {sorted(hub.DATA_HUB)}, and the hub did not give it: {error}"
        ) from error


# ---- reading --------------------------------------------------------------------------------------------------------


def _read(folder: Path, num_heads: int | None = None) -> _Checkpoint:
    if (folder / "config.json").exists():
        settings = _read_json(folder / "config.json")
        own = settings.get("format") == "bertnli"
        checkpoint = _read_own(folder, settings) if own else _read_huggingface(folder, settings)
    elif (folder / "pretrained.params").exists():
        checkpoint = _read_d2l(folder, num_heads)
    else:
        raise FileNotFoundError(f"{folder} holds neither config.json nor the book's pretrained.params")
    if len(checkpoint.vocab) != checkpoint.config.vocab_size:
        raise ValueError(
            f"{folder} has a vocabulary of {len(checkpoint.vocab)} tokens, "
            f"but a model of vocab_size {checkpoint.config.vocab_size}"
        )
    return checkpoint


def _read_d2l(folder: Path, num_heads: int | None) -> _Checkpoint:
    state = _torch_load(folder / "pretrained.params")
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
        num_heads=_book_heads(width) if num_heads is None else num_heads,
        num_layers=max(layers, default=-1) + 1,
        max_len=state["encoder.pos_embedding"].shape[1],
        num_segments=len(state["encoder.segment_embedding.weight"]),
        pretraining_heads="mlm.mlp.3.weight" in state,
    )
    return _Checkpoint(folder, state, config, vocab)


def _book_heads(width: int) -> int:
    """The book's files do not say; its models have heads of 64."""
    return width // 64 if width % 64 == 0 else 1


def _read_own(folder: Path, settings: dict[str, Any]) -> _Checkpoint:
    known = {f.name for f in dataclasses.fields(BERTConfig)}
    try:
        config = BERTConfig(**{k: v for k, v in settings["model"].items() if k in known})
        kind = settings["tokenizer"]["type"]
        vocab: Vocab | Tokenizer
        if kind == "words":
            vocab = Vocab.from_json(folder / "vocab.json")
        else:
            options = {name: settings["tokenizer"][name] for name in ("lowercase", "split_special_tokens")}
            vocab = WordPieceTokenizer.from_file(folder / "vocab.txt", **options)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} lacks or misuses {error}") from error
    labels = settings.get("labels")
    state = _safetensors_load(folder / "model.safetensors")
    label_names = None if labels is None else tuple(labels)
    task = settings.get("task", "classification")
    head = (settings.get("classifier_dropout"), settings.get("settings") or {})
    return _Checkpoint(folder, state, config, vocab, task, label_names, *head)


def _read_huggingface(folder: Path, settings: dict[str, Any]) -> _Checkpoint:
    where = folder / "config.json"
    if settings.get("model_type", "bert") != "bert":
        raise ValueError(f'{where} has model_type "{settings["model_type"]}"; only "bert" can be loaded')
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{where} has position_embedding_type {settings['position_embedding_type']!r}, not 'absolute'")
    if settings.get("hidden_act", "gelu") not in _ACTIVATIONS:
        raise ValueError(f"{where} has hidden_act {settings['hidden_act']!r}; known: {sorted(_ACTIVATIONS)}")
    plain = ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction")
    task = "classification"
    for kind in settings.get("architectures") or ():
        if kind not in (*plain, *_ARCHITECTURES.values()):
            raise ValueError(f"{where} is of a {kind}; known: {', '.join((*plain, *_ARCHITECTURES.values()))}")
        task = next((task for task, name in _ARCHITECTURES.items() if name == kind), task)
    if (folder / "model.safetensors").exists():
        raw = _safetensors_load(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").exists():
        raw = _torch_load(folder / "pytorch_model.bin")
    else:
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    state = _from_huggingface(raw)
    try:
        config = BERTConfig(
            settings["vocab_size"],
            num_hiddens=settings["hidden_size"],
            ffn_num_hiddens=settings["intermediate_size"],
            num_heads=settings["num_attention_heads"],
            num_layers=settings["num_hidden_layers"],
            dropout=settings.get("hidden_dropout_prob", 0.1),
            attention_dropout=settings.get("attention_probs_dropout_prob", 0.1),
            max_len=settings["max_position_embeddings"],
            num_segments=settings.get("type_vocab_size", 2),
            activation=_ACTIVATIONS[settings.get("hidden_act", "gelu")],
            embedding_norm=True,
            norm_eps=settings.get("layer_norm_eps", 1e-12),
            pretraining_heads="mlm.mlp.0.weight" in state,
        )
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}") from None
    tokenizer: Tokenizer
    if (folder / "tokenizer.json").exists():
        tokenizer = WordPieceTokenizer.from_file(folder / "tokenizer.json")
    else:
        options = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        lowercase = options.get("do_lower_case", True)
        for name, known in (("strip_accents", (None, lowercase)), ("tokenize_chinese_chars", (True,))):
            if options.get(name, known[0]) not in known:
                raise ValueError(f"{folder / 'tokenizer_config.json'} has {name}={options[name]}, which we do not have")
        tokenizer = WordPieceTokenizer.from_file(folder / "vocab.txt", lowercase=lowercase)
    if task == "classification" and "output.weight" in state:
        one = len(state["output.weight"]) == 1
        kind = settings.get("problem_type")
        task = kind if kind == "multi_label_classification" else "regression" if one or kind == "regression" else task
    names = settings.get("id2label") or {}
    label_names = tuple(str(names[k]) for k in sorted(names, key=int))
    if "output.weight" not in state or len(label_names) != len(state["output.weight"]):
        label_names = ()
    if all(re.fullmatch(r"LABEL_\d+", name) for name in label_names):
        label_names = ()  # Hugging Face's placeholder for "no names"
    dropout = settings.get("classifier_dropout")
    return _Checkpoint(folder, state, config, tokenizer, task, label_names or None, dropout)


def _from_huggingface(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in raw.items():
        name = re.sub(r"^bert\.", "", name).replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        name = name.replace("cls.predictions.bias", "cls.predictions.decoder.bias")
        layer = re.search(r"\.layer\.(\d+)\.", name)
        pattern = name if layer is None else name.replace(layer[0], ".layer.{i}.", 1)
        stem = next((stem for stem in (pattern, pattern.rpartition(".")[0]) if stem in _NAMES), None)
        if stem is not None:
            found = _NAMES[stem] + pattern[len(stem) :]
            state[found if layer is None else found.replace("{i}", layer[1])] = value
        elif not name.endswith(".position_ids"):
            state[name] = value  # unknown here: reported when the model is filled
    if "encoder.pos_embedding" in state:
        state["encoder.pos_embedding"] = state["encoder.pos_embedding"][None]
    if "mlm.mlp.0.weight" in state:  # the decoder is tied to the embeddings and may be absent
        state.setdefault("mlm.mlp.3.weight", state["encoder.token_embedding.weight"])
    return state


def _load_state(model: nn.Module, checkpoint: _Checkpoint, skip: Iterable[str] = ()) -> None:
    wanted = _state_of(model)
    state = {name: value for name, value in checkpoint.state.items() if not name.startswith(tuple(skip))}
    for name, parameter in wanted.items():
        if name in state and state[name].shape != parameter.shape:
            raise ValueError(
                f"{name} in {checkpoint.folder} has shape {list(state[name].shape)}; "
                f"the model needs {list(parameter.shape)}"
            )
    missing = sorted(wanted.keys() - state.keys())
    if lost := [name for name in missing if name.startswith("encoder.")]:
        raise ValueError(f"{checkpoint.folder} lacks {lost[0]} ({len(lost)} encoder parameters are missing)")
    if missing:
        _log.warning("%s lacks %s: newly initialised", checkpoint.folder, ", ".join(missing))
    unknown = sorted(state.keys() - wanted.keys())
    if surplus := [name for name in unknown if name.startswith("encoder.")]:
        raise ValueError(f"{checkpoint.folder} has {surplus[0]}, for which its config has no place")
    if unknown:
        _log.warning("%s has parameters that the model does not: %s", checkpoint.folder, ", ".join(unknown))
    with torch.no_grad():
        for name, parameter in wanted.items():
            if name in state:
                parameter.copy_(state[name])


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under D2L's names, with the modules that a head carries."""
    state = dict(model.state_dict())
    if isinstance(model, Head):
        for name, module in model.carried.items():
            state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    return state


# ---- writing --------------------------------------------------------------------------------------------------------


def _config_json(model: Head | BERTModel, tokenizer: Vocab | Tokenizer) -> dict[str, Any]:
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
    return settings


def _huggingface_config(model: Head | BERTModel, tokenizer: Vocab | Tokenizer) -> dict[str, Any]:
    config = model.config
    if not config.embedding_norm:
        raise ValueError("Hugging Face's BERT has a LayerNorm on its embeddings, this model (D2L's variant) has none")
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise ValueError("Hugging Face's BERT needs a WordPieceTokenizer")
    if isinstance(model, Head) and model.task not in _ARCHITECTURES:
        raise ValueError(f"Hugging Face's BERT has no head for the task {model.task!r}")
    settings: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model.task] if isinstance(model, Head) else "BertForPreTraining"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.num_hiddens,
        "intermediate_size": config.ffn_num_hiddens,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout
        if config.attention_dropout is None
        else config.attention_dropout,
        "max_position_embeddings": config.max_len,
        "type_vocab_size": config.num_segments,
        "hidden_act": {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}[config.activation],
        "layer_norm_eps": config.norm_eps,
        "pad_token_id": tokenizer.pad_id,
    }
    if isinstance(model, Head):
        names = model.label_names or [f"LABEL_{i}" for i in range(model.output.out_features)]
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
        settings["classifier_dropout"] = model.dropout.p
        if model.task in ("classification", "regression"):
            kind = "single_label_classification" if model.task == "classification" else "regression"
            settings["problem_type"] = kind
    elif not config.pretraining_heads:
        settings["architectures"] = ["BertModel"]
    return settings


def _to_huggingface(state: dict[str, Tensor], output: str) -> dict[str, Tensor]:
    theirs = {**{ours: name for name, ours in _NAMES.items()}, "output": output}
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        layer = re.search(r"\.blks\.(\d+)\.", name)
        pattern = name if layer is None else name.replace(layer[0], ".blks.{i}.", 1)
        stem = pattern if pattern in theirs else pattern.rpartition(".")[0]
        found = theirs[stem] + pattern[len(stem) :]
        found = found if layer is None else found.replace("{i}", layer[1])
        prefix = "" if found.startswith(("cls.", output)) else "bert."
        result[prefix + found] = value
    result["bert.embeddings.position_embeddings.weight"] = state["encoder.pos_embedding"][0]
    if "cls.predictions.decoder.bias" in result:
        result["cls.predictions.bias"] = result["cls.predictions.decoder.bias"]
    return result


def _save_vocab(tokenizer: Vocab | Tokenizer, folder: Path) -> None:
    vocab = tokenizer.vocab if isinstance(tokenizer, WordTokenizer) else tokenizer
    if not isinstance(vocab, (Vocab, WordPieceTokenizer)):
        raise TypeError(f"a {type(vocab).__name__} cannot be saved; give a Vocab, WordTokenizer or WordPieceTokenizer")
    vocab.save(folder / ("vocab.json" if isinstance(vocab, Vocab) else "vocab.txt"))


def _save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- files that may be broken ---------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


def _torch_load(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must hold a dict of tensors")
    return dict(state)


def _safetensors_load(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return dict(safetensors.torch.load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
