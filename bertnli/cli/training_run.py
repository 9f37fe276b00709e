"""What training runs share: arguments of `fit`, and what is written at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bertnli import __version__, checkpoint
from bertnli.checkpoint.keep import keep_checkpoints
from bertnli.cli.config import RUN_FILE, run_toml
from bertnli.cli.loading import find_device
from bertnli.cli.output import KEPT_FOLDER, STATE_FILE, prepare_state_file
from bertnli.cli.reports import print_epoch, print_evaluation, print_json, print_kept_epoch
from bertnli.data.files import atomic_path
from bertnli.data.writers import to_json
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import SIZES, BERTConfig
from bertnli.inference.predict import evaluate_outputs
from bertnli.inference.session import InferenceSession
from bertnli.integrations import loggers
from bertnli.report.page import REPORT, Evaluated, Section, write_report
from bertnli.runtime import distributed
from bertnli.runtime.precision import unused_precision
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.wordpiece import WordPieceTokenizer
from bertnli.training.callbacks import Callback
from bertnli.training.history import History


def print_unused_precision(args: SimpleNamespace) -> None:
    if (instead := unused_precision(find_device(args.device), args.precision)) is not None:
        print(f"precision: {instead}")


def make_tokenizer(args: SimpleNamespace, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of --scratch: --vocab of the texts, without what is rarer than --min-freq."""
    make: dict[str, Callable[..., Tokenizer]] = {
        "words": WordTokenizer.from_texts,
        "pieces": WordPieceTokenizer.of_words,
        "characters": WordPieceTokenizer.of_characters,
    }
    return make[args.vocab](texts, args.min_freq)


def make_bert(args: SimpleNamespace, tokenizer: Tokenizer, pretraining_heads: bool) -> BERTModel:
    """The model of --scratch, with random weights."""
    sizes = SIZES[args.scratch] | ({} if args.dropout is None else {"dropout": args.dropout})
    return BERTModel(BERTConfig(len(tokenizer), **sizes, pretraining_heads=pretraining_heads))


def run_arguments(args: SimpleNamespace, model: Head | BERTModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """Arguments of `fit` beside TrainingOptions."""
    shown = Callback(
        on_eval=(lambda evaluation: print_evaluation(args, evaluation)) if args.eval_steps else None,
        on_epoch=lambda epoch: print_epoch(args, epoch),
    )
    state_file = prepare_state_file(args)
    callbacks = [shown]
    if args.keep is not None:
        callbacks.append(keep_checkpoints(model, tokenizer, args.output / KEPT_FOLDER, args.keep))
    for name in args.log:
        folder = [args.output / "tensorboard"] if name == "tensorboard" else []
        callbacks.append(getattr(loggers, name)(*folder))
    return {
        "device": find_device(args.device),
        "progress": not args.quiet,
        "state_file": state_file,
        "callbacks": callbacks,
    }


def dev_file(args: SimpleNamespace) -> Path | None:
    """--dev, else the folder of --train, for its dev file."""
    path: Path | None = args.dev if args.dev is not None else args.train if args.train.is_dir() else None
    return path


@dataclass
class Run:
    """A training run that has ended, and what its report shows.

    dev, dev_data    examples, and what the model's `encode` gave for them; None without
    sections         of the report, beside those of the run and of the dev data
    files            of --output that are written already
    config           the run's configuration, as the text of a file; None writes none
    """

    args: SimpleNamespace
    model: Head | BERTModel
    tokenizer: Tokenizer
    history: History
    dev: Any = None
    dev_data: Any = None
    sections: Sequence[Section] = ()
    files: tuple[str, ...] = ()
    config: str | None = None

    def finish(self) -> None:
        """Save the result, in the first of several processes, and say so."""
        args = self.args
        self.config = run_toml(args.command, args.params)
        if distributed.rank_and_size()[0] == 0:
            files = self.save()
            if args.discard_state:
                (args.output / STATE_FILE).unlink(missing_ok=True)
            if args.keep_best:
                print_kept_epoch(self.history)
            print(f"{files}: {args.output}")

    def save(self) -> str:
        """Write checkpoint, figures, report and the run's configuration to --output; says what was written."""
        args, history, folder = self.args, self.history, self.args.output
        files = ["checkpoint", *self.files, "metrics.jsonl"]
        if self.config is not None:  # the data are files
            paths = {"train": args.train, "dev": dev_file(args)}
            self.model.provenance |= {name: path.resolve().name for name, path in paths.items() if path is not None}
            self.model.provenance["version"] = __version__
        checkpoint.save_pretrained(self.model, folder, self.tokenizer)
        texts = {"metrics.jsonl": "".join(to_json(vars(e)) + "\n" for e in history.epochs)}
        if len(history.evaluations) > len(history.epochs):  # of --eval-steps
            texts["evaluations.jsonl"] = "".join(to_json(vars(e)) + "\n" for e in history.evaluations)
            files.append("evaluations.jsonl")
        if self.config is not None:
            texts[RUN_FILE] = self.config
            files.append(RUN_FILE)
        for name, text in texts.items():
            with atomic_path(folder / name) as path:
                path.write_text(text, encoding="utf-8", errors="backslashreplace")
        evaluated = []
        if history.dev is not None and isinstance(self.model, Head):
            figures, outputs = history.dev
            evaluated.append(Evaluated("the dev data", self.model, self.dev, self.dev_data, outputs, figures))
        title = f"Run {folder.resolve().name}"
        write_report(
            folder / REPORT, title, history=history, evaluated=evaluated, sections=self.sections, settings=args.params
        )
        files.append(REPORT)
        print_json(args, {"output": str(folder), "run": self.model.provenance["run"]})
        return f"{', '.join(files[:-1])} and {files[-1]}"


def evaluation(model: Head | InferenceSession, name: str, examples: Any, data: Any, **options: Any) -> Evaluated:
    """A model's outputs and figures on labelled data, for the report."""
    figures, outputs = evaluate_outputs(model, data, **options)
    head = model.model if isinstance(model, InferenceSession) else model
    return Evaluated(name, head, examples, data, outputs, figures)


def num_parameters(model: Head) -> int:
    return sum(p.numel() for p in model.parameters())
