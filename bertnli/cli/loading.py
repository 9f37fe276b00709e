"""What commands load: checkpoints, examples, a device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from bertnli import checkpoint
from bertnli.cli.options import path_hint
from bertnli.data.snli import SNLI_LABELS
from bertnli.encoder.bert import BERTModel
from bertnli.inference.session import InferenceSession
from bertnli.tasks.base import Head
from bertnli.tasks.load import Examples, load_examples
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.wordpiece import WordPieceTokenizer


def load_checkpoint(name: str, dropout: float | None = None) -> tuple[BERTModel | Head, Tokenizer]:
    """Load a checkpoint; if there is none of that name, the error names the nearest folder."""
    try:
        return checkpoint.from_pretrained(name, dropout=dropout)
    except (OSError, ValueError, ImportError) as error:
        if not Path(name).exists() and (near := path_hint(Path(name))):
            raise ValueError(f"{error}{near}") from error
        raise


def load(
    args: SimpleNamespace, task: str, path: Path, split: str, tokenizer: Tokenizer | bool, labels: Sequence[str] | None
) -> Examples:
    """Labelled examples; `tokenizer` is the one that will encode them, or whether it will be one of words."""
    return load_examples(
        path,
        task,
        split=split,
        text_columns=args.text_columns,
        label_column=args.label_column,
        labels=labels,
        columns=args.columns,
        words=tokenizer if isinstance(tokenizer, bool) else isinstance(tokenizer, WordTokenizer),
        separator=args.separator,
        encoding=args.encoding,
        delimiter=args.delimiter,
    )


def load_head(name: str, args: SimpleNamespace) -> tuple[Head, Tokenizer]:
    model, tokenizer = load_checkpoint(name)
    return check_is_head(model, name).to(find_device(args.device)), with_switches(args, tokenizer)


def check_is_head(model: Head | BERTModel, name: str) -> Head:
    if not isinstance(model, Head):
        raise ValueError(f"{name} has no output layer of a task; fine-tune it first with `bertnli train`")
    return model


def with_switches(args: SimpleNamespace, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with --split-special-tokens, which only WordPiece lacks."""
    if args.split_special_tokens and isinstance(tokenizer, WordPieceTokenizer):
        return WordPieceTokenizer(tokenizer.tokens, tokenizer.lowercase, split_special_tokens=True)
    return tokenizer


def open_session(model: Head, args: SimpleNamespace) -> InferenceSession:
    """A session of --precision; says on standard error if that precision is not used."""
    session = InferenceSession(model, args.precision)
    if session.unused_precision is not None:
        print(f"bertnli: {session.unused_precision}", file=sys.stderr)
    return session


def find_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def name_classes(model: Head, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Give the model's classes the names `labels`, by default the checkpoint's, else SNLI's.

    If `labels` are the checkpoint's names in another order, the columns of the output layer are reordered.
    """
    names = labels or model.label_names
    if names is None and model.task == "classification":
        print(
            f"bertnli: the model does not name its classes; they are taken for {', '.join(SNLI_LABELS)} "
            "(--labels gives other names)",
            file=sys.stderr,
        )
        names = SNLI_LABELS
    if names is None and model.task == "tagging":
        raise ValueError("the model does not name its tags: give --labels, in the order of its output layer")
    if names is not None:
        if len(names) != model.output.out_features:
            raise ValueError(
                f"{len(names)} names of classes ({', '.join(names)}); the model has {model.output.out_features}"
            )
        if model.label_names is not None and set(names) == set(model.label_names):
            order = [model.label_names.index(name) for name in names]
            for parameter in model.output.parameters():
                parameter.copy_(parameter[order])
        model.label_names = names
    return names
