"""`bertnli train`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.cli.loading import find_device, load, load_checkpoint, with_switches
from bertnli.cli.output import FOLDS_FILE
from bertnli.cli.reports import print_json
from bertnli.cli.training_run import Run, dev_file, make_bert, make_tokenizer, print_unused_precision, run_arguments
from bertnli.data.files import atomic_path
from bertnli.data.texts import TextData
from bertnli.encoder.bert import BERTModel
from bertnli.report.page import Section
from bertnli.runtime import distributed
from bertnli.tasks.base import HEADS, Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.embedding import BERTEmbedder
from bertnli.tasks.load import Examples, texts_of
from bertnli.text.encoded import Encoded, EncodedTexts, encoded_texts
from bertnli.text.tokenizer import Tokenizer
from bertnli.training.folds import CrossValidation, cross_validate
from bertnli.training.loop import fit


@dataclass
class Job:
    """A model before its training, and the data: examples, and what the model's `encode` gave for them."""

    model: Head
    tokenizer: Tokenizer
    train: Examples
    train_data: Encoded
    dev: Examples | None = None
    dev_data: Encoded | None = None


def train(args: SimpleNamespace) -> None:
    job = prepare(args)
    model, dev_data = job.model, job.dev_data
    if args.calibrate and (dev_data is None or model.task != "classification"):
        raise ValueError("--calibrate needs --task classification and dev data (--dev)")
    sections = [] if args.folds is None else [_cross_validate(args, job)]
    history = fit(model, job.train_data, dev_data, args.options, **run_arguments(args, model, job.tokenizer))
    if args.calibrate and history.dev is not None and isinstance(model, BERTClassifier):
        history.dev = _calibrate(model, job.dev, *history.dev)
    files = () if args.folds is None else (FOLDS_FILE,)
    Run(args, model, job.tokenizer, history, job.dev, dev_data, sections, files).finish()


def prepare(args: SimpleNamespace) -> Job:
    """Load or make the model, read and encode the data, and say what there is."""
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    base, tokenizer, task, names, data = _from_scratch(args) if args.scratch else _from_checkpoint(args)
    model = _head(args, base, task, data)
    _adapt_settings(args, model, data)
    dev, dev_path = None, dev_file(args)
    if dev_path is not None:
        is_snli_layout = names is None and task == "classification" and not args.text_columns
        dev = load(args, task, dev_path, "dev", tokenizer, None if is_snli_layout else data.label_names or None)
    max_len = model.sequence_len(args.max_len)
    train_data = model.encode(tokenizer, data, max_len, args.truncation)
    dev_data = None if dev is None else model.encode(tokenizer, dev, max_len, args.truncation)
    encoded = encoded_texts(train_data, "train")
    if model.label_names and task != "regression":
        print(f"classes: {', '.join(model.label_names)}")
    _print_truncated(model, encoded)
    if args.scratch:
        _warn_of_unknown_words(args, tokenizer, encoded)
    print(
        f"{task}: {len(data)} training examples in {len(encoded)} sequences of "
        f"{len(encoded.ids) / max(1, len(encoded)):.1f} tokens, {0 if dev is None else len(dev)} dev examples, "
        f"{data.dropped + (0 if dev is None else dev.dropped)} without a label dropped; "
        f"read and encoded in {time.perf_counter() - started:.2f} s"
    )
    print_unused_precision(args)
    return Job(model, tokenizer, data, train_data, dev, dev_data)


def _cross_validate(args: SimpleNamespace, job: Job) -> Section:
    """Print the figures of --folds, and give them for the report. The job's model stays as it is."""
    file: Path = args.output / FOLDS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if args.resume and file.exists() else []
    key = {"folds": args.folds, "epochs": args.epochs}
    stored = [json.loads(line) for line in lines]
    if stored and stored[0] == key:  # of the run that is continued
        found = CrossValidation(stored[1:])
    else:
        found = cross_validate(
            job.model, job.train_data, job.dev_data, args.options, folds=args.folds, device=find_device(args.device),
            progress=not args.quiet,
        )  # fmt: skip
        if distributed.rank_and_size()[0] == 0:
            with atomic_path(file) as path:
                path.write_text("".join(f"{json.dumps(line)}\n" for line in [key, *found.figures]), encoding="utf-8")
    for number, figures in enumerate(found.figures, 1):
        print_json(args, {"fold": number, **figures})
    shown = (f"{name} {found.mean[name]:.4f} ± {deviation:.4f}" for name, deviation in found.deviation.items())
    print(f"{args.folds} folds: {', '.join(shown)}")
    return Section(f"Cross-validation in {args.folds} folds", found._repr_html_())


def _calibrate(
    model: BERTClassifier, dev: Examples | None, figures: dict[str, Any], outputs: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Calibrate the model on its outputs on the dev data; the figures and outputs that it gives then."""
    assert isinstance(dev, TextData)
    labels = torch.tensor(dev.labels)
    temperature = model.calibrate(outputs, labels)
    print(f"calibrated: outputs divided by {temperature:.3f}")
    outputs = outputs / temperature
    return figures | {"loss": float(F.cross_entropy(outputs, labels))}, outputs


Start = tuple[BERTModel | Head, Tokenizer, str, Sequence[str] | None, Examples]


def _from_scratch(args: SimpleNamespace) -> Start:
    """Model, tokenizer, task, class names that were given, and training examples of --scratch."""
    task, words = args.task or "classification", args.vocab == "words"
    data = load(args, task, args.train, "train", words, args.labels)[: args.limit]
    tokenizer = with_switches(args, make_tokenizer(args, texts_of(data)))
    bert = make_bert(args, tokenizer, pretraining_heads=False)
    return bert, tokenizer, task, args.labels, data


def _from_checkpoint(args: SimpleNamespace) -> Start:
    """The same of --model, where the checkpoint may give the task and the class names."""
    loaded, tokenizer = load_checkpoint(args.model, args.dropout)
    tokenizer = with_switches(args, tokenizer)
    trained_task = loaded.task if isinstance(loaded, Head) and not isinstance(loaded, BERTEmbedder) else None
    task = args.task or trained_task or "classification"
    names = args.labels
    if names is None and isinstance(loaded, Head) and task == trained_task:
        names = loaded.label_names
        if names and (task == "tagging" or (task in ("classification", "multilabel") and args.text_columns)):
            in_data = load(args, task, args.train, "train", tokenizer, None).label_names
            names = names if set(in_data) <= set(names) else None  # the data has other classes
    return loaded, tokenizer, task, names, load(args, task, args.train, "train", tokenizer, names)[: args.limit]


def _head(args: SimpleNamespace, base: BERTModel | Head, task: str, data: Examples) -> Head:
    """The checkpoint's head if it has the data's task and classes, else a new one on its encoder."""
    if isinstance(base, Head) and not isinstance(base, BERTEmbedder):
        if base.task == task and data.label_names in ((), base.label_names):
            return base
        print("the checkpoint's output layer is for another task or other classes: starting a new one")
    names = data.label_names
    real = next((name for name in names if re.fullmatch(r"-?\d+\.\d*[1-9]\d*", name)), None)
    if real is not None and args.task is None and args.labels is None:
        raise ValueError(
            f"{args.train} has labels such as {real}: --task regression learns numbers, --task classification "
            f"{len(names)} classes"
        )
    if task in ("classification", "tagging") and len(names) == 1:
        raise ValueError(
            f"every label of {args.train} is {names[0]!r}: there is nothing to learn (rows labelled - or -1 are "
            "dropped, unless --labels names these as classes: --labels=-1,1)"
        )
    return HEADS[task](base, len(names), names) if names else HEADS[task](base)


def _adapt_settings(args: SimpleNamespace, model: Head, data: Examples) -> None:
    """What the checkpoint must say of the data and of the options that encode them."""
    model.adapt(data)
    if args.max_len is not None:
        if args.max_len > model.config.max_len:
            raise ValueError(f"--max-len {args.max_len}: the model reads {model.config.max_len} tokens at most")
        model.settings["max_len"] = args.max_len
    if args.windows is not None:
        if model.task not in ("classification", "multilabel", "regression"):
            raise ValueError(f"--windows is for classification and regression; the model does {model.task}")
        model.settings["windows"] = args.windows
    if args.stride is not None:
        if model.task != "qa" and "windows" not in model.settings:
            raise ValueError(f"--stride is for question answering, or with --windows; the model does {model.task}")
        model.settings["stride"] = args.stride


def _warn_of_unknown_words(args: SimpleNamespace, tokenizer: Tokenizer, encoded: EncodedTexts) -> None:
    """Say on standard error that a vocabulary of its own lacks much of the data, as of few texts it does."""
    unknown = int((encoded.ids == tokenizer.unk_id).sum())
    words = len(encoded.ids) - int(torch.isin(encoded.ids, torch.tensor([tokenizer.cls_id, tokenizer.sep_id])).sum())
    if unknown > 0.2 * words:
        print(
            f"bertnli: the vocabulary of {len(tokenizer)} tokens lacks {unknown / words:.0%} of the words of --train: "
            f"lower --min-freq (now {args.min_freq}), or use --vocab pieces",
            file=sys.stderr,
        )


def _print_truncated(model: Head, encoded: EncodedTexts) -> None:
    longest = model.sequence_len()
    continues = not model.pooled or model.settings.get("windows")  # in the next sequence
    full = 0 if continues else int((encoded.lengths == longest).sum())
    if full:
        print(f"{full} examples have {longest} tokens, the most that --max-len allows: longer ones were truncated")
