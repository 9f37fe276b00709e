"""The options of the commands that train: train, pretrain, distill, demo."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bertnli.cli.config import config_option
from bertnli.cli.group import OTHER_COMMANDS, TRAINING_COMMANDS, add
from bertnli.cli.options import (
    CHECKPOINT,
    DATA,
    MODEL,
    OUTPUT,
    OUTPUT_PATH,
    POSITIVE,
    SCRATCH_SIZES,
    TASKS,
    TRAINING,
    Choice,
    InputPath,
    ModelName,
    Numbers,
    json_switch,
    machine_options,
    option,
    run_options,
    switch,
    train_data_options,
    training_options,
)


def start_options() -> list[click.Parameter]:
    """What a run starts from."""
    return [
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
        option("--min-freq", MODEL, type=POSITIVE, default=5, help="occurrences below which --scratch drops a token"),
    ]


def task_options() -> list[click.Parameter]:
    """What a run of a task starts from and reads, and how it trains."""
    return [
        *start_options(),
        option(
            "--task", MODEL, type=Choice(TASKS), help="task to train (default: the checkpoint's, else classification)"
        ),
        *train_data_options(),
        option(
            "--windows",
            DATA,
            type=Choice(("mean", "max")),
            help="how the outputs of the windows of a long text, or of a pair's longer text, are pooled (default: long "
            "texts are truncated)",
        ),
        option(
            "--stride",
            DATA,
            type=int,
            help="tokens that neighbouring windows of a text share (default: 0; for --task qa of a context, 128)",
        ),
        *training_options(),
    ]


add(
    "train.train",
    "Fine-tune a checkpoint, or train from scratch, on labelled examples.",
    [
        "bertnli train --model runs/demo --train runs/demo/corpus --output runs/tuned",
        "bertnli train --model bert-base-uncased --train reviews.csv --text-columns text --output runs/reviews",
        "bertnli train --scratch bert.small --task tagging --train train.conll --dev dev.conll --output runs/tags",
        "bertnli train --config runs/tuned/run.toml --seed 1 --output runs/again",
    ],
    [
        *task_options(),
        switch(
            "--calibrate",
            TRAINING,
            help="divide a classifier's outputs by the temperature that fits its probabilities to the dev data",
        ),
        option(
            "--folds",
            TRAINING,
            type=click.IntRange(min=2),
            metavar="INTEGER",
            help="cross-validate first, on so many parts of --train: each is measured by a model of the others "
            "(default: none); the model that is written is trained on all of --train",
        ),
        *run_options(),
        config_option(),
        *machine_options(),
    ],
    TRAINING_COMMANDS,
)  # fmt: skip

add(
    "tune.tune",
    "Search for the training options of the best dev score, with Optuna; the best run is written as `train` does.",
    [
        "bertnli tune --model runs/demo --train runs/demo/corpus --search ranges.toml --trials 20 --output runs/best",
        "bertnli train --config runs/best/run.toml --output runs/again",
    ],
    [
        *task_options(),
        option(
            "--search",
            TRAINING,
            type=InputPath(),
            required=True,
            help="TOML file of ranges by option: a table [search] with lines such as "
            "lr = {low = 1e-5, high = 1e-3, log = true} or batch_size = [16, 32]",
        ),
        option("--trials", TRAINING, type=POSITIVE, default=20, help="runs in all, those before --resume included"),
        option("--timeout", TRAINING, type=float, help="minutes after which no further trial begins (default: none)"),
        option("--output", OUTPUT, type=OUTPUT_PATH, required=True, help="folder to write"),
        switch("--resume", OUTPUT, help="continue the search of --output"),
        switch("--overwrite", OUTPUT, help="replace the model or the search that --output holds"),
        json_switch("each trial as a JSON line; what is for people goes to standard error"),
        switch("--quiet", OUTPUT, help="no progress"),
        config_option(),
        *machine_options(),
    ],
    TRAINING_COMMANDS,
)  # fmt: skip

add(
    "pretrain.pretrain",
    "Pretrain an encoder on plain text, by masked words and next sentences.",
    [
        "bertnli pretrain --scratch bert.small --vocab pieces --train text.txt --output runs/bert --lr 5e-4",
        "bertnli train --model runs/bert --train reviews.csv --text-columns text --output runs/reviews",
    ],
    [
        *start_options(),
        option(
            "--train",
            DATA,
            type=InputPath(),
            required=True,
            help="text file with one paragraph a line; sentences end at a full stop, ! or ? before a space",
        ),
        option("--dev", DATA, type=InputPath(), help="text file to evaluate on (default: none)"),
        option("--limit", DATA, type=POSITIVE, help="use only the first paragraphs of --train, so many (default: all)"),
        option("--max-len", DATA, type=POSITIVE, default=128, help="maximum tokens of a pair of sentences"),
        switch("--whole-words", DATA, help="mask whole words instead of pieces"),
        option("--copies", DATA, type=POSITIVE, default=1, help="masks of each sentence in an epoch"),
        *training_options(),
        *run_options(),
        config_option(),
        *machine_options(),
    ],
    TRAINING_COMMANDS,
)  # fmt: skip

add(
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
    TRAINING_COMMANDS,
)  # fmt: skip

add(
    "demo.demo",
    "Generate a small NLI corpus, train on it from scratch, and predict three pairs.",
    ["bertnli demo", "bertnli demo --pairs 2000 --epochs 1 --output runs/quick"],
    [
        option(
            "--output",
            OUTPUT,
            type=OUTPUT_PATH,
            default=Path("runs/demo"),
            help="folder for the corpus, the checkpoint, metrics.jsonl and report.html",
        ),
        option("--epochs", TRAINING, type=POSITIVE, default=4, help="passes over the generated pairs"),
        option("--pairs", DATA, type=POSITIVE, default=40000, help="number of training pairs to generate"),
        option("--seed", TRAINING, type=int, default=0, help="seed of the corpus and of the training"),
        json_switch("the figures as JSON lines; what is for people goes to standard error"),
        switch("--quiet", OUTPUT, help="no progress"),
    ],
    OTHER_COMMANDS,
)
