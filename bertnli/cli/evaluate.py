"""`bertnli evaluate` and `bertnli predict`."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from types import SimpleNamespace
from typing import Any

from bertnli.cli.loading import load, load_head, name_classes, open_session
from bertnli.cli.options import STDIN
from bertnli.cli.reports import print_figures, print_json, to_json
from bertnli.cli.runs import evaluation
from bertnli.cli.texts import lines_at_a_time, open_input
from bertnli.inference import predict as inference
from bertnli.inference.files import predict_file
from bertnli.inference.session import InferenceSession
from bertnli.report.page import write_report
from bertnli.tasks.load import parse_lines, read_inputs
from bertnli.text.tokenizer import Tokenizer


def evaluate(args: SimpleNamespace) -> None:
    model, tokenizer = load_head(args.model, args)
    names = name_classes(model, args.labels)
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
            _print_predictions(args, session, tokenizer, read_inputs(args.input, model, args.text_columns, **table))
            return
        how: dict[str, Any] = dict(max_len=args.max_len, truncation=args.truncation, batch_size=args.batch_size)
        written, aside = predict_file(
            session, tokenizer, args.input, args.output, text_columns=args.text_columns,
            probabilities=args.probabilities, bad_rows=args.bad_rows, **table, **how,
        )  # fmt: skip
        print(f"{written} rows: {args.output}" + (f"; {aside} rows set aside: {args.bad_rows}" if aside else ""))
        return
    if args.text_columns or args.output:
        raise ValueError("--text-columns and --output are for a table in a file: name it by --input")
    with open_input(STDIN) as (lines, name):
        _print_predictions(args, session, tokenizer, parse_lines(lines, name, model))


def _print_predictions(
    args: SimpleNamespace, session: InferenceSession, tokenizer: Tokenizer, examples: Iterator[tuple[Any, ...]]
) -> None:
    """Print the predictions batch by batch; before an error in the input, those of the examples before it."""
    error: ValueError | None = None
    size = lines_at_a_time(args)
    while error is None:
        chunk: list[tuple[Any, ...]] = []
        try:
            chunk.extend(itertools.islice(examples, size))  # keeps what came before an error
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
