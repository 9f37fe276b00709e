"""The commands and their options. A command's function is imported, and torch with it, when the command runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rich_click as click

from bertnli import __version__
from bertnli.cli.config import config_option, drop_replaced
from bertnli.cli.options import (
    CHECKPOINT,
    DATA,
    DOWNLOADS,
    MODEL,
    OUTPUT,
    POSITIVE,
    SCRATCH_SIZES,
    TASKS,
    TRAINING,
    Choice,
    InputPath,
    ModelName,
    Names,
    Numbers,
    encoding_options,
    inference_options,
    json_switch,
    machine_options,
    option,
    reading_options,
    run_options,
    switch,
    text_columns_option,
    train_data_options,
    training_options,
)
from bertnli.training.options import TrainingOptions

_COMPLETION = 'Completion: eval "$(_BERTNLI_COMPLETE=bash_source bertnli)" in ~/.bashrc; zsh and fish likewise.'


_TRAINING, _USING, _OTHER = "Training", "Using a model", "More"  # headings of the list of commands
_STYLE = {
    "theme": "default-slim",
    "options_table_column_types": ["opt_all", "help"],
    "options_table_help_sections": ["help", "metavar", "required", "default"],
    "default_string": "(default: {})",
    "required_long_string": "(required)",
}


@click.group(
    help="Fine-tune and run BERT on sentence pairs, fast.",
    epilog=_COMPLETION,
    panels=[click.RichCommandPanel(name) for name in (_TRAINING, _USING, _OTHER)],
    context_settings={"rich_help_config": _STYLE},
)
@click.version_option(__version__, prog_name="bertnli", message="%(prog)s %(version)s")
def cli() -> None: ...


def _add(
    run: str, text: str, examples: Sequence[str], params: list[click.Parameter], panel: str, name: str | None = None
) -> None:
    """Add a command: `run` is its function, "module.function" of this room."""
    name = name or run.split(".")[1].replace("_", "-")

    @click.pass_context
    def parsed(ctx: click.RichContext, /, **values: Any) -> SimpleNamespace:
        drop_replaced(ctx, values)
        if "scratch" in values and (values["model"] is None) == (values["scratch"] is None):
            raise click.UsageError("give either --model or --scratch", ctx)
        args = SimpleNamespace(command=name, params=values, **values)
        if "resume" in values:  # of a command that trains: options out of range are refused before torch is imported
            try:
                args.options = TrainingOptions(**{f.name: values[f.name] for f in fields(TrainingOptions)})
            except TypeError as error:  # a list or a table in a configuration file
                raise ValueError(str(error)) from None
        module, function = run.split(".")
        args.run = lambda: getattr(import_module(f"bertnli.cli.{module}"), function)(args)
        return args

    epilog = "\n\n".join(["Examples:", *examples])
    cli.add_command(
        click.RichCommand(name=name, params=params, callback=parsed, help=text, epilog=epilog, panel=panel), name
    )


def parse(argv: Sequence[str] | None) -> SimpleNamespace | None:
    """The command's arguments, with `run`, which runs it; None if help or the version was printed.

    Raises click.ClickException for a mistyped command line, ValueError for training options out of range.
    """
    parsed = cli.main(argv, prog_name="bertnli", standalone_mode=False)
    return parsed if isinstance(parsed, SimpleNamespace) else None


_add(
    "train.train",
    "Fine-tune a checkpoint, or train from scratch, on labelled examples.",
    [
        "bertnli train --model runs/demo --train runs/demo/corpus --output runs/tuned",
        "bertnli train --model bert-base-uncased --train reviews.csv --text-columns text --output runs/reviews",
        "bertnli train --scratch bert.small --task tagging --train train.conll --dev dev.conll --output runs/tags",
        "bertnli train --config runs/tuned/run.toml --seed 1 --output runs/again",
    ],
    [
        option(
            "--model",
            MODEL,
            type=ModelName(),
            help="checkpoint folder, bert.small, bert.base, or a name on the Hugging Face hub",
        ),
        option(
            "--scratch",
            MODEL,
            type=Choice(SCRATCH_SIZES),
            help="in place of --model, the size of a model with random weights and its own vocabulary",
        ),
        option(
            "--task", MODEL, type=Choice(TASKS), help="task to train (default: the checkpoint's, else classification)"
        ),
        option(
            "--dropout",
            MODEL,
            type=float,
            help="dropout probability (default: the checkpoint's; with --scratch 0.1)",
        ),
        option(
            "--vocab",
            MODEL,
            type=Choice(("words", "pieces", "characters")),
            default="words",
            help="tokens of --scratch; pieces are words, and parts of rare words",
        ),
        option(
            "--min-freq", MODEL, type=POSITIVE, default=5, help="occurrences below which --scratch drops a token"
        ),
        *train_data_options(),
        option("--stride", DATA, type=int, help="tokens that windows of a context share, for --task qa (default: 128)"),
        *training_options(),
        *run_options(),
        config_option(),
        *machine_options(),
    ],
    _TRAINING,
)  # fmt: skip

_add(
    "distill.distill",
    "Train a small student on the labels and on a fine-tuned teacher's outputs.",
    [
        "bertnli distill --teacher runs/base --train data/snli_1.0 --output runs/small",
        "bertnli distill --teacher runs/base --teacher-layers 0,2,4 --num-hiddens 768 --train train.csv "
        "--text-columns a,b --output runs/three-layers",
    ],
    [
        option("--teacher", MODEL, type=ModelName(), required=True, help=CHECKPOINT),
        option(
            "--num-hiddens",
            MODEL,
            type=POSITIVE,
            default=128,
            help="width of the student; with --teacher-layers a multiple of the size of the teacher's heads, at most "
            "its width",
        ),
        option(
            "--ffn-num-hiddens",
            MODEL,
            type=POSITIVE,
            help="feed-forward width of the student (default: 4 x --num-hiddens; with --teacher-layers at most the "
            "teacher's, and the teacher's where the widths are equal)",
        ),
        option(
            "--num-heads",
            MODEL,
            type=POSITIVE,
            help="attention heads of the student (default: width / 32, or / the teacher's head size with "
            "--teacher-layers)",
        ),
        option(
            "--num-layers",
            MODEL,
            type=POSITIVE,
            help="layers of the student (default: 4, or of --teacher-layers)",
        ),
        option(
            "--teacher-layers",
            MODEL,
            type=Numbers(),
            help="teacher layers, from 0, comma-separated, that initialise the student's",
        ),
        option(
            "--min-freq", MODEL, type=POSITIVE, default=1, help="occurrences in the data below which to drop a token"
        ),
        *train_data_options(),
        option(
            "--unlabelled",
            DATA,
            type=InputPath(),
            help="file of further examples, as `bertnli predict` takes them; a table may also have --text-columns",
        ),
        option("--temperature", TRAINING, type=float, default=2.0, help="temperature of the soft labels"),
        option("--hard", TRAINING, type=float, default=0.5, help="weight of the loss on the labels"),
        option(
            "--soft",
            TRAINING,
            type=float,
            default=0.5,
            help="weight of the KL divergence to the teacher's softened probabilities (regression: squared error)",
        ),
        option(
            "--hidden",
            TRAINING,
            type=float,
            default=0.1,
            help="weight of the mean squared error of hidden states, projected to the teacher's width",
        ),
        option(
            "--hidden-layers",
            TRAINING,
            type=Numbers(),
            default=(),
            show_default=False,
            help="teacher layers, from 0, comma-separated, whose hidden states the student's first layers also match",
        ),
        *training_options(epochs=5, lr=5e-4),
        *run_options(),
        config_option(),
        *machine_options(),
    ],
    _TRAINING,
)  # fmt: skip

_add(
    "evaluate.evaluate",
    "Measure a checkpoint on labelled examples.",
    [
        "bertnli evaluate --model runs/tuned --data runs/demo/corpus",
        "bertnli evaluate --model runs/reviews --data test.csv --text-columns text --json",
    ],
    [
        option("--model", MODEL, type=ModelName(), required=True, help=CHECKPOINT),
        option(
            "--data",
            DATA,
            type=InputPath(),
            required=True,
            help="file of labelled examples, or a folder with snli_1.0_test.txt or .jsonl",
        ),
        *reading_options(),
        *encoding_options(),
        json_switch("one JSON object"),
        *inference_options(),
    ],
    _USING,
)

_add(
    "evaluate.predict",
    "Run a checkpoint: one JSON value a line, in the order of the input.",
    [
        "bertnli predict --model runs/tuned --input pairs.tsv > predictions.jsonl",
        r"printf 'A man is asleep.\tHe sleeps.\n' | bertnli predict --model runs/tuned",
    ],
    [
        option("--model", MODEL, type=ModelName(), required=True, help=CHECKPOINT),
        option(
            "--input",
            DATA,
            type=InputPath(),
            default="-",
            show_default=False,
            help="file with one example per line: `text` or `premise<TAB>hypothesis`, space-separated words "
            "(tagging), or `question<TAB>context` (qa); or JSON objects with the keys text; premise, hypothesis; "
            "words (a list); question, context (default: -, standard input). An empty line is an error, an empty text "
            'is {"text": ""}; the examples before a broken line are predicted (a table is read as a whole first)',
        ),
        text_columns_option(),
        *encoding_options(),
        *inference_options(),
    ],
    _USING,
)

_add(
    "ranking.rank",
    "Rank documents for a query by a cross-encoder: one JSON object a line, the best first.",
    [
        'bertnli rank --model cross-encoder/ms-marco-MiniLM-L6-v2 --query "how tall is Everest" --documents docs.txt',
        "bertnli rank --model runs/reranker --input queries.jsonl --top-k 3",
    ],
    [
        option("--model", MODEL, type=ModelName(), required=True, help=CHECKPOINT),
        option("--label", MODEL, help="class whose probability is the score; a classifier needs it"),
        option("--query", DATA, help="text to rank the documents of --documents for"),
        option("--documents", DATA, type=InputPath(), help="file with one document a line, or - for standard input"),
        option(
            "--input",
            DATA,
            type=InputPath(),
            help='in place of --query, a file of JSON lines {"query": ..., "documents": [...]}, or -',
        ),
        option("--top-k", OUTPUT, type=POSITIVE, default=10, help="documents of a query to print at most"),
        *inference_options(),
    ],
    _USING,
)

_add(
    "ranking.zero_shot",
    "Classify texts into classes that the model was not trained on, by natural language inference.",
    [
        "bertnli zero-shot --model runs/tuned --labels sport,politics --input texts.txt",
        'echo "Who won the match?" | bertnli zero-shot --model runs/tuned --labels sport,politics',
    ],
    [
        option(
            "--model",
            MODEL,
            type=ModelName(),
            required=True,
            help="checkpoint with a class of entailment: a folder, or a name on the Hugging Face hub",
        ),
        option("--labels", MODEL, type=Names(), required=True, help="class names, comma-separated"),
        option(
            "--template",
            MODEL,
            default="This example is {}.",
            help="hypothesis, with {} for the class name",
        ),
        option(
            "--input",
            DATA,
            type=InputPath(),
            default="-",
            show_default=False,
            help="file with one text a line (default: -, standard input)",
        ),
        *inference_options(),
    ],
    _USING,
)

_add(
    "export.export",
    "Write a checkpoint in another format.",
    [
        "bertnli export --model runs/tuned --output runs/tuned-hf",
        "bertnli export --model runs/tuned --output runs/tuned-onnx --format onnx --int8 --data runs/demo/corpus",
    ],
    [
        option("--model", MODEL, type=ModelName(), required=True, help=CHECKPOINT),
        option("--output", OUTPUT, type=click.Path(path_type=Path), required=True, help="folder to write"),
        option(
            "--format",
            OUTPUT,
            type=Choice(("huggingface", "onnx", "d2l", "bertnli")),
            default="huggingface",
            help="huggingface for transformers and sentence-transformers; onnx for ONNX Runtime (needs bertnli[onnx]); "
            "d2l for D2L's code; bertnli",
        ),
        switch("--int8", OUTPUT, help="with --format onnx, write model_quantized.onnx too"),
        option(
            "--data",
            DATA,
            type=InputPath(),
            help="file of labelled examples, or a folder in SNLI's layout, on which to compare the ONNX model with the "
            "original (default: random tokens)",
        ),
        option("--samples", DATA, type=POSITIVE, default=1000, help="examples to compare at most"),
        *reading_options(),
        json_switch("what was written and compared as one JSON object"),
    ],
    _USING,
)

_add(
    "info.info",
    "Show versions, the CPU's and GPU's features, which kernels run, and which precisions pay here.",
    ["bertnli info", "bertnli info --json"],
    [json_switch("one JSON object")],
    _OTHER,
)

_add(
    "download.download",
    "Download and unpack SNLI, bert.small or bert.base.",
    ["bertnli download SNLI --folder data"],
    [
        click.RichArgument(["name"], type=Choice(DOWNLOADS), help="what to download"),
        option(
            "--folder",
            OUTPUT,
            type=click.Path(path_type=Path),
            help="folder to unpack into (default: $BERTNLI_CACHE, else ~/.cache/bertnli)",
        ),
    ],
    _OTHER,
)

_add(
    "demo.demo",
    "Generate a small NLI corpus, train on it from scratch, and predict three pairs.",
    ["bertnli demo", "bertnli demo --pairs 2000 --epochs 1 --output runs/quick"],
    [
        option(
            "--output",
            OUTPUT,
            type=click.Path(path_type=Path),
            default=Path("runs/demo"),
            help="folder for the corpus, the checkpoint, metrics.jsonl and curves.png",
        ),
        option("--epochs", TRAINING, type=POSITIVE, default=4, help="passes over the generated pairs"),
        option("--pairs", DATA, type=POSITIVE, default=40000, help="number of training pairs to generate"),
        option("--seed", TRAINING, type=int, default=0, help="seed of the corpus and of the training"),
        json_switch("the figures as JSON lines; what is for people goes to standard error"),
        switch("--quiet", OUTPUT, help="no progress"),
    ],
    _OTHER,
)
