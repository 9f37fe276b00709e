"""Hugging Face's format for BERT: config.json, weights, and tokenizer.json or vocab.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from bertnli.checkpoint.files import (
    Checkpoint,
    read_json,
    read_safetensors,
    read_torch,
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
_HEADLESS = ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction")
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


# ---- reading --------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Checkpoint:
    """Raises FileNotFoundError for a missing file, ValueError naming file and key for what cannot be loaded."""
    where = folder / "config.json"
    settings = read_json(where)
    _check(settings, where)
    if (folder / "model.safetensors").exists():
        state = from_huggingface(read_safetensors(folder / "model.safetensors"))
    elif (folder / "pytorch_model.bin").exists():
        state = from_huggingface(read_torch(folder / "pytorch_model.bin"))
    else:
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
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
    columns = len(state["output.weight"]) if "output.weight" in state else 0
    return Checkpoint(
        folder,
        state,
        config,
        _read_tokenizer(folder),
        task=_task(settings, columns),
        label_names=_label_names(settings, columns),
        head_dropout=settings.get("classifier_dropout"),
    )


def _check(settings: dict[str, Any], where: Path) -> None:
    if settings.get("model_type", "bert") != "bert":
        raise ValueError(f'{where} has model_type "{settings["model_type"]}"; only "bert" can be loaded')
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{where} has position_embedding_type {settings['position_embedding_type']!r}, not 'absolute'")
    if settings.get("hidden_act", "gelu") not in _ACTIVATIONS:
        raise ValueError(f"{where} has hidden_act {settings['hidden_act']!r}; known: {sorted(_ACTIVATIONS)}")
    for name in settings.get("architectures") or ():
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


def _label_names(settings: dict[str, Any], columns: int) -> tuple[str, ...] | None:
    names = settings.get("id2label") or {}
    label_names = tuple(str(names[key]) for key in sorted(names, key=int))
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in label_names)
    return None if placeholders or len(label_names) != columns else label_names


def _read_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return WordPieceTokenizer.from_file(folder / "tokenizer.json")
    path = folder / "tokenizer_config.json"
    options = read_json(path) if path.exists() else {}
    lowercase = options.get("do_lower_case", True)
    for name, known in (("strip_accents", (None, lowercase)), ("tokenize_chinese_chars", (True,))):
        if options.get(name, known[0]) not in known:
            raise ValueError(f"{path} has {name}={options[name]}, which is not supported")
    return WordPieceTokenizer.from_file(folder / "vocab.txt", lowercase=lowercase)


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
            state[d2l_name if layer is None else d2l_name.replace("{i}", layer[1])] = value
        elif not name.endswith(".position_ids"):
            state[name] = value
    if "encoder.pos_embedding" in state:
        state["encoder.pos_embedding"] = state["encoder.pos_embedding"][None]
    if "mlm.mlp.0.weight" in state:  # the decoder is tied to the embeddings and may be absent
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
    write_vocab(folder, tokenizer)
    write_json(folder / "config.json", {**_config(config), "pad_token_id": tokenizer.pad_id, **_head_config(model)})
    tokenizer_config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lowercase,
        "model_max_length": config.max_len,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "tokenizer.json").unlink(missing_ok=True)  # another model's, which would be read instead
    if isinstance(model, Head) and not model.pooled:  # Hugging Face's token heads have no pooler
        state = {name: value for name, value in state.items() if not name.startswith("hidden.")}
    is_qa = isinstance(model, Head) and model.task == "qa"
    write_safetensors(folder / "model.safetensors", to_huggingface(state, "qa_outputs" if is_qa else "classifier"))


def _config(config: BERTConfig) -> dict[str, Any]:
    dropout, attention_dropout = config.dropout, config.attention_dropout
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.num_hiddens,
        "intermediate_size": config.ffn_num_hiddens,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout if attention_dropout is None else attention_dropout,
        "max_position_embeddings": config.max_len,
        "type_vocab_size": config.num_segments,
        "hidden_act": next(name for name, activation in _ACTIVATIONS.items() if activation == config.activation),
        "layer_norm_eps": config.norm_eps,
    }


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
