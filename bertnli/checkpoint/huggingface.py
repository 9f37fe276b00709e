"""Hugging Face's format for BERT: config.json, weights, and tokenizer.json or vocab.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertnli.checkpoint.files import (
    Checkpoint,
    check_dropout,
    check_fingerprint,
    check_labels,
    check_sizes,
    num_columns,
    read_object,
    read_safetensors,
    read_torch,
    write_with_weights,
)
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

# Names of parameters: Hugging Face's, in its order, and D2L's. {i} is the layer.
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
# The fields of BERTConfig that have a key of config.json of the same meaning.
_KEYS = {
    "vocab_size": "vocab_size",
    "num_hiddens": "hidden_size",
    "ffn_num_hiddens": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "max_len": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
_DEFAULTS = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
_HEADLESS = ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction")
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


# ---- reading --------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Checkpoint:
    """Raises FileNotFoundError for a missing file, ValueError naming file and key for what cannot be loaded."""
    where = folder / "config.json"
    settings = read_object(where)
    _check(settings, where)
    path = folder / "model.safetensors"
    if not path.exists():
        path = folder / "pytorch_model.bin"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    raw = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    try:
        state = from_huggingface(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config = _read_config(settings, where, pretraining_heads="mlm.mlp.0.weight" in state)
    check_sizes(config, state, where, _KEYS)
    columns = num_columns(state, where)
    checkpoint = Checkpoint(
        folder,
        state,
        config,
        _read_tokenizer(folder),
        task=_task(settings, columns),
        label_names=_label_names(settings, columns, f"{where}: id2label"),
        head_dropout=check_dropout(settings.get("classifier_dropout"), f"{where}: classifier_dropout"),
    )
    check_fingerprint(folder, checkpoint.tokenizer)
    return checkpoint


def _read_config(settings: dict[str, Any], where: Path, pretraining_heads: bool) -> BERTConfig:
    values = {**_DEFAULTS, **settings}
    try:
        sizes = {name: values[key] for name, key in _KEYS.items()}
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}") from None
    sizes["activation"] = _ACTIVATIONS[sizes["activation"]]
    try:
        return BERTConfig(**sizes, embedding_norm=True, pretraining_heads=pretraining_heads)
    except (TypeError, ValueError) as error:  # by the file's names
        message = re.sub(r"\w+", lambda word: _KEYS.get(word[0], word[0]), str(error))
        raise ValueError(f"{where}: {message}") from None


def _check(settings: dict[str, Any], where: Path) -> None:
    if settings.get("model_type", "bert") != "bert":
        raise ValueError(f'{where} has model_type "{settings["model_type"]}"; only "bert" can be loaded')
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{where} has position_embedding_type {settings['position_embedding_type']!r}, not 'absolute'")
    if settings.get("hidden_act", "gelu") not in [*_ACTIVATIONS]:  # a list: the value may not be hashable
        raise ValueError(f"{where} has hidden_act {settings['hidden_act']!r}; known: {sorted(_ACTIVATIONS)}")
    architectures = settings.get("architectures") or []
    if not isinstance(architectures, list):
        raise ValueError(f"{where}: architectures must be a list of names; found {architectures!r}")
    for name in architectures:
        if name not in (*_HEADLESS, *_ARCHITECTURES.values()):
            raise ValueError(f"{where} is of a {name}; known: {', '.join((*_HEADLESS, *_ARCHITECTURES.values()))}")


def _task(settings: dict[str, Any], columns: int) -> str:
    """The task of an output layer of so many columns; 0 columns: there is none."""
    architectures = settings.get("architectures") or ()
    tasks = [task for task, name in _ARCHITECTURES.items() if name in architectures and task != "regression"]
    task = tasks[-1] if tasks else "classification"
    if task != "classification" or not columns:
        return task
    kind = settings.get("problem_type")
    if kind == "multi_label_classification":
        return "multi_label_classification"
    return "regression" if columns == 1 or kind == "regression" else task


def _label_names(settings: dict[str, Any], columns: int, where: str) -> tuple[str, ...] | None:
    names = settings.get("id2label")
    if not names or not columns:
        return None
    if not isinstance(names, dict) or not all(re.fullmatch("[0-9]{1,9}", key) for key in names):
        raise ValueError(f'{where} is {names}; expected each column and its label, as in {{"0": "entailment"}}')
    if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names.values()):
        return None  # placeholders
    if sorted(map(int, names)) != list(range(columns)):
        raise ValueError(
            f"{where} has the keys {', '.join(names)}; expected 0 to {columns - 1}, the columns of the output layer"
        )
    if not all(isinstance(name, str | int) for name in names.values()):
        raise ValueError(f"{where} is {names}; expected labels that are strings")
    return check_labels([str(names[key]) for key in sorted(names, key=int)], columns, where)


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    return WordPieceTokenizer.from_file(path if path.exists() else folder / "vocab.txt")


# ---- names of parameters --------------------------------------------------------------------------------------------


def from_huggingface(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters by D2L's names; those that it does not know keep their own."""
    state: dict[str, Tensor] = {}
    for name, value in raw.items():
        name = re.sub(r"^bert\.", "", name).replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        name = name.replace("cls.predictions.bias", "cls.predictions.decoder.bias")
        layer = re.search(r"\.layer\.(\d+)\.", name)
        pattern = name if layer is None else name.replace(layer[0], ".layer.{i}.", 1)
        stem = next((stem for stem in (pattern, pattern.rpartition(".")[0]) if stem in _NAMES), None)
        if stem is not None:
            d2l_name = _NAMES[stem] + pattern[len(stem) :]
            d2l_name = d2l_name if layer is None else d2l_name.replace("{i}", layer[1])
            other = state.get(d2l_name, value)
            if other.dtype != value.dtype or not torch.equal(other, value):
                raise ValueError(f"{name} is there twice, by names with and without a prefix, and differs")
            state[d2l_name] = value
        elif not name.endswith(".position_ids"):
            state[name] = value
    if "encoder.pos_embedding" in state:
        state["encoder.pos_embedding"] = state["encoder.pos_embedding"][None]
    # The decoder is tied to the embeddings and may be absent.
    if {"mlm.mlp.0.weight", "encoder.token_embedding.weight"} <= state.keys():
        state.setdefault("mlm.mlp.3.weight", state["encoder.token_embedding.weight"])
    return state


def to_huggingface(state: dict[str, Tensor], output: str = "classifier") -> dict[str, Tensor]:
    """The parameters by Hugging Face's names; `output` is that of the output layer."""
    names = {**{d2l_name: name for name, d2l_name in _NAMES.items()}, "output": output}
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        layer = re.search(r"\.blks\.(\d+)\.", name)
        pattern = name if layer is None else name.replace(layer[0], ".blks.{i}.", 1)
        stem = pattern if pattern in names else pattern.rpartition(".")[0]
        new_name = names[stem] + pattern[len(stem) :]
        new_name = new_name if layer is None else new_name.replace("{i}", layer[1])
        prefix = "" if new_name.startswith(("cls.", output)) else "bert."
        result[prefix + new_name] = value
    result["bert.embeddings.position_embeddings.weight"] = state["encoder.pos_embedding"][0]
    if "cls.predictions.decoder.bias" in result:
        result["cls.predictions.bias"] = result["cls.predictions.decoder.bias"]
    return result


# ---- writing --------------------------------------------------------------------------------------------------------


def write(model: Head | BERTModel, state: dict[str, Tensor], folder: Path, tokenizer: Vocab | Tokenizer) -> None:
    """Raises ValueError for a model or tokenizer that the format cannot hold."""
    config = model.config
    if not config.embedding_norm:
        raise ValueError("Hugging Face's BERT has a LayerNorm on its embeddings, this model (D2L's variant) has none")
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise ValueError("Hugging Face's BERT needs a WordPieceTokenizer")
    if isinstance(model, Head) and model.task not in _ARCHITECTURES:
        raise ValueError(f"Hugging Face's BERT has no head for the task {model.task!r}")
    if isinstance(model, Head) and not model.pooled:  # Hugging Face's token heads have no pooler
        state = {name: value for name, value in state.items() if not name.startswith("hidden.")}
    is_qa = isinstance(model, Head) and model.task == "qa"
    write_with_weights(
        folder,
        to_huggingface(state, "qa_outputs" if is_qa else "classifier"),
        {**_config(config), "pad_token_id": tokenizer.pad_id, **_head_config(model)},
        tokenizer,
        others={
            "tokenizer_config.json": {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": tokenizer.lowercase,
                "split_special_tokens": tokenizer.split_special_tokens,
                "model_max_length": config.max_len,
            }
        },
        # Another model's, which would be read too.
        remove=("tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    )


def _config(config: BERTConfig) -> dict[str, Any]:
    settings = {key: getattr(config, name) for name, key in _KEYS.items()}
    if config.attention_dropout is None:
        settings["attention_probs_dropout_prob"] = config.dropout
    settings["hidden_act"] = next(name for name, activation in _ACTIVATIONS.items() if activation == config.activation)
    return {"model_type": "bert", **settings}


def _head_config(model: Head | BERTModel) -> dict[str, Any]:
    if not isinstance(model, Head):
        return {"architectures": ["BertForPreTraining" if model.config.pretraining_heads else "BertModel"]}
    names = model.label_names or [f"LABEL_{i}" for i in range(model.output.out_features)]
    settings = {
        "architectures": [_ARCHITECTURES[model.task]],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "classifier_dropout": model.dropout.p,
    }
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    return settings | ({"problem_type": kinds[model.task]} if model.task in kinds else {})
