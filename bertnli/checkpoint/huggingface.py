"""Hugging Face's format for BERT and its relatives: config.json, weights, and tokenizer.json or vocab.txt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertnli.checkpoint import sentence_transformers
from bertnli.checkpoint.families import BERT, Family, family_for, family_of, from_huggingface, to_huggingface
from bertnli.checkpoint.files import (
    Checkpoint,
    check_dropout,
    check_fingerprint,
    check_labels,
    check_sizes,
    num_columns,
    read_object,
    read_weights,
    write_with_weights,
)
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.tasks.base import Head
from bertnli.tasks.embedding import BERTEmbedder
from bertnli.tasks.question_answering import BERTQuestionAnswering
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer, gives_segments

# Hugging Face's names of what bertnli computes; the first of each is the one that is written.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}
_MULTI_LABEL = "multi_label_classification"
_KEPT = ("thresholds", "windows", "stride")  # settings of heads of texts, in config.json under their own names


# ---- reading --------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Checkpoint:
    """Raises FileNotFoundError for a missing file, ValueError naming file and key for what cannot be loaded."""
    where = folder / "config.json"
    settings = read_object(where)
    family = check_config(settings, where)
    raw, path, mark = read_weights(folder)
    output = _output_task(settings, family, raw)
    try:
        state = from_huggingface(raw, family, output)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config = _read_config(settings, where, family, any(name.startswith(("mlm.", "nsp.")) for name in state))
    check_sizes(config, state, where, family.keys)
    columns = num_columns(state, where)
    activation = sentence_transformers.activation(folder, settings, columns)
    task = _task(settings, output, columns, activation)
    key = family.dropout_key(task)
    tokenizer = _read_tokenizer(folder)
    if not gives_segments(folder):  # in transformers the model then reads segment 0 only
        table = state["encoder.segment_embedding.weight"]
        state["encoder.segment_embedding.weight"] = table[:1].expand_as(table)
    checkpoint = Checkpoint(
        folder,
        state,
        config,
        tokenizer,
        task=task,
        label_names=_label_names(settings, columns, f"{where}: id2label"),
        head_dropout=check_dropout(settings.get(key, family.defaults.get(key)), f"{where}: {key}"),
        head_settings=_head_settings(folder, settings, task, config, activation),
    )
    check_fingerprint(folder, checkpoint.tokenizer, mark)
    return checkpoint


def _read_config(settings: dict[str, Any], where: Path, family: Family, pretraining_heads: bool) -> BERTConfig:
    values = {**family.defaults, **settings}
    try:
        sizes = {name: values[key] for name, key in family.keys.items()}
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}") from None
    sizes["activation"] = ACTIVATIONS[sizes["activation"]]
    try:
        return BERTConfig(**sizes, **family.fixed, embedding_norm=True, pretraining_heads=pretraining_heads)
    except (TypeError, ValueError) as error:  # by the file's names
        message = re.sub(r"\w+", lambda word: family.keys.get(word[0], word[0]), str(error))
        raise ValueError(f"{where}: {message}") from None


def check_config(settings: dict[str, Any], where: Path) -> Family:
    """The family of a config.json. Raises ValueError, naming file and key, for a model that cannot be loaded."""
    try:
        family = family_of(settings.get("model_type", "bert"))
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{where} has position_embedding_type {settings['position_embedding_type']!r}, not 'absolute'")
    key = family.keys["activation"]
    if settings.get(key, "gelu") not in [*ACTIVATIONS]:  # a list: the value may not be hashable
        raise ValueError(f"{where} has {key} {settings[key]!r}; known: {', '.join(ACTIVATIONS)}")
    for key in ("is_decoder", "add_cross_attention"):
        if settings.get(key):
            raise ValueError(f"{where} has {key} {settings[key]!r}; only encoders can be loaded")
    architectures = settings.get("architectures") or []
    if not isinstance(architectures, list):
        raise ValueError(f"{where}: architectures must be a list of names; found {architectures!r}")
    known = list(dict.fromkeys((*family.architectures.values(), *family.headless)))
    for name in architectures:
        if name not in known:
            raise ValueError(f"{where} is of a {name}; known: {', '.join(known)}")
    return family


def _output_task(settings: dict[str, Any], family: Family, raw: Mapping[str, Tensor]) -> str:
    """Which output layer is read, as the task "classification" (which then is any of texts), "tagging" or "qa": that of
    `architectures`, else the one that is there."""
    kinds, architectures = ("classification", "tagging", "qa"), settings.get("architectures") or ()
    named = [task for task in kinds if family.architectures[task] in architectures]
    return next((task for task in named or kinds if f"{family.outputs[task]}.weight" in raw), (*named, *kinds)[0])


def _task(settings: dict[str, Any], task: str, columns: int, activation: str | None) -> str:
    """The task of an output layer of so many columns; 0 columns: there is none. `task`: see `_output_task`."""
    if task != "classification" or not columns:
        return task
    kind = settings.get("problem_type")
    if kind == _MULTI_LABEL or (columns > 1 and activation == "sigmoid"):
        return "multilabel"
    return "regression" if columns == 1 or kind == "regression" else task


def _head_settings(
    folder: Path, config_file: dict[str, Any], task: str, config: BERTConfig, activation: str | None
) -> dict[str, Any]:
    """What the folder says of encoding and outputs."""
    is_text = task in ("classification", "regression", "multilabel")
    settings: dict[str, Any] = {key: config_file[key] for key in _KEPT if is_text and key in config_file}
    if task == "regression" and activation is not None:
        settings["activation"] = activation
    path = folder / "tokenizer_config.json"
    tokenizer = read_object(path) if path.exists() else {}
    longest = tokenizer.get("model_max_length", tokenizer.get("max_len"))
    longest = config.max_len if longest is None else longest
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise ValueError(f"{path}: model_max_length must be a positive number; found {longest!r}")
    most = min(config.max_len, BERTQuestionAnswering.max_len) if task == "qa" else config.max_len  # as in pipelines
    settings["max_len"] = int(min(longest, most))
    return settings


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


# ---- writing --------------------------------------------------------------------------------------------------------


def write(model: Head | BERTModel, state: dict[str, Tensor], folder: Path, tokenizer: Vocab | Tokenizer) -> None:
    """Raises ValueError for a model or tokenizer that the format cannot hold."""
    tensors, files = contents(model, state, tokenizer)
    settings = files.pop("config.json")
    # Another model's files, which would be read too.
    stale = ("special_tokens_map.json", "added_tokens.json", *sentence_transformers.FILES)
    write_with_weights(folder, tensors, settings, tokenizer, files, stale)


def contents(
    model: Head | BERTModel, state: dict[str, Tensor], tokenizer: Vocab | Tokenizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The parameters and the JSON files of a folder. Raises ValueError for what the format cannot hold."""
    family = family_for(model.config)
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise ValueError(f"Hugging Face's {family.title} needs a WordPieceTokenizer")
    if isinstance(model, BERTEmbedder):
        if isinstance(model.output, nn.Linear):
            raise ValueError("sentence vectors of a dense layer are saved in bertnli's format only")
    elif isinstance(model, Head) and model.task not in family.outputs:
        raise ValueError(f"Hugging Face's {family.title} has no head for the task {model.task!r}")
    if isinstance(model, BERTModel) and model.config.pretraining_heads and family.model_type == "electra":
        raise ValueError("Hugging Face's ELECTRA has no head like this model's masked-language-model head")
    if not model.config.train_segments and bool(state["encoder.segment_embedding.weight"].any()):
        raise ValueError("Hugging Face's DistilBERT has no segment embeddings, and this model's are not zeros")
    architecture = _architecture(model, family, state)
    state = {name: value for name, value in state.items() if name.startswith(_parts(architecture, model))}
    table = state["encoder.token_embedding.weight"]
    files = {
        "config.json": {
            "architectures": [architecture],
            **_config(model.config, family),
            "pad_token_id": tokenizer.pad_id,
            "tie_word_embeddings": torch.equal(state.get("mlm.mlp.3.weight", table), table),
            **_head_config(model, family),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": tokenizer.lowercase,
            "split_special_tokens": tokenizer.split_special_tokens,
            "model_max_length": model.sequence_len() if isinstance(model, Head) else model.config.max_len,
        },
        "tokenizer.json": tokenizer.to_tokenizer_json(),
    }
    if isinstance(model, BERTEmbedder):
        width, longest = model.config.num_hiddens, model.sequence_len()
        files |= sentence_transformers.embedding_files(model.settings, width, longest)
    return to_huggingface(state, family, model.task if isinstance(model, Head) else ""), files


def _architecture(model: Head | BERTModel, family: Family, state: dict[str, Tensor]) -> str:
    """The class of transformers for the model."""
    if isinstance(model, BERTEmbedder):
        return family.architectures[""]
    if isinstance(model, Head):
        return family.architectures[model.task]
    mlm, nsp = (any(name.startswith(part) for name in state) for part in ("mlm.", "nsp."))
    if family is BERT and nsp:
        return "BertForPreTraining" if mlm else "BertForNextSentencePrediction"
    return family.architectures[""].replace("Model", "ForMaskedLM") if mlm else family.architectures[""]


def _parts(architecture: str, model: Head | BERTModel) -> tuple[str, ...]:
    """What a class of transformers has of the model's parameters."""
    if isinstance(model, BERTEmbedder):
        return ("encoder.", "hidden.") if architecture == "BertModel" else ("encoder.",)
    if isinstance(model, Head):
        return ("encoder.", "hidden.", "output.") if model.pooled else ("encoder.", "output.")
    return {
        "BertModel": ("encoder.", "hidden."),
        "BertForPreTraining": ("encoder.", "hidden.", "mlm.", "nsp."),
        "BertForNextSentencePrediction": ("encoder.", "hidden.", "nsp."),
    }.get(architecture, ("encoder.", "mlm."))


def _config(config: BERTConfig, family: Family) -> dict[str, Any]:
    settings = {key: getattr(config, name) for name, key in family.keys.items()}
    if config.attention_dropout is None:
        settings[family.keys["attention_dropout"]] = config.dropout
    if "embedding_size" in settings and config.embedding_size is None:
        settings["embedding_size"] = config.num_hiddens
    activation = next(name for name, kind in ACTIVATIONS.items() if kind == config.activation)
    return {"model_type": family.model_type, **settings, family.keys["activation"]: activation}


def _head_config(model: Head | BERTModel, family: Family) -> dict[str, Any]:
    if not isinstance(model, Head) or isinstance(model, BERTEmbedder):
        return {}
    names = model.label_names or [f"LABEL_{i}" for i in range(model.output.out_features)]
    settings = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        family.dropout_key(model.task): model.dropout.p,
    }
    if model.pooled:
        settings |= {key: model.settings[key] for key in _KEPT if model.settings.get(key) is not None}
    if model.task == "classification":
        settings["problem_type"] = "single_label_classification"
    if model.task == "multilabel":
        settings["problem_type"] = _MULTI_LABEL
    if model.task == "regression":
        activation = model.settings["activation"]
        # transformers puts a sigmoid on one output, unless the problem is a regression.
        settings |= sentence_transformers.config(activation)
        settings |= {"problem_type": "regression"} if activation == "identity" else {}
    return settings
