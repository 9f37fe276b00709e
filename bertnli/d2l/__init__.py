"""The names that D2L's BERT chapters use from its `d2l` package. One word of the import changes, the rest runs, fast:

    from bertnli import d2l                 # or
    from bertnli.d2l import torch as d2l    # for: from d2l import torch as d2l

The functions do what D2L's do, in notebooks and in scripts, with or without a GPU. Names that are not here are those of
an installed `d2l` package.

Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT" and the earlier chapters that it uses.
"""

import importlib
from typing import Any

from torch import tensor

from bertnli.d2l.dataset import (
    SNLIBERTDataset,
    download,
    download_extract,
    get_dataloader_workers,
    get_tokens_and_segments,
    load_pretrained_model,
    tokenize,
)
from bertnli.d2l.layers import EncoderBlock, MaskLM, NextSentencePred, TransformerEncoderBlock
from bertnli.d2l.plotting import Accumulator, Animator, Timer, set_axes, set_figsize, use_svg_display
from bertnli.d2l.pretraining import (
    _get_batch_loss_bert,
    _read_wiki,
    _WikiTextDataset,
    get_bert_encoding,
    load_data_wiki,
    train_bert,
)
from bertnli.d2l.snli import (
    BERTClassifier,
    SNLIDataset,
    load_array,
    load_data_snli,
    predict_snli,
    read_snli,
    truncate_pad,
)
from bertnli.d2l.training import (
    accuracy,
    evaluate_accuracy_gpu,
    train_batch_ch13,
    train_ch13,
    try_all_gpus,
    try_gpu,
)
from bertnli.data.download import DATA_HUB, DATA_URL
from bertnli.encoder.bert import BERTEncoder, BERTModel
from bertnli.text.vocab import Vocab

__all__ = [
    "DATA_HUB",
    "DATA_URL",
    "Accumulator",
    "Animator",
    "BERTClassifier",
    "BERTEncoder",
    "BERTModel",
    "EncoderBlock",
    "MaskLM",
    "NextSentencePred",
    "SNLIBERTDataset",
    "SNLIDataset",
    "Timer",
    "TransformerEncoderBlock",
    "Vocab",
    "_WikiTextDataset",
    "_get_batch_loss_bert",
    "_read_wiki",
    "accuracy",
    "download",
    "download_extract",
    "evaluate_accuracy_gpu",
    "get_bert_encoding",
    "get_dataloader_workers",
    "get_tokens_and_segments",
    "load_array",
    "load_data_snli",
    "load_data_wiki",
    "load_pretrained_model",
    "predict_snli",
    "read_snli",
    "set_axes",
    "set_figsize",
    "tensor",
    "tokenize",
    "train_batch_ch13",
    "train_bert",
    "train_ch13",
    "truncate_pad",
    "try_all_gpus",
    "try_gpu",
    "use_svg_display",
]


def __getattr__(name: str) -> Any:
    """`plt` is matplotlib's pyplot; names that D2L's BERT chapters do not define are those of an installed `d2l`."""
    if name.startswith("__") or name == "torch":  # the module bertnli.d2l.torch, before it is imported
        raise AttributeError(f"module 'bertnli.d2l' has no attribute {name!r}")
    if name == "plt":
        return importlib.import_module("matplotlib.pyplot")
    try:
        return getattr(importlib.import_module("d2l.torch"), name)
    except ImportError as error:
        missing = "for other names install it (pip install d2l)"
        reason = missing if error.name in ("d2l", "d2l.torch") else f"the installed d2l cannot be imported: {error}"
    except AttributeError:
        reason = "the installed d2l does not have it either"
    raise AttributeError(f"bertnli.d2l has the names of D2L's BERT chapters, not {name!r}; {reason}")


from bertnli.d2l import torch as torch  # noqa: E402  (last, since it takes the names above)
