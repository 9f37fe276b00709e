"""`bertnli explain`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from bertnli.cli.loading import load_head, name_classes
from bertnli.cli.options import STDIN
from bertnli.cli.texts import open_input
from bertnli.data.writers import to_json
from bertnli.report.explain import explain as explain_example
from bertnli.report.page import Section, write_page
from bertnli.tasks.base import Head
from bertnli.tasks.load import parse_lines, read_inputs


def explain(args: SimpleNamespace) -> None:
    """Print the explanation of each example of --input."""
    model, tokenizer = load_head(args.model, args)
    name_classes(model, None)
    how = {"target": args.target, "max_len": args.max_len, "truncation": args.truncation}
    sections: list[Section] = []
    for number, example in enumerate(_examples(args, model), 1):
        explanation = explain_example(model, tokenizer, *example, **how)
        print(to_json(asdict(explanation)), flush=True)
        if args.html is not None:
            sections.append(Section(f"Example {number}", explanation._repr_html_()))
    if args.html is not None:
        write_page(args.html, f"Predictions of {args.model}, explained", sections)


def _examples(args: SimpleNamespace, model: Head) -> Iterator[tuple[Any, ...]]:
    if args.input != STDIN:
        table: dict[str, Any] = dict(encoding=args.encoding, delimiter=args.delimiter)
        yield from read_inputs(args.input, model, args.text_columns, **table)
        return
    if args.text_columns:
        raise ValueError("--text-columns is for a table in a file: name it by --input")
    with open_input(STDIN, args.encoding) as lines:
        yield from parse_lines(lines.lines, lines.name, model)
