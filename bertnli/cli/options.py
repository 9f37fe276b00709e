"""The options that commands share, and their types. Training flags are made from the fields of TrainingOptions.

Nothing here imports torch: help, completion and the errors of a mistyped command line come at once.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import rich_click as click
from click.shell_completion import CompletionItem

from bertnli.runtime import PRECISIONS
from bertnli.training.options import TrainingOptions

# What the library defines beside code that needs torch.
TASKS = ("classification", "multilabel", "regression", "tagging", "qa")
SCRATCH_SIZES = ("bert.small", "bert.base")
TRUNCATIONS = ("longest_first", "longest_first_hf", "ratio", "only_first", "only_second")
SNLI_COLUMNS = ("parse", "text")
POOLINGS = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")
BENCH_WORKS = ("text", "inference", "training")
BENCH_SIZES = ("small", "minilm", "base")
DOWNLOADS = ("SNLI", "wikitext-2", "bert.base", "bert.small")

MODEL, DATA, TRAINING, OUTPUT, RUNNING = "Model", "Data", "Training", "Output", "Running"
CHECKPOINT = "fine-tuned checkpoint: a folder, or a name on the Hugging Face hub"
POSITIVE = click.IntRange(min=1)
STDIN = Path("-")
OUTPUT_PATH = click.Path(path_type=Path)


def hint(text: str, known: Sequence[str]) -> str:
    """The end of an error about `text`: the nearest of the known names, if one is near."""
    near = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def nearest_path(path: Path) -> Path | None:
    """The existing path whose name is nearest, folder by folder; None if none is near."""
    if path.exists():
        return path
    folder = nearest_path(path.parent)
    if folder is None or not folder.is_dir():
        return None
    near = difflib.get_close_matches(path.name, [child.name for child in folder.iterdir()], n=1)
    return folder / near[0] if near else None


def path_hint(path: Path) -> str:
    near = nearest_path(path)
    return "" if near is None else f"; did you mean {near}?"


class InputPath(click.Path):
    """A file or folder that exists, or - for standard input; the error of another one names the nearest."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path != STDIN and not path.exists():
            self.fail(f"{path}: no such file or folder{path_hint(path)}", param, ctx)
        return path


class ModelName(click.ParamType[str]):
    """A checkpoint folder or a name on the hub."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


class Choice(click.Choice[str]):
    """The error of a value that is not a choice names the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        return message.removesuffix(".") + hint(str(value), self.choices)


class Names(click.ParamType[tuple[Any, ...]]):
    """Names separated by commas, as a row of a .csv file has them; in a configuration file a list."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, list | tuple):
            return tuple(map(str, value))
        try:
            (row,) = csv.reader([value], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError):
            row = []
        names = tuple(name.strip() for name in row)
        if not names or not all(names):
            self.fail(
                "expected names separated by commas, with double quotes around a name that has a comma; found "
                f"{value!r}",
                param,
                ctx,
            )
        return names


class Numbers(Names):
    """Integers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        try:
            return tuple(int(name) for name in super().convert(value, param, ctx))
        except ValueError:
            self.fail(f"expected integers separated by commas; found {value!r}", param, ctx)


class Parsed(click.ParamType[Any]):
    """What a function makes of the text."""

    name = "value"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def option(flag: str, panel: str, *, help: str, **settings: Any) -> click.Option:
    """An option under a heading of the help, with its default unless the help says it."""
    if settings.get("default") is False:
        settings["is_flag"] = True
    if settings.get("type") is POSITIVE:
        settings["metavar"] = "INTEGER"
    settings.setdefault("show_default", settings.get("default") is not False and "(default" not in help)
    return click.RichOption([flag], panel=panel, help=help, **settings)


def model_option(help: str = CHECKPOINT) -> click.Option:
    return option("--model", MODEL, type=ModelName(), required=True, help=help)


def lines_option(help: str) -> click.Option:
    """A file of lines, by default standard input."""
    return option("--input", DATA, type=InputPath(), default="-", show_default=False, help=help)


def switch(flag: str, panel: str, *, help: str) -> click.Option:
    return option(flag, panel, help=help, default=False)


def training_options(**defaults: Any) -> list[click.Parameter]:
    """A flag for each field of TrainingOptions, with `defaults` of the command."""
    made = []
    for field in fields(TrainingOptions):
        meta, flag = field.metadata, f"--{field.name.replace('_', '-')}"
        settings: dict[str, Any] = {"default": defaults.get(field.name, field.default), "help": meta["help"]}
        if meta["type"] is bool:
            flag, settings["is_flag"] = f"{flag}/--no-{flag[2:]}", True
            settings["show_default"] = False
        elif meta["choices"]:
            settings["type"] = Choice(meta["choices"])
        else:
            settings["type"] = meta["type"] if meta["type"] in (int, float, str) else Parsed(meta["type"])
        made.append(option(flag, TRAINING, **settings))
    return [*made]


def run_options() -> list[click.Parameter]:
    """What commands that train take beside their data, model and options."""
    return [
        option("--output", OUTPUT, type=OUTPUT_PATH, required=True, help="folder to write"),
        option(
            "--keep",
            OUTPUT,
            type=POSITIVE,
            help="number of the best checkpoints to keep in OUTPUT/checkpoints, beside the last (default: none)",
        ),
        option(
            "--log",
            OUTPUT,
            type=Choice(("tensorboard", "wandb", "mlflow")),
            multiple=True,
            show_default=False,
            help="log of losses and figures, which can be given several times: tensorboard writes OUTPUT/tensorboard; "
            "each needs its package",
        ),
        switch(
            "--resume",
            OUTPUT,
            help="continue the run of --output: an interrupted one, or one that is done for more --epochs",
        ),
        switch(
            "--discard-state",
            OUTPUT,
            help="remove the run's state, up to four times the model's size, when it is done; --resume cannot give "
            "it more --epochs then",
        ),
        switch("--overwrite", OUTPUT, help="replace the model or the interrupted run that --output holds"),
        json_switch("the figures of each epoch as JSON lines; what is for people goes to standard error"),
        switch("--quiet", OUTPUT, help="no progress"),
    ]


def json_switch(what: str) -> click.Option:
    return switch("--json", OUTPUT, help=f"print {what}")


def train_data_options() -> list[click.Parameter]:
    return [
        option(
            "--train",
            DATA,
            type=InputPath(),
            required=True,
            help="file of labelled examples, or a folder with snli_1.0_train.txt or .jsonl",
        ),
        option(
            "--dev",
            DATA,
            type=InputPath(),
            help="file or folder of labelled examples (default: the dev file, if --train is a folder)",
        ),
        option("--limit", DATA, type=POSITIVE, help="use only the first examples of --train, so many (default: all)"),
        *reading_options(),
        *encoding_options(),
    ]


def reading_options() -> list[click.Parameter]:
    return [
        option(
            "--labels",
            DATA,
            type=Names(),
            help="class names, comma-separated ('\"yes, please\",no' if a name has one), in the order of integer "
            "labels (default: the checkpoint's, else the data's); the checkpoint's names in another order reorder its "
            "outputs",
        ),
        option(
            "--columns",
            DATA,
            type=Choice(SNLI_COLUMNS),
            help="columns of SNLI files: parse reads sentence1_binary_parse and sentence2_binary_parse, text reads "
            "sentence1 and sentence2 (default: parse for a word vocabulary, text for WordPiece)",
        ),
        text_columns_option(),
        option(
            "--label-column",
            DATA,
            help="column of the labels in a table (default: label); for tagging the number of the tags' column "
            "(default: the last), in a .conllu file upos or xpos",
        ),
        option(
            "--separator",
            DATA,
            default=",",
            help="text between the classes of an example, for --task multilabel",
        ),
        *table_options(),
    ]


def text_columns_option(
    what: str = "text column, or premise and hypothesis columns separated by a comma,",
) -> click.Option:
    return option(
        "--text-columns",
        DATA,
        type=Names(),
        help=f"{what} of a .csv, .tsv, .jsonl or .parquet file; column numbers from 1 if it has no header",
    )


def table_options() -> list[click.Parameter]:
    return [
        option("--encoding", DATA, default="utf-8", help="of text files, by Python's name"),
        option("--delimiter", DATA, help="of a table's fields (default: a comma in .csv, else a tab)"),
    ]


def column_options() -> list[click.Parameter]:
    """What commands take that read one text a line, or a column of a table."""
    return [text_columns_option("column of the texts,"), *table_options()]


def encoding_options() -> list[click.Parameter]:
    return [
        option(
            "--max-len",
            DATA,
            type=POSITIVE,
            help="maximum tokens per sequence (default: the checkpoint's setting, else 128, for qa 384)",
        ),
        option(
            "--truncation",
            DATA,
            type=Choice(TRUNCATIONS),
            default="longest_first",
            help="how pairs longer than --max-len are cut: longest_first drops tokens of the longer text; "
            "longest_first_hf as Hugging Face's fast tokenizers do; ratio in proportion to the lengths; only_first, "
            "only_second that text",
        ),
        switch(
            "--split-special-tokens",
            DATA,
            help="read a literal [SEP] or [CLS] in a text as ordinary text, for text that strangers write (default: "
            "the checkpoint's setting; words of a word vocabulary are always ordinary)",
        ),
    ]


def machine_options() -> list[click.Parameter]:
    return [
        option("--device", RUNNING, help="torch device (default: a GPU if there is one)"),
        option(
            "--threads",
            RUNNING,
            type=POSITIVE,
            help="number of CPU threads (default: $OMP_NUM_THREADS, else one per core)",
        ),
    ]


def inference_options(batch_size: int = 256) -> list[click.Parameter]:
    return [
        option("--batch-size", RUNNING, type=POSITIVE, default=batch_size, help="examples per batch"),
        option(
            "--precision", RUNNING, type=Choice(PRECISIONS), default="fp32", help="precision of the matrix products"
        ),
        *machine_options(),
    ]
