"""The `bertnli` command: demo, train, evaluate, predict, download."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, get_args

import torch

from bertnli import checkpoint, demo, hub
from bertnli.files import atomic_path
from bertnli.heads import BERTClassifier, Prediction
from bertnli.inference import evaluate, predict
from bertnli.model import BERTConfig, BERTModel
from bertnli.pairs import EncodedPairs
from bertnli.prepared import PRECISIONS, TRAINING_PRECISIONS
from bertnli.reader import SNLI_LABELS, Columns, PairData, read_pairs, snli_file
from bertnli.tokenizer import Tokenizer, Truncation, Vocab, WordTokenizer
from bertnli.train import Epoch, History, fit

# The book's two sizes, for training from scratch.
SIZES: dict[str, dict[str, Any]] = {
    "bert.small": dict(num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1, max_len=512),
    "bert.base": dict(num_hiddens=768, ffn_num_hiddens=3072, num_heads=12, num_layers=12, dropout=0.1, max_len=512),
}
TRUNCATIONS = get_args(Truncation)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 for bad input, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left; do not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("bertnli: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, IndexError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"bertnli: error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bertnli", description="Fine-tune and run BERT on sentence pairs, fast.")
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

    sub = command("train", _train, "Fine-tune a checkpoint, or train from scratch, on labelled pairs.")
    model = sub.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="checkpoint folder, bert.small, bert.base, or a name on the hub")
    model.add_argument("--scratch", choices=SIZES, help="random weights of this size, words of the training pairs")
    sub.add_argument("--train", type=Path, required=True, help="file of labelled pairs, or a folder in SNLI's layout")
    sub.add_argument("--dev", type=Path, help="file of labelled pairs; of a folder, its dev file")
    sub.add_argument("--output", type=Path, required=True, help="folder to write")
    _add_reading(sub)
    sub.add_argument("--epochs", type=_positive, default=3, help="passes over the training pairs")
    sub.add_argument("--batch-size", type=_positive, default=32, help="pairs a batch")
    sub.add_argument("--accumulate", type=_positive, default=1, help="batches a step")
    sub.add_argument("--lr", type=float, default=5e-5, help="highest learning rate")
    sub.add_argument("--optimizer", choices=("adamw", "adam"), default="adamw", help="optimizer")
    sub.add_argument("--weight-decay", type=float, default=0.01, help="weight decay")
    sub.add_argument("--warmup", type=float, default=0.06, help="share of the steps with a rising learning rate")
    sub.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient's norm; 0 does not")
    sub.add_argument("--freeze", default="none", help="none, embeddings, encoder, or a number of lowest layers")
    sub.add_argument("--dropout", type=float, default=None, help="instead of the checkpoint's")
    sub.add_argument("--min-freq", type=_positive, default=5, help="with --scratch: rarer words are unknown")
    sub.add_argument("--max-len", type=_positive, default=128, help="tokens a pair at most")
    sub.add_argument("--truncation", choices=TRUNCATIONS, default="longest_first", help="how longer pairs are cut")
    sub.add_argument("--precision", choices=TRAINING_PRECISIONS, default="fp32", help="of the matrix products")
    sub.add_argument("--limit", type=_positive, help="use only the first LIMIT training pairs")
    sub.add_argument("--seed", type=int, default=0, help="of initial weights, order and dropout")
    sub.add_argument("--device", default=None, help="torch device; a GPU where there is one")
    sub.add_argument("--resume", action="store_true", help="continue the interrupted run of --output")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")

    sub = command("evaluate", _evaluate, "Measure a checkpoint on labelled pairs.")
    sub.add_argument("--model", required=True, help="checkpoint folder")
    sub.add_argument("--data", type=Path, required=True, help="file of labelled pairs; of a folder, its test file")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    _add_reading(sub)
    _add_running(sub)

    sub = command("predict", _predict, "Classify pairs: one JSON object a line, in the order of the input.")
    sub.add_argument("--model", required=True, help="checkpoint folder")
    sub.add_argument(
        "--input", default="-", help="file of `premise<TAB>hypothesis` or JSON lines; - reads standard input"
    )
    _add_running(sub)

    sub = command("download", _download, "Fetch and unpack SNLI, bert.small or bert.base.")
    sub.add_argument("name", choices=sorted(hub.DATA_HUB), help="what to fetch")
    sub.add_argument("--folder", type=Path, default=hub.cache_dir(), help="where to")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; found {value}")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _add_reading(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--labels", type=_names, help="names of the classes, by commas, instead of the model's or SNLI's")
    sub.add_argument(
        "--columns", choices=get_args(Columns), help="words of the parses, or the sentences; the tokenizer decides"
    )


def _add_running(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--batch-size", type=_positive, default=256, help="pairs a batch")
    sub.add_argument("--max-len", type=_positive, default=128, help="tokens a pair at most")
    sub.add_argument("--truncation", choices=TRUNCATIONS, default="longest_first", help="how longer pairs are cut")
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the matrix products")
    sub.add_argument("--device", default=None, help="torch device; a GPU where there is one")


# ---- commands -------------------------------------------------------------------------------------------------------


def _demo(a: argparse.Namespace) -> None:
    corpus = a.output / "corpus"
    demo.write_demo_corpus(corpus, seed=a.seed, train=a.pairs)
    print(f"corpus: {a.pairs} generated training pairs in {corpus}")
    train = _read(corpus, "train", "parse")
    torch.manual_seed(a.seed)
    tokenizer = WordTokenizer(_book_vocab(train, min_freq=1))
    # From scratch on a noiseless grammar: the original BERT's variant learns faster, and dropout only slows.
    config = BERTConfig.original(len(tokenizer), **{**SIZES["bert.small"], "dropout": 0.0}, pretraining_heads=False)
    bert = BERTModel(config)
    model = BERTClassifier(bert, len(SNLI_LABELS), SNLI_LABELS)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"model: bert.small's shape from scratch, {parameters / 1e6:.1f} million parameters")
    history = fit(
        model,
        _encode(tokenizer, train),
        _encode(tokenizer, _read(corpus, "dev", "parse")),
        epochs=a.epochs,
        batch_size=32,
        lr=5e-4,
        seed=a.seed,
        progress=not a.quiet,
        on_epoch=_print_epoch,
    )
    _save(model, a.output, tokenizer, history)
    test = _read(corpus, "test", "parse")
    figures = evaluate(model, _encode(tokenizer, test))
    print(
        f"test accuracy {figures['accuracy']:.3f} on {figures['examples']} pairs (chance is {1 / len(SNLI_LABELS):.3f})"
    )
    assert test.labels is not None
    rows = [test.labels.index(label) for label in range(len(SNLI_LABELS)) if label in test.labels]
    assert test.hypotheses is not None
    premises, hypotheses = ([side[row] for row in rows] for side in (test.premises, test.hypotheses))
    for row, p in zip(rows, predict(model, tokenizer, premises, hypotheses), strict=True):
        print(f"  {test.premises[row]}\n  {test.hypotheses[row]}")
        print(f"    -> {p.label} ({p.probabilities[p.label]:.2f}); the corpus says {SNLI_LABELS[test.labels[row]]}")
    print(f"checkpoint and curves: {a.output}")


def _train(a: argparse.Namespace) -> None:
    freeze = None if a.freeze == "none" else int(a.freeze) if a.freeze.isdigit() else a.freeze
    state_file = a.output / "training_state.pt"
    if a.resume != state_file.exists():
        raise ValueError(
            f"there is no {state_file} to resume"
            if a.resume
            else f"{state_file} is of an interrupted run: continue it with --resume, or remove it"
        )
    device = _device(a.device)
    torch.manual_seed(a.seed)
    started = time.perf_counter()
    if a.scratch:
        train = _read(a.train, "train", a.columns or "parse", a.labels)
        tokenizer: Tokenizer = WordTokenizer(_book_vocab(train, a.min_freq))
        sizes = dict(SIZES[a.scratch])
        if a.dropout is not None:
            sizes["dropout"] = a.dropout
        bert = BERTModel(BERTConfig(len(tokenizer), **sizes, pretraining_heads=False))
        model = BERTClassifier(bert, len(train.label_names), train.label_names)
    else:
        loaded, tokenizer = checkpoint.from_pretrained(a.model, dropout=a.dropout)
        trained = loaded if isinstance(loaded, BERTClassifier) else None
        names = a.labels or (None if trained is None else trained.label_names)
        train = _read(a.train, "train", a.columns or _columns(tokenizer), names)
        if trained is not None and trained.label_names == train.label_names:
            model = trained
        else:
            if trained is not None:
                print("the checkpoint's output layer is for other classes: starting a new one")
            model = BERTClassifier(loaded, len(train.label_names), train.label_names)
    if a.limit is not None:
        train = train[: a.limit]
    dev_path = a.dev if a.dev is not None else a.train if a.train.is_dir() else None
    dev = None if dev_path is None else _read(dev_path, "dev", a.columns or _columns(tokenizer), train.label_names)
    max_len = min(a.max_len, model.config.max_len)
    train_pairs = _encode(tokenizer, train, max_len, a.truncation)
    dev_pairs = None if dev is None else _encode(tokenizer, dev, max_len, a.truncation)
    dropped = train.dropped + (0 if dev is None else dev.dropped)
    print(
        f"{len(train)} training pairs of {len(train_pairs.ids) / max(1, len(train)):.1f} tokens, "
        f"{0 if dev is None else len(dev)} dev pairs, {dropped} without a gold label dropped; "
        f"read and encoded in {time.perf_counter() - started:.2f} s"
    )
    a.output.mkdir(parents=True, exist_ok=True)
    history = fit(
        model,
        train_pairs,
        dev_pairs,
        epochs=a.epochs,
        batch_size=a.batch_size,
        accumulate=a.accumulate,
        lr=a.lr,
        optimizer=a.optimizer,
        weight_decay=a.weight_decay,
        warmup=a.warmup,
        max_grad_norm=a.max_grad_norm or None,
        freeze=freeze,
        precision=a.precision,
        seed=a.seed,
        device=device,
        progress=not a.quiet,
        state_file=state_file,
        on_epoch=_print_epoch,
    )
    _save(model, a.output, tokenizer, history)
    state_file.unlink()
    print(f"checkpoint, metrics.jsonl and curves.png: {a.output}")


def _evaluate(a: argparse.Namespace) -> None:
    model, tokenizer = _load_classifier(a.model, a.device)
    names = a.labels or model.label_names
    if names is None:
        print(
            f"bertnli: the model does not name its classes; taken for {', '.join(SNLI_LABELS)} (--labels changes that)",
            file=sys.stderr,
        )
        names = SNLI_LABELS
    if len(names) != model.output.out_features:
        raise ValueError(
            f"{len(names)} names of classes ({', '.join(names)}); the model has {model.output.out_features}"
        )
    model.label_names = tuple(names)
    data = _read(a.data, "test", a.columns or _columns(tokenizer), names)
    begun = time.perf_counter()
    pairs = _encode(tokenizer, data, min(a.max_len, model.config.max_len), a.truncation)
    figures = evaluate(model, pairs, batch_size=a.batch_size, precision=a.precision)
    figures["dropped"] = data.dropped
    figures["seconds"] = time.perf_counter() - begun
    if a.json:
        print(json.dumps(figures))
        return
    print(f"accuracy {figures['accuracy']:.4f}  loss {figures['loss']:.4f}  {figures['examples']} pairs")
    width = max(len(name) for name in figures["labels"])
    print(f"{'':{width}}  precision  recall      f1  support   predicted: {' '.join(figures['labels'])}")
    for name, counts in zip(figures["labels"], figures["confusion"], strict=True):
        c = figures["per_class"][name]
        row = " ".join(f"{n:>{len(label)}}" for n, label in zip(counts, figures["labels"], strict=True))
        print(
            f"{name:{width}}  {c['precision']:9.3f}  {c['recall']:6.3f}  {c['f1']:6.3f}  {c['support']:7d}"
            f"              {row}"
        )


def _predict(a: argparse.Namespace) -> None:
    model, tokenizer = _load_classifier(a.model, a.device)
    if a.input == "-":
        # Not sys.stdin: its encoding and line ends are the environment's choice, ours must not be.
        with open(sys.stdin.fileno(), encoding="utf-8-sig", newline="\n", closefd=False) as file:
            _predict_stream(a, model, tokenizer, file, "standard input")
    else:
        with open(a.input, encoding="utf-8-sig", newline="\n") as file:
            _predict_stream(a, model, tokenizer, file, a.input)


def _predict_stream(
    a: argparse.Namespace, model: BERTClassifier, tokenizer: Tokenizer, lines: TextIO, where: str
) -> None:
    pairs = _parse_pairs(lines, where)
    while chunk := list(itertools.islice(pairs, a.batch_size)):
        premises, hypotheses = zip(*chunk, strict=True)
        if isinstance(tokenizer, WordTokenizer):
            premises, hypotheses = (tuple(map(_spaced, side)) for side in (premises, hypotheses))
        for p in predict(
            model,
            tokenizer,
            premises,
            hypotheses,
            max_len=a.max_len,
            truncation=a.truncation,
            batch_size=a.batch_size,
            precision=a.precision,
        ):
            print(_as_json(p))
        sys.stdout.flush()


def _download(a: argparse.Namespace) -> None:
    print(hub.download_extract(a.name, into=a.folder))


# ---- pieces ---------------------------------------------------------------------------------------------------------


def _read(path: Path, split: str, columns: Columns, label_names: Sequence[str] | None = None) -> PairData:
    """The labelled pairs of a file, or of a folder in SNLI's layout that split's."""
    return read_pairs(snli_file(path, split), columns, label_names or SNLI_LABELS)


def _spaced(text: str) -> str:
    """Punctuation and clitics set apart by spaces, as the words of a Vocab are: it has no "sleeping." with a stop."""
    text = re.sub(r"([^\w\s'\u2019-])", r" \1 ", text)
    return re.sub(r"(?i)(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", text)


def _columns(tokenizer: Tokenizer) -> Columns:
    return "parse" if isinstance(tokenizer, WordTokenizer) else "text"


def _book_vocab(data: PairData, min_freq: int) -> Vocab:
    """The words of both sides, as the book builds vocabularies."""
    tokens = [text.lower().split() for side in (data.premises, data.hypotheses or ()) for text in side]
    return Vocab(tokens, min_freq=min_freq, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])


def _encode(
    tokenizer: Tokenizer, data: PairData, max_len: int = 128, truncation: Truncation = "longest_first"
) -> EncodedPairs:
    assert data.hypotheses is not None
    return tokenizer.encode_pairs(data.premises, data.hypotheses, max_len, truncation, labels=data.labels)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _load_classifier(name: str, device: str | None) -> tuple[BERTClassifier, Tokenizer]:
    model, tokenizer = checkpoint.from_pretrained(name)
    if not isinstance(model, BERTClassifier):
        raise ValueError(f"{name} has no classification layer; fine-tune it first with `bertnli train`")
    return model.to(_device(device)), tokenizer


def _print_epoch(e: Epoch) -> None:
    dev = "" if e.dev_score is None else f", dev loss {e.dev_loss:.3f}, dev {e.metric} {e.dev_score:.4f}"
    accuracy = "" if e.train_accuracy is None else f", train accuracy {e.train_accuracy:.4f}"
    print(
        f"epoch {e.epoch}: train loss {e.train_loss:.3f}{accuracy}{dev}, "
        f"{e.seconds:.1f} s, {e.pairs_per_second:.0f} pairs/s",
        flush=True,
    )


def _save(model: BERTClassifier, folder: Path, tokenizer: Tokenizer, history: History) -> None:
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


def _parse_pairs(lines: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    """Premise and hypothesis of each line: JSON objects where the first line begins with `{`, else tab-separated."""
    as_json: bool | None = None
    try:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                raise ValueError(f"{where}:{number}: the line is empty; expected a premise and a hypothesis")
            if as_json is None:
                as_json = line.lstrip().startswith("{")
            if as_json:
                yield _pair_of_json(line, f"{where}:{number}")
            else:
                fields = line.split("\t")
                if len(fields) != 2:
                    raise ValueError(f"{where}:{number}: expected premise<TAB>hypothesis, found {len(fields)} fields")
                yield fields[0], fields[1]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error


def _pair_of_json(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    for first, second in (("premise", "hypothesis"), ("sentence1", "sentence2")):
        if isinstance(row, dict) and isinstance(row.get(first), str) and isinstance(row.get(second), str):
            return row[first], row[second]
    raise ValueError(f'{where}: expected an object with strings "premise" and "hypothesis"')


def _as_json(p: Prediction) -> str:
    return json.dumps({"label": p.label, "probabilities": p.probabilities}, ensure_ascii=False)
