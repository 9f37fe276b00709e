"""Checkpoints in and out of three formats, one file each.

    own            config.json  model.safetensors  vocab.json or vocab.txt
    huggingface    config.json  model.safetensors or pytorch_model.bin  tokenizer.json or vocab.txt
    d2l            vocab.json  pretrained.params

Each is read into a Checkpoint: a state dict in D2L's names, a BERTConfig, and a vocabulary or tokenizer.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bertnli.checkpoint import d2l, huggingface, onnx, own, sentence_transformers
from bertnli.checkpoint.card import provenance_of, write_card
from bertnli.checkpoint.files import Checkpoint, read_object, vocab_file
from bertnli.checkpoint.hub import find_folder
from bertnli.data.arguments import choice, path_of
from bertnli.encoder.bert import BERTModel, added_parameter
from bertnli.tasks.base import HEADS, Head, check_head
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab

_log = logging.getLogger("bertnli")


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
    """D2L's function: a pretrained BERT and its vocabulary.

    pretrained_model          "bert.small", "bert.base" or another name of DATA_HUB, a checkpoint folder of any format,
                              or a name on the Hugging Face hub
    num_hiddens to max_len    sizes that the checkpoint must have (default: those that it has); D2L's files do not hold
                              `num_heads` (default: heads of 64); `num_blks` is another name of `num_layers`. A smaller
                              `max_len` cuts the position embeddings
    dropout                   of the model (default: the checkpoint's, else D2L's 0.2)
    devices                   the model is moved to the first (default: it stays on the CPU)
    folder                    where downloads go (default: the cache folder)

    Returns the BERTModel in training mode, and a Vocab (D2L's format) or the tokenizer.
    Raises FileNotFoundError for a missing file, ValueError for a broken file or sizes that the weights contradict.

    Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT", `load_pretrained_model`.
    """
    checkpoint = _read(pretrained_model, folder, num_heads, encoder_only=True)
    if max_len is not None and 0 < max_len < checkpoint.config.max_len:
        checkpoint.state["encoder.pos_embedding"] = checkpoint.state["encoder.pos_embedding"][:, :max_len]
        checkpoint.config = dataclasses.replace(checkpoint.config, max_len=max_len)
    for name, value, key in (
        ("num_heads", num_heads, "num_heads"),
        ("num_hiddens", num_hiddens, "encoder.token_embedding.weight"),
        ("ffn_num_hiddens", ffn_num_hiddens, "encoder.blks.0.ffn.dense1.weight"),
        ("num_layers", num_layers if num_blks is None else num_blks, "encoder.blks"),
        ("max_len", max_len, "encoder.pos_embedding"),
    ):
        stored = getattr(checkpoint.config, name)
        if value is not None and value != stored:
            raise ValueError(f"{name}={value}, but {key} in {checkpoint.folder} has {stored}")
    bert = _bert(checkpoint, dropout)
    _load_state(bert, checkpoint, with_output=False)
    return bert.to(devices[0]) if devices else bert, checkpoint.vocab


def from_pretrained(
    name_or_dir: str | os.PathLike[str],
    *,
    dropout: float | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> tuple[Head | BERTModel, Tokenizer]:
    """A model in eval mode with its tokenizer.

    The model is the head of the checkpoint's task (a BERTClassifier, say; a custom head's class must be defined
    before), a BERTEmbedder of a SentenceTransformer's folder, or a BERTModel if the checkpoint has no output layer. Any
    head can be put on each: `BERTClassifier(model, num_labels=3)`. Arguments and errors: see `load_pretrained_model`.
    """
    checkpoint = _read(name_or_dir, folder)
    bert = _bert(checkpoint, dropout)
    model: Head | BERTModel = bert
    output = checkpoint.state.get("output.weight")
    if output is not None or checkpoint.task == "embedding":
        if checkpoint.task not in HEADS:
            raise ValueError(
                f"{checkpoint.folder} is of the task {checkpoint.task!r}, and no head of that task is defined; "
                f"known: {', '.join(HEADS)}. load_pretrained_model loads its encoder alone"
            )
        num_labels = None if output is None else len(output)
        head_dropout = checkpoint.head_dropout if dropout is None else None
        model = HEADS[checkpoint.task](bert, num_labels, checkpoint.label_names, head_dropout)
        model.settings.update(checkpoint.head_settings)
        model.provenance.update(checkpoint.provenance)
    _load_state(model, checkpoint)
    return model.eval(), checkpoint.tokenizer


def save_pretrained(
    model: Head | BERTModel,
    folder: str | os.PathLike[str],
    tokenizer: Vocab | Tokenizer,
    *,
    format: str = "bertnli",
) -> None:
    """Write a checkpoint folder. All files are on the disk before the first of them replaces an old one.

    A folder whose save was interrupted between two files does not load: the weights hold a fingerprint of configuration
    and vocabulary. A README.md, the model card, says what is known of base, data, options and figures; one that is not
    bertnli's stays.

    format    "bertnli"; "huggingface" (original variant and WordPiece only); or "d2l" (the encoder, `hidden` and
              pretraining heads of D2L's variant, without a head's output layer)

    A model in torch.compile's wrapper is taken out of it.

    Raises ValueError for a model that the format cannot hold, such as one with adapters, OSError naming the file that
    cannot be written.
    """
    folder, model = path_of(folder, "folder"), getattr(model, "_orig_mod", model)
    format = choice(format, "format", ("bertnli", "huggingface", "d2l"))  # ONNX has a function of its own
    if not isinstance(model, BERTModel):
        check_head(model)
    if (added := added_parameter(model.encoder)) is not None:
        raise ValueError(
            f"a checkpoint has no place for the encoder's {added}. Put the original layers back before saving; "
            "PEFT's adapters are merged into them by merge_and_unload()"
        )
    state, vocab = _state_of(model), vocab_file(tokenizer)[1]
    if len(vocab) > model.config.vocab_size:  # a table may be padded
        raise ValueError(f"a vocabulary of {len(vocab)} tokens for a model of vocab_size {model.config.vocab_size}")
    if format == "bertnli":
        own.write(model, state, folder, tokenizer)
    elif format == "huggingface":
        huggingface.write(model, state, folder, tokenizer)
    else:
        d2l.write(model.config, state, folder, tokenizer)
    write_card(model, folder, format)


def export_onnx(
    model: Head,
    folder: str | os.PathLike[str],
    tokenizer: Vocab | Tokenizer,
    sample: EncodedTexts | None = None,
    *,
    num_samples: int = 1000,
    int8: bool = False,
) -> list[onnx.Check]:
    """Write an ONNX model for padded batches, and compare it with the original in ONNX Runtime.

        bertnli.export_onnx(head, "onnx", tokenizer, head.encode(tokenizer, data), int8=True)

    sample       encoded examples to compare on (default: random tokens)
    num_samples  examples to compare at most
    int8         write a quantized model too

    The folder gets `model.onnx`; with `int8`, `model_quantized.onnx`, with tables and matrix products in 8 bits; the
    vocabulary; and configuration and tokenizer files: Hugging Face's, of a model that its format can hold, else
    bertnli's. The inputs are int64 [batch, length]: input_ids, attention_mask, and token_type_ids unless the segment
    embeddings are zeros. The outputs are float32 logits [batch, num_labels]; of a tagger [batch, length, num_labels];
    of question answering start_logits and end_logits [batch, length].

    Returns a comparison for each file. Raises ImportError without `bertnli[onnx]`, ValueError for a model that computes
    in its own way, and for outputs of model.onnx that differ.
    """
    try:
        files = huggingface.contents(model, _state_of(model), tokenizer)[1]
    except ValueError:  # D2L's variant or vocabulary, or a custom task
        files = {"config.json": own.config(model, tokenizer)}
    folder = path_of(folder, "folder")
    checks = onnx.export(model, folder, tokenizer, files, sample, num_samples=num_samples, int8=int8)
    write_card(model, folder, "onnx")
    return checks


def _bert(checkpoint: Checkpoint, dropout: float | None) -> BERTModel:
    """A model for the checkpoint's weights, without a pretraining head of which it has nothing."""
    config = checkpoint.config
    if dropout is not None:
        config = dataclasses.replace(config, dropout=dropout, attention_dropout=None)
    bert = BERTModel(config)
    bert.provenance.update(checkpoint.provenance)
    for name in ("mlm", "nsp"):
        if not any(key.startswith(f"{name}.") for key in checkpoint.state):
            setattr(bert, name, None)
    return bert


def _read(
    name: str | os.PathLike[str],
    downloads: str | os.PathLike[str] | None,
    num_heads: int | None = None,
    *,
    encoder_only: bool = False,
) -> Checkpoint:
    found = folder = find_folder(name, downloads)
    if modules := sentence_transformers.modules(folder):
        folder = modules[0][1]
    if (folder / "config.json").exists():
        is_own = read_object(folder / "config.json").get("format") == "bertnli"
        checkpoint = own.read(folder) if is_own else huggingface.read(folder)
    elif (folder / "pretrained.params").exists():
        checkpoint = d2l.read(folder, num_heads)
    elif (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds a PEFT adapter and no model; load it onto its model in transformers, and save what "
            "merge_and_unload() returns"
        )
    else:
        raise FileNotFoundError(f"{folder} holds neither config.json nor D2L's pretrained.params")
    if len(modules) > 1 and not encoder_only and "output.weight" not in checkpoint.state:
        sentence_transformers.add_embedding(checkpoint, found)
    if len(checkpoint.vocab) > checkpoint.config.vocab_size:  # a table may be padded
        raise ValueError(
            f"{folder} has a vocabulary of {len(checkpoint.vocab)} tokens, "
            f"but a model of vocab_size {checkpoint.config.vocab_size}"
        )
    checkpoint.provenance = checkpoint.provenance or provenance_of(found, str(name))
    return checkpoint


def _load_state(model: nn.Module, checkpoint: Checkpoint, with_output: bool = True) -> None:
    """Fill the model. A warning names unknown parameters, and missing ones that the model computes with; of the encoder
    there are none (`check_sizes`)."""
    parameters = _state_of(model)
    state = {name: value for name, value in checkpoint.state.items() if with_output or not name.startswith("output.")}
    for name, parameter in parameters.items():
        if name in state and state[name].shape != parameter.shape:
            raise ValueError(
                f"{name} in {checkpoint.folder} has shape {list(state[name].shape)}; "
                f"the model needs {list(parameter.shape)}"
            )
    missing, unknown = sorted(model.state_dict().keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing:
        _log.warning("%s lacks %s: newly initialised", checkpoint.folder, ", ".join(missing))
    if unknown:
        _log.warning("%s has parameters that the model does not: %s", checkpoint.folder, ", ".join(unknown))
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in state:
                parameter.copy_(state[name])


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by D2L's names, with those of the modules that a head carries."""
    state = dict(model.state_dict())
    if isinstance(model, Head):
        for name, module in model.carried.items():
            state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    return state
