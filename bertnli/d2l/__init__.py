"""The names that the chapter uses from its `d2l` package: `from bertnli import d2l` and the rest runs unchanged, fast.

The functions do what D2L's do, in notebooks and in scripts, with or without a GPU.

Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT" and the earlier chapters that it uses.
"""

from bertnli.d2l.dataset import (
    SNLIBERTDataset,
    download,
    download_extract,
    get_dataloader_workers,
    get_tokens_and_segments,
    load_pretrained_model,
    tokenize,
)
from bertnli.d2l.plotting import Accumulator, Animator, Timer
from bertnli.d2l.training import (
    accuracy,
    evaluate_accuracy_gpu,
    train_batch_ch13,
    train_ch13,
    try_all_gpus,
    try_gpu,
)
from bertnli.data.download import DATA_HUB, DATA_URL
from bertnli.data.snli import read_snli
from bertnli.encoder.bert import BERTEncoder, BERTModel
from bertnli.tasks.classification import BERTClassifier
from bertnli.text.vocab import Vocab

__all__ = [
    "DATA_HUB",
    "DATA_URL",
    "Accumulator",
    "Animator",
    "BERTClassifier",
    "BERTEncoder",
    "BERTModel",
    "SNLIBERTDataset",
    "Timer",
    "Vocab",
    "accuracy",
    "download",
    "download_extract",
    "evaluate_accuracy_gpu",
    "get_dataloader_workers",
    "get_tokens_and_segments",
    "load_pretrained_model",
    "read_snli",
    "tokenize",
    "train_batch_ch13",
    "train_ch13",
    "try_all_gpus",
    "try_gpu",
]
