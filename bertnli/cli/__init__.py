"""The `bertnli` command: demo, train, distill, evaluate, predict, download."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch

from bertnli import checkpoint
from bertnli.data import demo
from bertnli.data import download as hub
from bertnli.data.conll import WordData, read_conll, read_conllu
from bertnli.data.files import atomic_path
from bertnli.data.snli import SNLI_LABELS, Columns, read_pairs, snli_file
from bertnli.data.squad import QuestionData, read_squad
from bertnli.data.tables import read_table
from bertnli.data.texts import TextData
from bertnli.distillation.distill import distill, make_student, pruned_tokenizer
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import SIZES, BERTConfig
from bertnli.inference.predict import evaluate, predict
from bertnli.runtime import distributed
from bertnli.runtime.precision import PRECISIONS, TRAINING_PRECISIONS
from bertnli.tasks.base import HEADS, Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.text.encoded import encoded_texts
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import space_out_data
from bertnli.text.wordpiece import WordPieceTokenizer
from bertnli.training.loop import Epoch, History, fit

TRUNCATIONS = get_args(Truncation)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 when the reader of its output has left, 2 for bad input, 130 when
    interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        with (
            distributed.process_group() as rank,
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere) if rank else nullcontext(),  # one of several processes speaks
        ):
            arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left; do not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"bertnli: interrupted{_kept(arguments)}", file=sys.stderr)
        return 130
    except (ValueError, OSError, IndexError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"bertnli: error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bertnli", description="Fine-tune and run BERT on sentence pairs, fast.")
    parser.add_argument("--version", action="version", version=f"bertnli {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("demo", _demo, "Generate a small NLI corpus, train on it from scratch, and predict three pairs.")
    sub.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for corpus, checkpoint and curves")
    sub.add_argument("--epochs", type=_positive, default=4, help="passes over the generated pairs")
    sub.add_argument("--pairs", type=_positive, default=20000, help="training pairs to generate")
    sub.add_argument("--seed", type=int, default=0, help="of the corpus and of the training")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")

    sub = command("train", _train, "Fine-tune a checkpoint, or train from scratch, on labelled examples.")
    model = sub.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="checkpoint folder, bert.small, bert.base, or a name on the hub")
    model.add_argument("--scratch", choices=SIZES, help="random weights of this size, vocabulary of the training data")
    sub.add_argument("--task", choices=HEADS, help="instead of the checkpoint's, or of classification")
    sub.add_argument("--train", type=Path, required=True, help="file of labelled examples, or a folder like SNLI's")
    sub.add_argument("--dev", type=Path, help="file of labelled examples; of a folder, its dev file")
    sub.add_argument("--output", type=Path, required=True, help="folder to write")
    _add_reading(sub)
    _add_training(sub)
    sub.add_argument("--freeze", default="none", help="none, embeddings, encoder, gradual, or a number of layers")
    sub.add_argument("--dropout", type=float, default=None, help="instead of the checkpoint's")
    sub.add_argument("--vocab", choices=("words", "characters"), default="words", help="with --scratch: the tokens")
    sub.add_argument("--min-freq", type=_positive, default=5, help="with --scratch: rarer tokens are unknown")
    sub.add_argument("--stride", type=int, help="question answering: tokens that windows of a context share")

    sub = command("distill", _distill, "Train a small student on the labels and on what a fine-tuned teacher says.")
    sub.add_argument("--teacher", required=True, help="checkpoint folder of a fine-tuned model")
    sub.add_argument("--train", type=Path, required=True, help="file of labelled examples, or a folder like SNLI's")
    sub.add_argument("--dev", type=Path, help="file of labelled examples; of a folder, its dev file")
    sub.add_argument("--unlabelled", type=Path, help="further examples, as `bertnli predict` takes them")
    sub.add_argument("--output", type=Path, required=True, help="folder to write")
    _add_reading(sub)
    sub.add_argument(
        "--num-hiddens",
        type=_positive,
        default=128,
        help="width of the student; with --teacher-layers a multiple of the teacher's heads' size, at most its width",
    )
    sub.add_argument(
        "--ffn-num-hiddens",
        type=_positive,
        help="None: four times the width; with --teacher-layers at most the teacher's, at its width the teacher's",
    )
    sub.add_argument(
        "--num-heads", type=_positive, help="None: heads of 32; with --teacher-layers of the teacher's size"
    )
    sub.add_argument("--num-layers", type=_positive, help="None: 4, or as many as --teacher-layers")
    sub.add_argument(
        "--teacher-layers", type=_numbers, help="layers of the teacher that the student begins with, from 0"
    )
    sub.add_argument("--min-freq", type=_positive, default=1, help="rarer tokens of the data are not the student's")
    sub.add_argument("--temperature", type=float, default=2.0, help="of the soft labels")
    sub.add_argument("--hard", type=float, default=0.5, help="weight of the labels' loss")
    sub.add_argument("--soft", type=float, default=0.5, help="weight of the teacher's outputs")
    sub.add_argument("--hidden", type=float, default=0.1, help="weight of the teacher's vectors")
    sub.add_argument(
        "--hidden-layers", type=_numbers, default=(), help="layers of the teacher that the student's first ones match"
    )
    _add_training(sub, epochs=5, lr=5e-4)

    sub = command("evaluate", _evaluate, "Measure a checkpoint on labelled examples.")
    sub.add_argument("--model", required=True, help="checkpoint folder")
    sub.add_argument("--data", type=Path, required=True, help="file of labelled examples; of a folder, its test file")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    _add_reading(sub)
    _add_running(sub)

    sub = command("predict", _predict, "Run a checkpoint: one JSON value a line, in the order of the input.")
    sub.add_argument("--model", required=True, help="checkpoint folder")
    sub.add_argument(
        "--input",
        default="-",
        help="file of JSON lines, or of texts, `premise<TAB>hypothesis`, words with spaces between, or "
        "`question<TAB>context`; - reads standard input",
    )
    _add_text_columns(sub)
    _add_running(sub)

    sub = command("download", _download, "Fetch and unpack SNLI, bert.small or bert.base.")
    sub.add_argument("name", choices=sorted(hub.DATA_HUB), help="what to fetch")
    sub.add_argument("--folder", type=Path, default=hub.cache_dir(), help="where to")
    return parser


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
    return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))


def _add_reading(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--labels",
        type=_names,
        help="names of the classes, by commas, instead of the model's or the data's; or the same in another order",
    )
    sub.add_argument(
        "--columns",
        choices=get_args(Columns),
        help="SNLI's layout: words of the parses, or the sentences; the tokenizer decides",
    )
    _add_text_columns(sub)
    sub.add_argument(
        "--label-column", help="column of the labels; tagging: number of the tags' column, or upos or xpos"
    )


def _add_text_columns(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--text-columns",
        type=_names,
        help="columns of the text, or of premise and hypothesis, in a .csv, .tsv, .jsonl or .parquet file; numbers "
        "where it has no header",
    )


def _add_training(sub: argparse.ArgumentParser, epochs: int = 3, lr: float = 5e-5) -> None:
    sub.add_argument("--epochs", type=_positive, default=epochs, help="passes over the training examples")
    batch = sub.add_mutually_exclusive_group()
    batch.add_argument("--batch-size", type=_positive, default=32, help="examples a batch")
    batch.add_argument("--batch-tokens", type=_positive, help="instead of a number of examples: tokens a batch at most")
    sub.add_argument("--accumulate", type=_positive, default=1, help="batches a step")
    sub.add_argument("--lr", type=float, default=lr, help="highest learning rate")
    sub.add_argument("--optimizer", choices=("adamw", "adam"), default="adamw", help="optimizer")
    sub.add_argument("--weight-decay", type=float, default=0.01, help="weight decay")
    sub.add_argument("--warmup", type=float, default=0.06, help="share of the steps with a rising learning rate")
    sub.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient's norm; 0 does not")
    _add_rows(sub)
    sub.add_argument(
        "--precision", choices=TRAINING_PRECISIONS, default="fp32",
        help="of the matrix products; bf16 is the faster one on GPUs and on CPUs with AMX or, by AMD, AVX-512; "
        "CPUs that are slow at it (without AVX-512) train in fp32",
    )  # fmt: skip
    graphs = argparse.BooleanOptionalAction
    sub.add_argument("--cuda-graphs", action=graphs, help="steps as CUDA graphs, the default where they are possible")
    sub.add_argument("--limit", type=_positive, help="use only the first LIMIT training examples")
    sub.add_argument("--seed", type=int, default=0, help="of initial weights, order and dropout")
    sub.add_argument("--resume", action="store_true", help="continue the interrupted run of --output")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_running(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--batch-size", type=_positive, default=256, help="examples a batch")
    _add_rows(sub)
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the matrix products")


def _add_rows(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--max-len", type=_positive, help="tokens a row at most; None: as trained, else 128, question answering 384"
    )
    sub.add_argument("--truncation", choices=TRUNCATIONS, default="longest_first", help="how longer pairs are cut")
    sub.add_argument("--device", default=None, help="torch device; a GPU where there is one")


# ---- commands -------------------------------------------------------------------------------------------------------


def _demo(a: argparse.Namespace) -> None:
    corpus = a.output / "corpus"
    demo.write_demo_corpus(corpus, seed=a.seed, train=a.pairs)
    print(f"corpus: {a.pairs} generated training pairs in {corpus}")
    train = _read_pairs(corpus, "train", "parse")
    torch.manual_seed(a.seed)
    tokenizer = WordTokenizer.from_texts(_texts(train), min_freq=1)
    # From scratch on a noiseless grammar: the original BERT's variant learns faster, and dropout only slows.
    config = BERTConfig.original(len(tokenizer), **{**SIZES["bert.small"], "dropout": 0.0}, pretraining_heads=False)
    bert = BERTModel(config)
    model = BERTClassifier(bert, len(SNLI_LABELS), SNLI_LABELS)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"model: bert.small's shape from scratch, {parameters / 1e6:.1f} million parameters")
    history = fit(
        model,
        model.encode(tokenizer, train),
        model.encode(tokenizer, _read_pairs(corpus, "dev", "parse")),
        epochs=a.epochs,
        batch_size=32,
        lr=5e-4,
        seed=a.seed,
        progress=not a.quiet,
        on_epoch=_print_epoch,
    )
    _save(model, a.output, tokenizer, history)
    test = _read_pairs(corpus, "test", "parse")
    figures = evaluate(model, model.encode(tokenizer, test))
    print(
        f"test accuracy {figures['accuracy']:.3f} on {figures['examples']} pairs (chance is {1 / len(SNLI_LABELS):.3f})"
    )
    assert test.labels is not None
    rows = [test.labels.index(label) for label in range(len(SNLI_LABELS)) if label in test.labels]
    assert test.second is not None
    premises, hypotheses = ([side[row] for row in rows] for side in (test.first, test.second))
    for row, p in zip(rows, predict(model, tokenizer, premises, hypotheses), strict=True):
        print(f"  {test.first[row]}\n  {test.second[row]}")
        print(f"    -> {p.label} ({p.probabilities[p.label]:.2f}); the corpus says {SNLI_LABELS[test.labels[row]]}")
    print(f"checkpoint and curves: {a.output}")


def _train(a: argparse.Namespace) -> None:
    freeze = None if a.freeze == "none" else int(a.freeze) if a.freeze.isdigit() else a.freeze
    state_file = _state_file(a)
    torch.manual_seed(a.seed)
    started = time.perf_counter()
    trained: Head | None = None
    names: Sequence[str] | None = a.labels
    if a.scratch:
        task = a.task or "classification"
        columns: Columns = "parse" if a.vocab == "words" else "text"
        data = _read(a, task, a.train, "train", columns, a.labels)
        make = WordTokenizer.from_texts if a.vocab == "words" else WordPieceTokenizer.of_characters
        tokenizer: Tokenizer = make(_texts(data if a.limit is None else data[: a.limit]), a.min_freq)
        train = data
        sizes = dict(SIZES[a.scratch])
        if a.dropout is not None:
            sizes["dropout"] = a.dropout
        loaded: Head | BERTModel = BERTModel(BERTConfig(len(tokenizer), **sizes, pretraining_heads=False))
    else:
        loaded, tokenizer = checkpoint.from_pretrained(a.model, dropout=a.dropout)
        trained = loaded if isinstance(loaded, Head) else None
        task = a.task or ("classification" if trained is None else trained.task)
        names = a.labels or (None if trained is None or trained.task != task else trained.label_names)
        if a.labels is None and names and (task == "tagging" or (task == "classification" and a.text_columns)):
            found = _read(a, task, a.train, "train", _columns(tokenizer), None).label_names
            names = names if set(found) <= set(names) else None  # other classes than the checkpoint's: the data's own
        train = _read(a, task, a.train, "train", _columns(tokenizer), names)
    unnamed = names is None and task == "classification" and not a.text_columns  # SNLI's layout, and so its classes
    if trained is not None and trained.task == task and train.label_names in ((), trained.label_names):
        model = trained
    else:
        if trained is not None:
            print("the checkpoint's output layer is for another task or other classes: starting a new one")
        names = train.label_names
        real = next((name for name in names if re.fullmatch(r"-?\d+\.\d*[1-9]\d*", name)), None)
        if real is not None and a.task is None and a.labels is None:
            raise ValueError(
                f"{a.train} has labels such as {real}: --task regression learns numbers, --task classification "
                f"{len(names)} classes"
            )
        if task in ("classification", "tagging") and len(names) == 1:
            raise ValueError(
                f"every label of {a.train} is {names[0]!r}: there is nothing to learn (rows labelled - or -1 are "
                "dropped, but for classes that --labels names: --labels=-1,1)"
            )
        model = HEADS[task](loaded, len(names), names) if names else HEADS[task](loaded)
    if a.max_len is not None:
        if a.max_len > model.config.max_len:
            raise ValueError(f"--max-len {a.max_len}: the model reads {model.config.max_len} tokens at most")
        model.settings["max_len"] = a.max_len
    if isinstance(train, TextData):
        model.settings["texts"] = 1 if train.second is None else 2
    if a.stride is not None and task != "qa":
        raise ValueError(f"--stride is for question answering; the model does {task}")
    if isinstance(train, QuestionData):
        model.settings["no_answer"] = any(not answers for answers in train.answers or ())
        if a.stride is not None:
            model.settings["stride"] = a.stride
    dev, dev_path = None, _dev_path(a)
    if dev_path is not None:
        dev = _read(a, task, dev_path, "dev", _columns(tokenizer), None if unnamed else train.label_names or None)
    train_data, count, dropped = _encode(a, model, tokenizer, train, a.limit)
    dev_data, dev_count, dev_dropped = (None, 0, 0) if dev is None else _encode(a, model, tokenizer, dev)
    pairs = encoded_texts(train_data, "train")
    if model.label_names and task != "regression":
        print(f"classes: {', '.join(model.label_names)}")
    full = int((pairs.lengths == model.row_len()).sum()) if model.pooled else 0  # others' texts go on in the next row
    if full:
        print(f"{full} rows are as long as rows may be ({model.row_len()} tokens, --max-len): what was longer was cut")
    print(
        f"{task}: {count} training examples in {len(pairs)} rows of {len(pairs.ids) / max(1, len(pairs)):.1f} "
        f"tokens, {dev_count} dev examples, {dropped + dev_dropped} without a label dropped; "
        f"read and encoded in {time.perf_counter() - started:.2f} s"
    )
    a.output.mkdir(parents=True, exist_ok=True)
    history = fit(model, train_data, dev_data, freeze=freeze, **_options(a, state_file))
    _finish(model, a.output, tokenizer, history, state_file)


def _options(a: argparse.Namespace, state_file: Path) -> dict[str, Any]:
    """Those of `fit` that training and distillation share."""
    names = ("epochs", "batch_tokens", "accumulate", "lr", "optimizer", "weight_decay", "warmup", "precision", "seed")
    return {name: getattr(a, name) for name in (*names, "cuda_graphs")} | {
        "batch_size": a.batch_size if a.batch_tokens is None else None,
        "max_grad_norm": a.max_grad_norm or None,
        "device": _device(a.device),
        "progress": not a.quiet,
        "state_file": state_file,
        "on_epoch": _print_epoch,
    }


def _distill(a: argparse.Namespace) -> None:
    state_file = _state_file(a)
    teacher, teacher_tokenizer = _load_head(a.teacher, a.device)
    columns = _columns(teacher_tokenizer)
    names = _named(teacher, a.labels)
    train = _read(a, teacher.task, a.train, "train", columns, names)
    train = train if a.limit is None else train[: a.limit]
    dev_path = _dev_path(a)
    dev: Any = None if dev_path is None else _read(a, teacher.task, dev_path, "dev", columns, names)
    unlabelled = None
    if a.unlabelled is not None:
        with open(a.unlabelled, encoding="utf-8-sig", newline="\n") as file:
            examples = list(_parse_examples(file, str(a.unlabelled), teacher))
        if not examples:
            raise ValueError(f"{a.unlabelled} has no examples")
        unlabelled = teacher.inputs(*zip(*examples, strict=True))
        if columns == "parse" and isinstance(unlabelled, TextData):
            unlabelled = space_out_data(unlabelled)
    texts = itertools.chain(_texts(train), () if unlabelled is None else _texts(unlabelled))
    torch.manual_seed(a.seed)
    tokenizer, token_ids = pruned_tokenizer(teacher_tokenizer, texts, a.min_freq)
    max_len = teacher.row_len(a.max_len)
    student = make_student(
        teacher,
        token_ids,
        num_hiddens=a.num_hiddens,
        ffn_num_hiddens=a.ffn_num_hiddens,
        num_heads=a.num_heads,
        num_layers=a.num_layers,
        layers=a.teacher_layers,
        sample=encoded_texts(teacher.encode(teacher_tokenizer, train[:1000], max_len, a.truncation), "train"),
        max_len=max_len,
    )
    student.settings["max_len"] = max_len
    large, small = (sum(p.numel() for p in model.parameters()) for model in (teacher, student))
    print(
        f"teacher: {large / 1e6:.2f} million parameters; student: {small / 1e6:.2f}, {large / small:.1f} times fewer, "
        f"{len(tokenizer)} of {len(teacher_tokenizer)} tokens; {len(train)} labelled examples, "
        f"{0 if unlabelled is None else len(unlabelled)} unlabelled"
    )
    a.output.mkdir(parents=True, exist_ok=True)
    history = distill(
        teacher, teacher_tokenizer, student, tokenizer, train, dev, unlabelled=unlabelled, max_len=max_len,
        truncation=a.truncation, temperature=a.temperature, hard=a.hard, soft=a.soft, hidden=a.hidden,
        hidden_layers=a.hidden_layers, **_options(a, state_file),
    )  # fmt: skip
    _finish(student, a.output, tokenizer, history, state_file)


def _kept(a: argparse.Namespace) -> str:
    """What is left of an interrupted command, to follow the word."""
    if not hasattr(a, "resume"):
        return ""
    return ": continue with --resume" if (a.output / "training_state.pt").exists() else " before an epoch was done"


def _dev_path(a: argparse.Namespace) -> Path | None:
    """What `--dev` names, else the dev file of the folder that `--train` names."""
    path: Path | None = a.dev if a.dev is not None else a.train if a.train.is_dir() else None
    return path


def _state_file(a: argparse.Namespace) -> Path:
    """Where the run's state is; ValueError where there is one and `--resume` is not given, or the other way around."""
    state_file: Path = a.output / "training_state.pt"
    if a.resume != state_file.exists():
        raise ValueError(
            f"there is no {state_file} to resume"
            if a.resume
            else f"{state_file} is of an interrupted run: continue it with --resume, or remove it"
        )
    return state_file


def _evaluate(a: argparse.Namespace) -> None:
    model, tokenizer = _load_head(a.model, a.device)
    names = _named(model, a.labels)
    data = _read(a, model.task, a.data, "test", _columns(tokenizer), names)
    begun = time.perf_counter()
    encoded, _, dropped = _encode(a, model, tokenizer, data)
    figures = evaluate(model, encoded, batch_size=a.batch_size, precision=a.precision)
    figures["dropped"] = dropped
    figures["seconds"] = time.perf_counter() - begun
    if a.json:
        print(json.dumps(figures))
        return
    print(_line(figures))
    for name, value in figures.items():
        if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
            width = max(map(len, value), default=0)
            for row, cells in value.items():
                print(f"  {row:{width}}  {_line(cells)}")
        elif isinstance(value, dict):
            print(f"  {name}: {_line(value)}")
    for name, counts in zip(figures.get("labels", ()), figures.get("confusion", ()), strict=True):
        print(f"  of {name}: {', '.join(f'{n} as {as_}' for n, as_ in zip(counts, figures['labels'], strict=True))}")


def _line(figures: dict[str, Any]) -> str:
    """The numbers among some figures, in one line."""
    numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    return "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())


def _predict(a: argparse.Namespace) -> None:
    model, tokenizer = _load_head(a.model, a.device)
    if a.text_columns and a.input == "-":
        raise ValueError("--text-columns are those of a file that --input names")
    if a.text_columns and len(a.text_columns) not in (counts := [len(names) for names in _fields(model)]):
        raise ValueError(f"--text-columns names {len(a.text_columns)}; the model takes {' or '.join(map(str, counts))}")
    if a.text_columns:
        data = read_table(a.input, a.text_columns, None)
        sides: list[Sequence[Any]] = [data.first] if data.second is None else [data.first, data.second]
        if model.task == "tagging":
            sides = [[text.split() for text in side] for side in sides]
        _predict_examples(a, model, tokenizer, zip(*sides, strict=True))
    elif a.input == "-":
        if sys.stdin.isatty():
            print("bertnli: reading examples from standard input, one a line", file=sys.stderr)
        # Not sys.stdin: its encoding and line ends are the environment's choice, ours must not be.
        with open(sys.stdin.fileno(), encoding="utf-8-sig", newline="\n", closefd=False) as file:
            _predict_examples(a, model, tokenizer, _parse_examples(file, "standard input", model))
    else:
        with open(a.input, encoding="utf-8-sig", newline="\n") as file:
            _predict_examples(a, model, tokenizer, _parse_examples(file, a.input, model))


def _predict_examples(
    a: argparse.Namespace, model: Head, tokenizer: Tokenizer, examples: Iterator[tuple[Any, ...]]
) -> None:
    while chunk := list(itertools.islice(examples, a.batch_size)):
        for p in predict(
            model,
            tokenizer,
            *zip(*chunk, strict=True),
            max_len=a.max_len,
            truncation=a.truncation,
            batch_size=a.batch_size,
            precision=a.precision,
        ):
            print(json.dumps(asdict(p) if is_dataclass(p) and not isinstance(p, type) else p, ensure_ascii=False))
        sys.stdout.flush()


def _download(a: argparse.Namespace) -> None:
    print(hub.download_extract(a.name, into=a.folder))


# ---- pieces ---------------------------------------------------------------------------------------------------------


def _read(
    a: argparse.Namespace, task: str, path: Path, split: str, columns: Columns, names: Sequence[str] | None
) -> TextData | WordData | QuestionData:
    """The labelled examples of a file, or of a folder in SNLI's layout that split's."""
    if a.label_column and (task == "qa" or not (task == "tagging" or a.text_columns)):
        raise ValueError("--label-column goes with --text-columns, or with a tagger's file; SNLI's layout has its own")
    if task == "qa":
        return read_squad(path)
    if task == "tagging":
        if path.suffix == ".conllu":
            return read_conllu(path, names, tag=a.label_column or "upos")
        column = a.label_column or "-1"
        if not re.fullmatch(r"-?[1-9]\d*", column):
            raise ValueError(f"--label-column: a CoNLL file's tags are in a column by number, not {column!r}")
        return read_conll(path, names, tag=int(column))
    if a.text_columns:
        data = read_table(path, a.text_columns, a.label_column or "label", names, real=task == "regression")
    elif task == "regression":
        raise ValueError("regression needs --text-columns and --label-column")
    else:
        data = _read_pairs(path, split, a.columns or columns, names)
    if columns == "parse" and (a.text_columns or a.columns == "text"):  # a model of words, and sentences
        data = space_out_data(data)
    return data


def _read_pairs(path: Path, split: str, columns: Columns, names: Sequence[str] | None = None) -> TextData:
    return read_pairs(snli_file(path, split), columns, names)


def _columns(tokenizer: Tokenizer) -> Columns:
    return "parse" if isinstance(tokenizer, WordTokenizer) else "text"


def _texts(data: TextData | WordData | QuestionData) -> Iterator[str]:
    """Every text of the examples."""
    if isinstance(data, TextData):
        return itertools.chain(data.first, data.second or ())
    if isinstance(data, WordData):
        return (" ".join(words) for words in data.sentences)
    return itertools.chain(data.questions, dict.fromkeys(data.contexts))


def _encode(
    a: argparse.Namespace,
    model: Head,
    tokenizer: Tokenizer,
    data: TextData | WordData | QuestionData,
    limit: int | None = None,
) -> tuple[Any, int, int]:
    """Of the first `limit` examples: what `fit` and `evaluate` take, how many they are, and how many were dropped."""
    max_len = model.row_len(a.max_len)
    data = data[:limit]
    return model.encode(tokenizer, data, max_len, a.truncation), len(data), data.dropped


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _load_head(name: str, device: str | None) -> tuple[Head, Tokenizer]:
    model, tokenizer = checkpoint.from_pretrained(name)
    if not isinstance(model, Head):
        raise ValueError(f"{name} has no output layer of a task; fine-tune it first with `bertnli train`")
    return model.to(_device(device)), tokenizer


@torch.no_grad()
def _named(model: Head, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What the model's classes are called from now on: as its checkpoint says, else or instead as `labels` do; in the
    order of `labels` where those are the checkpoint's names in another."""
    names = labels or model.label_names
    if names is None and model.task == "classification":
        print(
            f"bertnli: the model does not name its classes; taken for {', '.join(SNLI_LABELS)} (--labels changes that)",
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


def _print_epoch(e: Epoch) -> None:
    dev = "" if e.dev_score is None else f", dev loss {e.dev_loss:.3f}, dev {e.metric} {e.dev_score:.4f}"
    accuracy = "" if e.train_accuracy is None else f", train accuracy {e.train_accuracy:.4f}"
    print(
        f"epoch {e.epoch}: train loss {e.train_loss:.3f}{accuracy}{dev}, "
        f"{e.seconds:.1f} s, {e.pairs_per_second:.0f} pairs/s",
        flush=True,
    )


def _finish(model: Head, folder: Path, tokenizer: Tokenizer, history: History, state_file: Path) -> None:
    """Save the result, of several processes the first one's; then the run's state has done its duty."""
    if distributed.rank_and_size()[0] == 0:
        _save(model, folder, tokenizer, history)
        state_file.unlink()
        print(f"checkpoint, metrics.jsonl and curves.png: {folder}")


def _save(model: Head, folder: Path, tokenizer: Tokenizer, history: History) -> None:
    checkpoint.save_pretrained(model, folder, tokenizer)
    with atomic_path(folder / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(vars(e)) + "\n" for e in history.epochs), encoding="utf-8")
    _plot(history, folder / "curves.png")


def _plot(history: History, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [e.epoch for e in history.epochs]
    per_epoch = len(history.losses) / len(epochs)
    left.plot(
        [(i + 1) / per_epoch for i in range(len(history.losses))], history.losses, lw=0.5, alpha=0.5, label="step"
    )
    left.plot(epochs, [e.train_loss for e in history.epochs], marker="o", label="train")
    if history.epochs[0].train_accuracy is not None:
        right.plot(epochs, [e.train_accuracy for e in history.epochs], marker="o", label="train accuracy")
    if history.epochs[0].dev_loss is not None:
        left.plot(epochs, [e.dev_loss for e in history.epochs], marker="o", label="dev")
        right.plot(epochs, [e.dev_score for e in history.epochs], marker="o", label=f"dev {history.epochs[0].metric}")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="score")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


# What an example is made of, by name in JSON lines. Of tab-separated text the first fields count.
_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tagging": (("words",),),
    "qa": (("question", "context"),),
}
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"))
_SINGLES = (("text",), ("sentence",))


def _fields(model: Head) -> tuple[tuple[str, ...], ...]:
    texts = model.settings.get("texts")
    return _FIELDS.get(model.task) or (*(_PAIRS if texts != 1 else ()), *(_SINGLES if texts != 2 else ()))


def _parse_examples(lines: Iterable[str], where: str, model: Head) -> Iterator[tuple[Any, ...]]:
    """The parts of each line's example: JSON objects where the first line begins with `{`, else tab-separated text."""
    fields = _fields(model)
    as_json: bool | None = None
    try:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                raise ValueError(f"{where}:{number}: the line is empty; expected {_expected(fields)}")
            if as_json is None:
                as_json = line.lstrip().startswith("{")
            if as_json:
                example = _example_of_json(line, f"{where}:{number}", fields)
            elif model.task == "tagging":
                example = (line.split(),)
            else:
                example = tuple(line.split("\t"))
                if len(example) not in map(len, fields):
                    raise ValueError(f"{where}:{number}: expected {_expected(fields)}, found {len(example)} fields")
            fields = tuple(names for names in fields if len(names) == len(example))  # as the first line, so all others
            yield example
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error


def _expected(fields: tuple[tuple[str, ...], ...]) -> str:
    return " or ".join("<TAB>".join(names) for names in {len(names): names for names in reversed(fields)}.values())


def _example_of_json(line: str, where: str, fields: tuple[tuple[str, ...], ...]) -> tuple[Any, ...]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    for names in fields:
        values = [row.get(name) if isinstance(row, dict) else None for name in names]
        if names == ("words",):
            if isinstance(values[0], list) and all(isinstance(word, str) for word in values[0]):
                return tuple(values)
        elif all(isinstance(value, str) for value in values):
            return tuple(values)
    kind = "a list of strings" if fields == (("words",),) else "strings"
    expected = " or ".join(" and ".join(f'"{name}"' for name in names) for names in fields)
    raise ValueError(f"{where}: expected an object with {kind} {expected}")
