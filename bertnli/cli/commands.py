"""The commands. Each takes the parsed arguments and prints its results."""

from __future__ import annotations

import itertools
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from bertnli import checkpoint
from bertnli.cli.output import prepare_state_file
from bertnli.cli.plots import save_curves
from bertnli.cli.reports import print_epoch, print_figures, print_kept_epoch, to_json
from bertnli.data import download as hub
from bertnli.data.demo import write_demo_corpus
from bertnli.data.files import atomic_path, decoded_lines
from bertnli.data.snli import SNLI_LABELS
from bertnli.data.texts import TextData
from bertnli.distillation.distill import distill as run_distillation
from bertnli.distillation.student import make_student, pruned_tokenizer
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import SIZES, BERTConfig
from bertnli.inference import predict as inference
from bertnli.inference.session import InferenceSession
from bertnli.runtime import distributed
from bertnli.runtime.precision import unused_precision
from bertnli.tasks.base import HEADS, Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.embedding import BERTEmbedder
from bertnli.tasks.load import Examples, load_examples, parse_lines, read_inputs, shared_columns, texts_of
from bertnli.text.encoded import EncodedTexts, encoded_texts
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import space_out_data
from bertnli.text.wordpiece import WordPieceTokenizer
from bertnli.training.callbacks import Callback
from bertnli.training.history import History
from bertnli.training.loop import fit
from bertnli.training.options import TrainingOptions

_TYPED = (  # what a visitor may type; the corpus has no teachers
    ("A man is sleeping.", "A person is asleep."),
    ("A teacher is drinking coffee.", "The teacher is asleep."),
    ("A girl is reading a book.", "A girl is reading a book in the park."),
)


# ---- demo -----------------------------------------------------------------------------------------------------------


def demo(args: Namespace) -> None:
    corpus = args.output / "corpus"
    write_demo_corpus(corpus, seed=args.seed, train=args.pairs)
    print(f"corpus: {args.pairs} generated training pairs in {corpus}")
    data = {split: load_examples(corpus, split=split) for split in ("train", "dev", "test")}
    torch.manual_seed(args.seed)
    tokenizer = WordPieceTokenizer.of_words(texts_of(data["train"]), min_freq=20)
    # The original variant learns faster from scratch, and a grammar has no noise that dropout would guard against.
    config = BERTConfig.original(len(tokenizer), **{**SIZES["bert.small"], "dropout": 0.0}, pretraining_heads=False)
    model = BERTClassifier(BERTModel(config), len(SNLI_LABELS), SNLI_LABELS)
    model.adapt(data["train"])
    print(f"model: bert.small-sized, random weights, {_num_parameters(model) / 1e6:.1f} million parameters")
    history = fit(
        model,
        model.encode(tokenizer, data["train"]),
        model.encode(tokenizer, data["dev"]),
        epochs=args.epochs,
        batch_size=16,
        lr=5e-4,
        seed=args.seed,
        progress=not args.quiet,
        callbacks=[Callback(on_epoch=print_epoch)],
    )
    files = _save(model, args.output, tokenizer, history)
    print_kept_epoch(history)
    figures = inference.evaluate(model, model.encode(tokenizer, data["test"]))
    chance = 1 / len(SNLI_LABELS)
    print(f"test accuracy {figures['accuracy']:.3f} on {figures['examples']} pairs (chance is {chance:.3f})")
    for premise, hypothesis in _TYPED:
        (p,) = inference.predict(model, tokenizer, premise, hypothesis)
        print(f"  {premise}  {hypothesis}\n    -> {p.label} ({p.probabilities[p.label]:.2f})")
    print(f"{files}: {args.output}")


# ---- train ----------------------------------------------------------------------------------------------------------


def train(args: Namespace) -> None:
    options = _training_options(args)
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    base, tokenizer, task, names, data = _from_scratch(args) if args.scratch else _from_checkpoint(args)
    model = _head(args, base, task, data)
    _adapt_settings(args, model, data)
    dev, dev_path = None, _dev_path(args)
    if dev_path is not None:
        is_snli_layout = names is None and task == "classification" and not args.text_columns
        dev = _load(args, task, dev_path, "dev", tokenizer, None if is_snli_layout else data.label_names or None)
    max_len = model.sequence_len(args.max_len)
    train_data = model.encode(tokenizer, data, max_len, args.truncation)
    dev_data = None if dev is None else model.encode(tokenizer, dev, max_len, args.truncation)
    encoded = encoded_texts(train_data, "train")
    if model.label_names and task != "regression":
        print(f"classes: {', '.join(model.label_names)}")
    _print_truncated(model, encoded)
    print(
        f"{task}: {len(data)} training examples in {len(encoded)} sequences of "
        f"{len(encoded.ids) / max(1, len(encoded)):.1f} tokens, {0 if dev is None else len(dev)} dev examples, "
        f"{data.dropped + (0 if dev is None else dev.dropped)} without a label dropped; "
        f"read and encoded in {time.perf_counter() - started:.2f} s"
    )
    _print_unused_precision(args)
    state_file = prepare_state_file(args)
    history = fit(model, train_data, dev_data, options, **_run_arguments(args, state_file))
    _finish(args, model, tokenizer, history, state_file)


Start = tuple[BERTModel | Head, Tokenizer, str, Sequence[str] | None, Examples]


def _from_scratch(args: Namespace) -> Start:
    """Model, tokenizer, task, class names that were given, and training examples of --scratch."""
    task, words = args.task or "classification", args.vocab == "words"
    data = _load(args, task, args.train, "train", words, args.labels)[: args.limit]
    make: dict[str, Callable[..., Tokenizer]] = {
        "words": WordTokenizer.from_texts,
        "pieces": WordPieceTokenizer.of_words,
        "characters": WordPieceTokenizer.of_characters,
    }
    tokenizer = _with_switches(args, make[args.vocab](texts_of(data), args.min_freq))
    sizes = SIZES[args.scratch] | ({} if args.dropout is None else {"dropout": args.dropout})
    bert = BERTModel(BERTConfig(len(tokenizer), **sizes, pretraining_heads=False))
    return bert, tokenizer, task, args.labels, data


def _from_checkpoint(args: Namespace) -> Start:
    """The same of --model, where the checkpoint may give the task and the class names."""
    loaded, tokenizer = checkpoint.from_pretrained(args.model, dropout=args.dropout)
    tokenizer = _with_switches(args, tokenizer)
    trained_task = loaded.task if isinstance(loaded, Head) and not isinstance(loaded, BERTEmbedder) else None
    task = args.task or trained_task or "classification"
    names = args.labels
    if names is None and isinstance(loaded, Head) and task == trained_task:
        names = loaded.label_names
        if names and (task == "tagging" or (task == "classification" and args.text_columns)):
            in_data = _load(args, task, args.train, "train", tokenizer, None).label_names
            names = names if set(in_data) <= set(names) else None  # the data has other classes
    return loaded, tokenizer, task, names, _load(args, task, args.train, "train", tokenizer, names)[: args.limit]


def _head(args: Namespace, base: BERTModel | Head, task: str, data: Examples) -> Head:
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


def _adapt_settings(args: Namespace, model: Head, data: Examples) -> None:
    """What the checkpoint must say of the data and of the options that encode them."""
    model.adapt(data)
    if args.max_len is not None:
        if args.max_len > model.config.max_len:
            raise ValueError(f"--max-len {args.max_len}: the model reads {model.config.max_len} tokens at most")
        model.settings["max_len"] = args.max_len
    if args.stride is not None:
        if model.task != "qa":
            raise ValueError(f"--stride is for question answering; the model does {model.task}")
        model.settings["stride"] = args.stride


def _print_truncated(model: Head, encoded: EncodedTexts) -> None:
    longest = model.sequence_len()
    full = int((encoded.lengths == longest).sum()) if model.pooled else 0  # other heads continue in the next sequence
    if full:
        print(f"{full} examples have {longest} tokens, the most that --max-len allows: longer ones were truncated")


# ---- distill --------------------------------------------------------------------------------------------------------


def distill(args: Namespace) -> None:
    options = _training_options(args)
    teacher, teacher_tokenizer = _load_head(args.teacher, args)
    names = _name_classes(teacher, args.labels)
    data = _load(args, teacher.task, args.train, "train", teacher_tokenizer, names)[: args.limit]
    dev_path = _dev_path(args)
    dev = None if dev_path is None else _load(args, teacher.task, dev_path, "dev", teacher_tokenizer, names)
    unlabelled = None if args.unlabelled is None else _load_unlabelled(args, teacher, teacher_tokenizer)
    texts = itertools.chain(texts_of(data), () if unlabelled is None else texts_of(unlabelled))
    torch.manual_seed(args.seed)
    tokenizer, token_ids = pruned_tokenizer(teacher_tokenizer, texts, args.min_freq)
    max_len = teacher.sequence_len(args.max_len)
    student = make_student(
        teacher,
        token_ids,
        num_hiddens=args.num_hiddens,
        ffn_num_hiddens=args.ffn_num_hiddens,
        num_heads=args.num_heads,
        num_layers=args.num_layers,
        layers=args.teacher_layers,
        sample=encoded_texts(teacher.encode(teacher_tokenizer, data[:1000], max_len, args.truncation), "train"),
        max_len=max_len,
    )
    student.settings["max_len"] = max_len
    large, small = _num_parameters(teacher), _num_parameters(student)
    print(
        f"teacher: {large / 1e6:.2f} million parameters; student: {small / 1e6:.2f}, {large / small:.1f} times fewer, "
        f"{len(tokenizer)} of {len(teacher_tokenizer)} tokens; {len(data)} labelled examples, "
        f"{0 if unlabelled is None else len(unlabelled)} unlabelled"
    )
    _print_unused_precision(args)
    state_file = prepare_state_file(args)
    history = run_distillation(
        teacher, teacher_tokenizer, student, tokenizer, data, dev, options, unlabelled=unlabelled, max_len=max_len,
        truncation=args.truncation, temperature=args.temperature, hard=args.hard, soft=args.soft, hidden=args.hidden,
        hidden_layers=args.hidden_layers, **_run_arguments(args, state_file),
    )  # fmt: skip
    path = Path(args.teacher)
    student.provenance["teacher"] = path.resolve().name if path.is_dir() else args.teacher
    _finish(args, student, tokenizer, history, state_file)


def _load_unlabelled(args: Namespace, model: Head, tokenizer: Tokenizer) -> Any:
    examples = list(read_inputs(args.unlabelled, model, shared_columns(args.unlabelled, args.text_columns)))
    if not examples:
        raise ValueError(f"{args.unlabelled} has no examples")
    data = model.inputs(*zip(*examples, strict=True))
    return space_out_data(data) if isinstance(tokenizer, WordTokenizer) and isinstance(data, TextData) else data


# ---- evaluate, predict, download ------------------------------------------------------------------------------------


def evaluate(args: Namespace) -> None:
    model, tokenizer = _load_head(args.model, args)
    names = _name_classes(model, args.labels)
    started = time.perf_counter()
    data = _load(args, model.task, args.data, "test", tokenizer, names)
    encoded = model.encode(tokenizer, data, model.sequence_len(args.max_len), args.truncation)
    figures = inference.evaluate(_session(model, args), encoded, batch_size=args.batch_size)
    figures["dropped"] = data.dropped
    figures["seconds"] = time.perf_counter() - started
    if args.json:
        print(to_json(figures))
    else:
        print_figures(figures)


def predict(args: Namespace) -> None:
    model, tokenizer = _load_head(args.model, args)
    session = _session(model, args)
    if args.input != "-":
        _print_predictions(args, session, tokenizer, read_inputs(args.input, model, args.text_columns))
        return
    if args.text_columns:
        raise ValueError("--text-columns are columns of a file: name it by --input")
    if sys.stdin.isatty():
        print("bertnli: reading examples from standard input, one a line", file=sys.stderr)
    # sys.stdin has the encoding and line ends of the environment.
    with open(sys.stdin.fileno(), "rb", closefd=False) as file:
        lines = decoded_lines(file, "standard input")
        _print_predictions(args, session, tokenizer, parse_lines(lines, "standard input", model))


def _print_predictions(
    args: Namespace, session: InferenceSession, tokenizer: Tokenizer, examples: Iterator[tuple[Any, ...]]
) -> None:
    """Print the predictions batch by batch; before an error in the input, those of the examples before it."""
    error: ValueError | None = None
    while error is None:
        chunk: list[tuple[Any, ...]] = []
        try:
            chunk.extend(itertools.islice(examples, args.batch_size))  # keeps what came before an error
        except ValueError as found:
            error = found
        if not chunk:
            break
        for p in inference.predict(
            session,
            tokenizer,
            *zip(*chunk, strict=True),
            max_len=args.max_len,
            truncation=args.truncation,
            batch_size=args.batch_size,
        ):
            print(to_json(asdict(p) if is_dataclass(p) and not isinstance(p, type) else p))
        sys.stdout.flush()
    if error is not None:
        raise error


def download(args: Namespace) -> None:
    print(hub.download_extract(args.name, into=args.folder))


# ---- shared ---------------------------------------------------------------------------------------------------------


def _load(
    args: Namespace, task: str, path: Path, split: str, tokenizer: Tokenizer | bool, labels: Sequence[str] | None
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
    )


def _load_head(name: str, args: Namespace) -> tuple[Head, Tokenizer]:
    model, tokenizer = checkpoint.from_pretrained(name)
    return check_is_head(model, name).to(_device(args.device)), _with_switches(args, tokenizer)


def check_is_head(model: Head | BERTModel, name: str) -> Head:
    if not isinstance(model, Head):
        raise ValueError(f"{name} has no output layer of a task; fine-tune it first with `bertnli train`")
    return model


def _with_switches(args: Namespace, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with --split-special-tokens, which only WordPiece lacks."""
    if args.split_special_tokens and isinstance(tokenizer, WordPieceTokenizer):
        return WordPieceTokenizer(tokenizer.tokens, tokenizer.lowercase, split_special_tokens=True)
    return tokenizer


def _session(model: Head, args: Namespace) -> InferenceSession:
    """A session of --precision; says on standard error if that precision is not used."""
    session = InferenceSession(model, args.precision)
    if session.unused_precision is not None:
        print(f"bertnli: {session.unused_precision}", file=sys.stderr)
    return session


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def _name_classes(model: Head, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
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


def _training_options(args: Namespace) -> TrainingOptions:
    return TrainingOptions(**{field.name: getattr(args, field.name) for field in fields(TrainingOptions)})


def _print_unused_precision(args: Namespace) -> None:
    if (instead := unused_precision(_device(args.device), args.precision)) is not None:
        print(f"precision: {instead}")


def _run_arguments(args: Namespace, state_file: Path) -> dict[str, Any]:
    """Arguments of `fit` beside TrainingOptions."""
    return {
        "device": _device(args.device),
        "progress": not args.quiet,
        "state_file": state_file,
        "callbacks": [Callback(on_epoch=print_epoch)],
    }


def _dev_path(args: Namespace) -> Path | None:
    """--dev, else the folder of --train, for its dev file."""
    path: Path | None = args.dev if args.dev is not None else args.train if args.train.is_dir() else None
    return path


def _finish(args: Namespace, model: Head, tokenizer: Tokenizer, history: History, state_file: Path) -> None:
    """Save the result, in the first of several processes, and remove the run's state."""
    paths = {"train": args.train, "dev": _dev_path(args)}
    model.provenance |= {name: path.resolve().name for name, path in paths.items() if path is not None}
    if distributed.rank_and_size()[0] == 0:
        files = _save(model, args.output, tokenizer, history)
        state_file.unlink(missing_ok=True)
        if args.keep_best:
            print_kept_epoch(history)
        print(f"{files}: {args.output}")


def _save(model: Head, folder: Path, tokenizer: Tokenizer, history: History) -> str:
    """Write checkpoint, figures and curves; says what was written."""
    checkpoint.save_pretrained(model, folder, tokenizer)
    with atomic_path(folder / "metrics.jsonl") as path:
        path.write_text("".join(to_json(vars(e)) + "\n" for e in history.epochs), encoding="utf-8")
    drawn = save_curves(history, folder / "curves.png")
    return "checkpoint, metrics.jsonl and curves.png" if drawn else "checkpoint and metrics.jsonl"


def _num_parameters(model: Head) -> int:
    return sum(p.numel() for p in model.parameters())
