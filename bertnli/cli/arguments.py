"""The command line's arguments. Training flags are made from the fields of TrainingOptions."""

from __future__ import annotations

import argparse
import csv
import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from bertnli.cli import commands
from bertnli.cli.export import export
from bertnli.data import download as hub
from bertnli.data.snli import Columns
from bertnli.encoder.config import SIZES
from bertnli.runtime.precision import PRECISIONS
from bertnli.tasks.base import HEADS
from bertnli.text.tokenizer import Truncation
from bertnli.training.options import TrainingOptions

_CHECKPOINT = "fine-tuned checkpoint: a folder, or a name on the Hugging Face hub"


class _Formatter(argparse.HelpFormatter):
    """Adds each option's default to its help, unless the help says it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        told = default is None or default is False or default == () or default == argparse.SUPPRESS
        return text if told or "(default" in text or action.required else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Names the nearest of its options, or choices, for one that it does not have."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = self._option_string_actions
        for text in args or () if self._subparsers is None else ():  # before what is missing: it may be mistyped
            name = text.split("=")[0]
            if text.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"there is no option {name}{self._hint(name, known)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += self._hint(str(value), map(str, action.choices or ()))
            raise

    @staticmethod
    def _hint(text: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(text, list(known), n=1, cutoff=0.7)
        return f"; did you mean {near[0]}?" if near else ""


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bertnli", description="Fine-tune and run BERT on sentence pairs, fast.")
    parser.add_argument("--version", action="version", version=f"bertnli {_version()}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(run.__name__, help=text, description=text, formatter_class=_Formatter)
        sub.set_defaults(run=run)
        return sub

    _add_demo(command(commands.demo, "Generate a small NLI corpus, train on it from scratch, and predict three pairs."))
    _add_train(command(commands.train, "Fine-tune a checkpoint, or train from scratch, on labelled examples."))
    _add_distill(
        command(commands.distill, "Train a small student on the labels and on a fine-tuned teacher's outputs.")
    )

    sub = command(commands.evaluate, "Measure a checkpoint on labelled examples.")
    sub.add_argument("--model", required=True, help=_CHECKPOINT)
    sub.add_argument(
        "--data",
        type=Path,
        required=True,
        help="file of labelled examples, or a folder with snli_1.0_test.txt or .jsonl",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    _add_reading(sub)
    _add_running(sub)

    sub = command(commands.predict, "Run a checkpoint: one JSON value a line, in the order of the input.")
    sub.add_argument("--model", required=True, help=_CHECKPOINT)
    sub.add_argument(
        "--input",
        default="-",
        help="file with one example per line: `text` or `premise<TAB>hypothesis`, space-separated words (tagging), or "
        "`question<TAB>context` (qa); or JSON objects with the keys text; premise, hypothesis; words (a list); "
        'question, context. - is standard input. An empty line is an error, an empty text is {"text": ""}; the '
        "examples before a broken line are predicted (a table is read as a whole first)",
    )
    _add_text_columns(sub)
    _add_running(sub)

    sub = command(export, "Write a checkpoint in another format.")
    sub.add_argument("--model", required=True, help=_CHECKPOINT)
    sub.add_argument("--output", type=Path, required=True, help="folder to write")
    sub.add_argument(
        "--format",
        choices=("huggingface", "onnx", "d2l", "bertnli"),
        default="huggingface",
        help="huggingface for transformers and sentence-transformers; onnx for ONNX Runtime (needs bertnli[onnx]); d2l "
        "for D2L's code; bertnli",
    )
    sub.add_argument("--int8", action="store_true", help="with --format onnx, write model_quantized.onnx too")
    sub.add_argument(
        "--data",
        type=Path,
        help="file of labelled examples, or a folder in SNLI's layout, on which to compare the ONNX model with the "
        "original (default: random tokens)",
    )
    sub.add_argument("--samples", type=_positive, default=1000, help="examples to compare at most")
    _add_reading(sub)

    sub = command(commands.download, "Download and unpack SNLI, bert.small or bert.base.")
    sub.add_argument("name", choices=sorted(hub.DATA_HUB), help="what to download")
    sub.add_argument(
        "--folder",
        type=Path,
        default=hub.cache_dir(),
        help="folder to unpack into (default: $BERTNLI_CACHE, else ~/.cache/bertnli)",
    )
    return parser


def _add_demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="folder for the corpus, the checkpoint, metrics.jsonl and curves.png",
    )
    sub.add_argument("--epochs", type=_positive, default=4, help="passes over the generated pairs")
    sub.add_argument("--pairs", type=_positive, default=40000, help="number of training pairs to generate")
    sub.add_argument("--seed", type=int, default=0, help="seed of the corpus and of the training")
    sub.add_argument("--quiet", action="store_true", help="no progress")


def _add_train(sub: argparse.ArgumentParser) -> None:
    model = sub.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="checkpoint folder, bert.small, bert.base, or a name on the Hugging Face hub")
    model.add_argument("--scratch", choices=SIZES, help="size of a model with random weights and its own vocabulary")
    sub.add_argument("--task", choices=HEADS, help="task to train (default: the checkpoint's, else classification)")
    _add_data(sub)
    sub.add_argument(
        "--dropout", type=float, help="dropout probability (default: the checkpoint's; with --scratch 0.1)"
    )
    sub.add_argument(
        "--vocab",
        choices=("words", "pieces", "characters"),
        default="words",
        help="tokens of --scratch; pieces are words, and parts of rare words (default: words)",
    )
    sub.add_argument("--min-freq", type=_positive, default=5, help="occurrences below which --scratch drops a token")
    sub.add_argument("--stride", type=int, help="tokens that windows of a context share, for --task qa (default: 128)")
    _add_training(sub)


def _add_distill(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--teacher", required=True, help=_CHECKPOINT)
    _add_data(sub)
    sub.add_argument(
        "--unlabelled",
        type=Path,
        help="file of further examples, as `bertnli predict` takes them; a table may also have --text-columns",
    )
    sub.add_argument(
        "--num-hiddens",
        type=_positive,
        default=128,
        help="width of the student; with --teacher-layers a multiple of the size of the teacher's heads, at most its "
        "width",
    )
    sub.add_argument(
        "--ffn-num-hiddens",
        type=_positive,
        help="feed-forward width of the student (default: 4 x --num-hiddens; with --teacher-layers at most the "
        "teacher's, and the teacher's where the widths are equal)",
    )
    sub.add_argument(
        "--num-heads",
        type=_positive,
        help="attention heads of the student (default: width / 32, or / the teacher's head size with --teacher-layers)",
    )
    sub.add_argument("--num-layers", type=_positive, help="layers of the student (default: 4, or of --teacher-layers)")
    sub.add_argument(
        "--teacher-layers", type=_numbers, help="teacher layers, from 0, comma-separated, that initialise the student's"
    )
    sub.add_argument(
        "--min-freq", type=_positive, default=1, help="occurrences in the data below which to drop a token"
    )
    sub.add_argument("--temperature", type=float, default=2.0, help="temperature of the soft labels")
    sub.add_argument("--hard", type=float, default=0.5, help="weight of the loss on the labels")
    sub.add_argument(
        "--soft",
        type=float,
        default=0.5,
        help="weight of the KL divergence to the teacher's softened probabilities (regression: squared error)",
    )
    sub.add_argument(
        "--hidden",
        type=float,
        default=0.1,
        help="weight of the mean squared error of hidden states, projected to the teacher's width",
    )
    sub.add_argument(
        "--hidden-layers", type=_numbers, default=(),
        help="teacher layers, from 0, comma-separated, whose hidden states the student's first layers also match",
    )  # fmt: skip
    _add_training(sub, epochs=5, lr=5e-4)


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--train",
        type=Path,
        required=True,
        help="file of labelled examples, or a folder with snli_1.0_train.txt or .jsonl",
    )
    sub.add_argument(
        "--dev", type=Path, help="file or folder of labelled examples (default: the dev file, if --train is a folder)"
    )
    sub.add_argument("--limit", type=_positive, help="use only the first LIMIT training examples (default: all)")
    sub.add_argument("--output", type=Path, required=True, help="folder to write")
    _add_reading(sub)


def _add_reading(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--labels",
        type=_names,
        help="class names, comma-separated ('\"yes, please\",no' if a name has one), in the order of integer labels "
        "(default: the checkpoint's, else the data's); the checkpoint's names in another order reorder its outputs",
    )
    sub.add_argument(
        "--columns",
        choices=get_args(Columns),
        help="columns of SNLI files: parse reads sentence1_binary_parse and sentence2_binary_parse, text reads "
        "sentence1 and sentence2 (default: parse for a word vocabulary, text for WordPiece)",
    )
    _add_text_columns(sub)
    sub.add_argument(
        "--label-column",
        help="column of the labels in a table (default: label); for tagging the number of the tags' column (default: "
        "the last), in a .conllu file upos or xpos",
    )


def _add_text_columns(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--text-columns",
        type=_names,
        help="text column, or premise and hypothesis columns separated by a comma, of a .csv, .tsv, .jsonl or "
        ".parquet file; column numbers from 1 if it has no header",
    )


def _add_training(sub: argparse.ArgumentParser, **defaults: Any) -> None:
    """A flag for each field of TrainingOptions, with `defaults` of the command, and what else a run needs."""
    for field in fields(TrainingOptions):
        meta = field.metadata
        flag, default = f"--{field.name.replace('_', '-')}", defaults.get(field.name, field.default)
        if meta["type"] is bool:
            sub.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=meta["help"])
        else:
            sub.add_argument(flag, type=meta["type"], choices=meta["choices"], default=default, help=meta["help"])
    _add_encoding(sub)
    sub.add_argument("--resume", action="store_true", help="continue the interrupted run of --output")
    sub.add_argument(
        "--overwrite", action="store_true", help="replace the model or the interrupted run that --output holds"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress")


def _add_running(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--batch-size", type=_positive, default=256, help="examples per batch")
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the matrix products")
    _add_encoding(sub)


def _add_encoding(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--max-len",
        type=_positive,
        help="maximum tokens per sequence (default: the checkpoint's setting, else 128, for qa 384)",
    )
    sub.add_argument(
        "--truncation",
        choices=get_args(Truncation),
        default="longest_first",
        help="how pairs longer than --max-len are cut: longest_first drops tokens of the longer text; longest_first_hf "
        "as Hugging Face's fast tokenizers do; ratio in proportion to the lengths; only_first, only_second that text",
    )
    sub.add_argument(
        "--split-special-tokens",
        action="store_true",
        help="read a literal [SEP] or [CLS] in a text as ordinary text, for text that strangers write (default: the "
        "checkpoint's setting; words of a word vocabulary are always ordinary)",
    )
    sub.add_argument("--device", help="torch device (default: a GPU if there is one)")
    sub.add_argument(
        "--threads", type=_positive, help="number of CPU threads (default: $OMP_NUM_THREADS, else one per core)"
    )


def _version() -> str:
    try:
        return version("bertnli")
    except PackageNotFoundError:
        return "not installed"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; found {value}")
    return value


def _names(text: str) -> tuple[str, ...]:
    """Names as a row of a .csv file has them."""
    try:
        (row,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        row = []
    names = tuple(name.strip() for name in row)
    if not names or not all(names):
        raise argparse.ArgumentTypeError(
            f"expected names separated by commas, with double quotes around a name that has a comma; found {text!r}"
        )
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))
