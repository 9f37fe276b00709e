"""`bertnli evaluate` and `bertnli predict`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from types import SimpleNamespace
from typing import Any

from bertnli.cli.loading import load, load_head, name_classes, open_session
from bertnli.cli.options import STDIN
from bertnli.cli.reports import print_figures, print_json
from bertnli.cli.texts import chunks, open_input
from bertnli.cli.training_run import evaluation
from bertnli.data.source import Source
from bertnli.data.writers import to_json
from bertnli.inference import predict as inference
from bertnli.inference.files import check_output, predict_file, write_evaluated
from bertnli.inference.session import InferenceSession
from bertnli.report.page import write_report
from bertnli.tasks.load import parse_lines, read_inputs
from bertnli.text.tokenizer import Tokenizer


def evaluate(args: SimpleNamespace) -> None:
    model, tokenizer = load_head(args.model, args)
    names = name_classes(model, args.labels)
    if args.probabilities and args.predictions is None:
        raise ValueError("--probabilities goes with --predictions")
    if args.predictions is not None:
        check_output(args.predictions, model, Source(args.data), labelled=True)
    started = time.perf_counter()
    data = load(args, model.task, args.data, "test", tokenizer, names)
    encoded = model.encode(tokenizer, data, model.sequence_len(args.max_len), args.truncation)
    session = open_session(model, args)
    found = evaluation(
        session, args.data.resolve().name, data, encoded, batch_size=args.batch_size, progress=not args.quiet
    )
    figures = found.figures
    if args.report is not None:
        write_report(args.report, f"{args.model} on {args.data.name}", evaluated=[found], settings=args.params)
    if args.predictions is not None:
        write_evaluated(
            model,
            args.data,
            model.predictions(found.outputs, encoded),
            args.predictions,
            text_columns=args.text_columns,
            label_column=args.label_column,
            labels=names,
            probabilities=args.probabilities,
            encoding=args.encoding,
            delimiter=args.delimiter,
        )
    figures["dropped"] = data.dropped
    figures["seconds"] = time.perf_counter() - started
    if args.json:
        print_json(args, figures)
    else:
        print_figures(figures)


def predict(args: SimpleNamespace) -> None:
    model, tokenizer = load_head(args.model, args)
    session = open_session(model, args)
    if args.output is None and (args.probabilities or args.bad_rows):
        raise ValueError("--probabilities and --bad-rows go with --output")
    if args.input != STDIN:
        table: dict[str, Any] = dict(encoding=args.encoding, delimiter=args.delimiter)
        if args.output is None:
            examples = read_inputs(args.input, model, args.text_columns, **table)
            _print_predictions(args, session, tokenizer, examples, lambda: True)
            return
        how: dict[str, Any] = dict(max_len=args.max_len, truncation=args.truncation, batch_size=args.batch_size)
        written, aside = predict_file(
            session, tokenizer, args.input, args.output, text_columns=args.text_columns,
            probabilities=args.probabilities, bad_rows=args.bad_rows, progress=not args.quiet, **table, **how,
        )  # fmt: skip
        print(f"{written} rows: {args.output}" + (f"; {aside} rows set aside: {args.bad_rows}" if aside else ""))
        return
    if args.text_columns or args.output:
        raise ValueError("--text-columns and --output are for a table in a file: name it by --input")
    with open_input(STDIN, args.encoding) as lines:
        examples = parse_lines(lines.lines, lines.name, model)
        _print_predictions(args, session, tokenizer, examples, lines.is_waiting)


def _print_predictions(
    args: SimpleNamespace,
    session: InferenceSession,
    tokenizer: Tokenizer,
    examples: Iterator[tuple[Any, ...]],
    is_waiting: Callable[[], bool],
) -> None:
    """Print the predictions batch by batch; before an error in the input, those of the examples before it."""
    for chunk in chunks(examples, args.batch_size, is_waiting):
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
