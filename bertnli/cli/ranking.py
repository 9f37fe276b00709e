"""`bertnli rank` and `bertnli zero-shot`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace

from bertnli.cli.loading import check_is_head, find_device, load_checkpoint
from bertnli.cli.texts import chunks, open_input, open_texts
from bertnli.data.tables import parse_object
from bertnli.data.writers import to_json
from bertnli.model import Model
from bertnli.tasks.load import text_lines


def rank(args: SimpleNamespace) -> None:
    """Print {"query", "index", "score", "document"} of the best documents of each query."""
    queries = _queries(args)
    model = _load(args)
    for query, documents in queries:
        for index, score in model.rank(query, documents, args.top_k, label=args.label):
            print(to_json({"query": query, "index": index, "score": score, "document": documents[index]}))
        sys.stdout.flush()


def _queries(args: SimpleNamespace) -> Iterator[tuple[str, list[str]]]:
    """Each query with its documents, from --input or from --query and --documents."""
    given = [name for name in ("query", "documents", "input") if getattr(args, name) is not None]
    if given == ["query", "documents"]:
        return _one_query(args)
    if given == ["input"]:
        if args.text_columns:
            raise ValueError("--text-columns is for a table of --documents")
        return _queries_of_lines(args)
    found = " and ".join(f"--{name}" for name in given) or "neither"
    raise ValueError(f"give either --query and --documents, or --input; found {found}")


def _one_query(args: SimpleNamespace) -> Iterator[tuple[str, list[str]]]:
    with open_texts(args.documents, args) as (texts, _):
        yield args.query, list(texts)


def _queries_of_lines(args: SimpleNamespace) -> Iterator[tuple[str, list[str]]]:
    with open_input(args.input, args.encoding) as lines:
        for text, where in text_lines(lines.lines, lines.name):
            yield _parse_query(text, where)


def _parse_query(line: str, where: str) -> tuple[str, list[str]]:
    value = parse_object(line, where)
    query, documents = value.get("query"), value.get("documents")
    if not isinstance(query, str) or not isinstance(documents, list) or not all(isinstance(d, str) for d in documents):
        raise ValueError(
            f'{where}: expected an object with a string "query" and a list of strings "documents"; found the keys '
            f"{', '.join(map(repr, value))}"
        )
    return query, documents


def zero_shot(args: SimpleNamespace) -> None:
    """Print a prediction for each line of --input."""
    model = _load(args)
    with open_texts(args.input, args) as (texts, is_waiting):
        for chunk in chunks(texts, args.batch_size, is_waiting):
            for prediction in model.zero_shot(
                chunk, args.labels, args.template, multi_label=args.multi_label, batch_size=args.batch_size
            ):
                print(to_json(asdict(prediction)))
            sys.stdout.flush()


def _load(args: SimpleNamespace) -> Model:
    head, tokenizer = load_checkpoint(args.model)
    return Model(check_is_head(head, args.model), tokenizer, args.precision).to(find_device(args.device))
