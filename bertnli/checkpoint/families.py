"""Encoders of transformers that the one encoder computes: their names, and what distinguishes them from BERT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bertnli.encoder.config import BERTConfig


@dataclass(frozen=True)
class Family:
    """A `model_type` of transformers.

    names           names of parameters, Hugging Face's and D2L's, in Hugging Face's order; {i} is the layer
    outputs         by task, Hugging Face's name of the output layer
    architectures   by task, the class of transformers; "" is that of the bare encoder
    headless        further classes whose output layers are no task's
    unused          prefixes of parameters that belong to no task
    keys            the fields of BERTConfig that have a key of config.json of the same meaning
    defaults        of those keys
    fixed           fields of BERTConfig that are the same in the whole family
    dropout_keys    by task, the key of the dropout before the output layer
    """

    model_type: str
    title: str
    names: Mapping[str, str]
    outputs: Mapping[str, str]
    architectures: Mapping[str, str]
    headless: tuple[str, ...]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    unused: tuple[str, ...] = ()
    dropout_keys: Mapping[str, str] = field(default_factory=dict)

    def dropout_key(self, task: str) -> str:
        return self.dropout_keys.get(task, "classifier_dropout")


# Names within a BertModel, and D2L's.
EMBEDDINGS = {
    "embeddings.word_embeddings": "encoder.token_embedding",
    "embeddings.token_type_embeddings": "encoder.segment_embedding",
    "embeddings.position_embeddings.weight": "encoder.pos_embedding",
    "embeddings.LayerNorm": "encoder.embedding_norm",
}
LAYERS = {
    "encoder.layer.{i}.attention.self.query": "encoder.blks.{i}.attention.W_q",
    "encoder.layer.{i}.attention.self.key": "encoder.blks.{i}.attention.W_k",
    "encoder.layer.{i}.attention.self.value": "encoder.blks.{i}.attention.W_v",
    "encoder.layer.{i}.attention.output.dense": "encoder.blks.{i}.attention.W_o",
    "encoder.layer.{i}.attention.output.LayerNorm": "encoder.blks.{i}.addnorm1.ln",
    "encoder.layer.{i}.intermediate.dense": "encoder.blks.{i}.ffn.dense1",
    "encoder.layer.{i}.output.dense": "encoder.blks.{i}.ffn.dense2",
    "encoder.layer.{i}.output.LayerNorm": "encoder.blks.{i}.addnorm2.ln",
}
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


def _prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {prefix + name: d2l_name for name, d2l_name in names.items()}


def _classes(name: str) -> dict[str, str]:
    return {
        "": f"{name}Model",
        "classification": f"{name}ForSequenceClassification",
        "regression": f"{name}ForSequenceClassification",
        "multilabel": f"{name}ForSequenceClassification",
        "tagging": f"{name}ForTokenClassification",
        "qa": f"{name}ForQuestionAnswering",
    }


_OUTPUTS = {
    "classification": "classifier",
    "regression": "classifier",
    "multilabel": "classifier",
    "tagging": "classifier",
    "qa": "qa_outputs",
}

BERT = Family(
    model_type="bert",
    title="BERT",
    names={
        **_prefixed("bert.", {**EMBEDDINGS, **LAYERS, "pooler.dense": "hidden.0"}),
        "cls.predictions.transform.dense": "mlm.mlp.0",
        "cls.predictions.transform.LayerNorm": "mlm.mlp.2",
        "cls.predictions.decoder": "mlm.mlp.3",
        "cls.seq_relationship": "nsp.output",
    },
    outputs=_OUTPUTS,
    architectures=_classes("Bert"),
    headless=("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction"),
    keys=_KEYS,
    defaults=_DEFAULTS,
    fixed={},
)

# No segment embeddings, which are a table of zeros here; ReLU on the `<cls>` vector's layer.
DISTILBERT = Family(
    model_type="distilbert",
    title="DistilBERT",
    names={
        **_prefixed("distilbert.", {name: ours for name, ours in EMBEDDINGS.items() if "token_type" not in name}),
        "distilbert.transformer.layer.{i}.attention.q_lin": "encoder.blks.{i}.attention.W_q",
        "distilbert.transformer.layer.{i}.attention.k_lin": "encoder.blks.{i}.attention.W_k",
        "distilbert.transformer.layer.{i}.attention.v_lin": "encoder.blks.{i}.attention.W_v",
        "distilbert.transformer.layer.{i}.attention.out_lin": "encoder.blks.{i}.attention.W_o",
        "distilbert.transformer.layer.{i}.sa_layer_norm": "encoder.blks.{i}.addnorm1.ln",
        "distilbert.transformer.layer.{i}.ffn.lin1": "encoder.blks.{i}.ffn.dense1",
        "distilbert.transformer.layer.{i}.ffn.lin2": "encoder.blks.{i}.ffn.dense2",
        "distilbert.transformer.layer.{i}.output_layer_norm": "encoder.blks.{i}.addnorm2.ln",
        "pre_classifier": "hidden.0",
        "vocab_transform": "mlm.mlp.0",
        "vocab_layer_norm": "mlm.mlp.2",
        "vocab_projector": "mlm.mlp.3",
    },
    outputs=_OUTPUTS,
    architectures=_classes("DistilBert"),
    headless=("DistilBertForMaskedLM",),
    keys={
        "vocab_size": "vocab_size",
        "num_hiddens": "dim",
        "ffn_num_hiddens": "hidden_dim",
        "num_heads": "n_heads",
        "num_layers": "n_layers",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "max_len": "max_position_embeddings",
        "activation": "activation",
    },
    defaults={"dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu"},
    fixed={"num_segments": 2, "norm_eps": 1e-12, "train_segments": False, "pooler_activation": "relu"},
    dropout_keys={
        "classification": "seq_classif_dropout",
        "regression": "seq_classif_dropout",
        "multilabel": "seq_classif_dropout",
        "tagging": "dropout",
        "qa": "qa_dropout",
    },
)

# Embeddings may be narrower than the layers; GELU on the `<cls>` vector's layer.
ELECTRA = Family(
    model_type="electra",
    title="ELECTRA",
    names={
        **_prefixed("electra.", {**EMBEDDINGS, "embeddings_project": "encoder.embedding_projection", **LAYERS}),
        "classifier.dense": "hidden.0",
    },
    outputs={**_OUTPUTS, **dict.fromkeys(("classification", "regression", "multilabel"), "classifier.out_proj")},
    architectures=_classes("Electra"),
    headless=("ElectraForPreTraining", "ElectraForMaskedLM"),
    keys={**_KEYS, "embedding_size": "embedding_size"},
    defaults={**_DEFAULTS, "embedding_size": 128},
    fixed={"pooler_activation": "gelu"},
    unused=("discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
)
FAMILIES = {family.model_type: family for family in (BERT, DISTILBERT, ELECTRA)}
SUPPORTED = "BERT, DistilBERT and ELECTRA"
_OTHERS = {
    "albert": "ALBERT",
    "camembert": "CamemBERT",
    "deberta": "DeBERTa",
    "deberta-v2": "DeBERTa",
    "eurobert": "EuroBERT",
    "mobilebert": "MobileBERT",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "new": "GTE",
    "nomic_bert": "Nomic BERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
}


def family_of(model_type: object) -> Family:
    """The family of config.json's `model_type`. Raises ValueError, to follow the file's name, for another one."""
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        title = _OTHERS.get(str(model_type))
        raise ValueError(
            f"has model_type {model_type!r}{f', a {title}' if title else ''}; "
            f"bertnli loads {SUPPORTED} (WordPiece encoders of BERT's layers)"
        )
    return family


def family_for(config: BERTConfig) -> Family:
    """The family that can hold a model of this config. Raises ValueError if there is none."""
    family = {"relu": DISTILBERT, "gelu": ELECTRA}.get(config.pooler_activation, BERT)
    fixed = {"embedding_norm": True, "train_segments": True, **family.fixed}
    for name, value in {"embedding_size": None, **fixed}.items():
        if getattr(config, name) != value and name not in family.keys:
            if name == "embedding_norm":
                raise ValueError(
                    "Hugging Face's BERT has a LayerNorm on its embeddings, this model (D2L's variant) has none"
                )
            raise ValueError(f"Hugging Face's {family.title} has no place for {name}={getattr(config, name)!r}")
    return family


# ---- names of parameters --------------------------------------------------------------------------------------------


def _split(name: str, part: str) -> tuple[str, str | None]:
    """A parameter's name with {i} for the number after `.part.`, and that number."""
    layer = re.search(rf"\.{part}\.(\d+)\.", name)
    return (name, None) if layer is None else (name.replace(layer[0], f".{part}.{{i}}.", 1), layer[1])


def from_huggingface(
    raw: Mapping[str, Tensor], family: Family = BERT, task: str = "classification"
) -> dict[str, Tensor]:
    """The parameters by D2L's names; those that it does not know keep their own. `task` is that of the output layer.

    Raises ValueError for a parameter that is there twice and differs.
    """
    names = {**family.names, family.outputs[task]: "output"}
    state: dict[str, Tensor] = {}
    for name, value in raw.items():
        name = re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{_NORM[m[1]]}", name)
        decoder_bias = name.replace("cls.predictions.bias", "cls.predictions.decoder.bias")
        if name.endswith(".position_ids") or name.startswith(family.unused) or (name != decoder_bias in raw):
            continue
        name = decoder_bias
        pattern, layer = _split(name, "layer")
        candidates = [
            (stem, prefix + pattern)
            for prefix in ("", f"{family.model_type}.")
            for stem in (prefix + pattern, (prefix + pattern).rpartition(".")[0])
            if stem in names
        ]
        if not candidates:
            state[name] = value
            continue
        stem, full = candidates[0]
        d2l_name = names[stem] + full[len(stem) :]
        d2l_name = d2l_name if layer is None else d2l_name.replace("{i}", layer)
        other = state.get(d2l_name)
        if other is not None and (other.dtype != value.dtype or not torch.equal(other, value)):
            raise ValueError(f"{name} is there twice, by names with and without a prefix, and differs")
        state[d2l_name] = value
    if "encoder.pos_embedding" in state:
        state["encoder.pos_embedding"] = state["encoder.pos_embedding"][None]
    if (table := state.get("encoder.token_embedding.weight")) is not None:
        if not family.fixed.get("train_segments", True):
            state["encoder.segment_embedding.weight"] = torch.zeros(2, *table.shape[-1:])
        if "mlm.mlp.0.weight" in state:  # the decoder is tied to the embeddings and may be absent
            state.setdefault("mlm.mlp.3.weight", table)
    return state


_NORM = {"gamma": "weight", "beta": "bias"}  # as TensorFlow has them


def to_huggingface(
    state: Mapping[str, Tensor], family: Family = BERT, task: str = "classification"
) -> dict[str, Tensor]:
    """The parameters by Hugging Face's names; `task` is that of the output layer.

    Raises ValueError for a parameter that the family does not have.
    """
    names = {d2l_name: name for name, d2l_name in family.names.items()}
    if task in family.outputs:
        names["output"] = family.outputs[task]
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        pattern, layer = _split(name, "blks")
        stem = pattern if pattern in names else pattern.rpartition(".")[0]
        if stem == "encoder.segment_embedding" and stem not in names:
            continue  # zeros
        if stem not in names:
            raise ValueError(f"Hugging Face's {family.title} has no place for {name}")
        new_name = names[stem] + pattern[len(stem) :]
        result[new_name if layer is None else new_name.replace("{i}", layer)] = value
    table = names["encoder.pos_embedding"]
    result[table] = result[table][0]
    if "cls.predictions.decoder.bias" in result:
        result["cls.predictions.bias"] = result["cls.predictions.decoder.bias"]
    return result
