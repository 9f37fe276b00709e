"""Files to examples of a task: labelled data for training and evaluation, input lines for prediction."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bertnli.data.conll import WordData, read_conll, read_conllu
from bertnli.data.snli import Columns, read_pairs, snli_file
from bertnli.data.squad import QuestionData, read_squad
from bertnli.data.tables import read_table
from bertnli.data.texts import TextData
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import space_out_data

Examples = TextData | WordData | QuestionData


def load_examples(
    path: str | os.PathLike[str],
    task: str = "classification",
    *,
    split: str = "train",
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    columns: Columns | None = None,
    words: bool = False,
) -> Examples:
    """Read labelled examples of a task.

    path            a file, or a folder in SNLI's layout
    task            "classification", "regression", "tagging" or "qa"; a custom head's examples are texts or pairs
    split           "train", "dev" or "test": the file of a folder
    text_columns    column of the texts, or of premise and hypothesis, in a table: see `read_table` (default: the file
                    has SNLI's layout: see `read_pairs`)
    label_column    column of the labels in a table (default: "label"); for tagging the number of the tags' column
                    (default: -1, the last), in a .conllu file "upos" (default) or "xpos"
    labels          class names (default: SNLI's in its layout, else the labels in the file)
    columns         SNLI's layout: "parse" for the words of its parses, "text" for its sentences (default: "parse" if
                    `words`, else "text")
    words           whether a WordTokenizer will encode them: then spaces are put around the punctuation of sentences

    Raises FileNotFoundError, and ValueError for a broken file or for columns that the file cannot have.
    """
    path = Path(path)
    if label_column and (task == "qa" or not (task == "tagging" or text_columns)):
        raise ValueError("label_column goes with text_columns, or with a file of tagging; SNLI's layout has its own")
    if task == "qa":
        return read_squad(path)
    if task == "tagging":
        return _load_words(path, label_column, labels)
    if text_columns:
        data = read_table(path, text_columns, label_column or "label", labels, real=task == "regression")
    elif task == "regression":
        raise ValueError("regression needs text_columns and label_column")
    else:
        columns = columns or ("parse" if words else "text")
        data = read_pairs(snli_file(path, split), columns, labels)
    return space_out_data(data) if words and (text_columns or columns == "text") else data


def _load_words(path: Path, label_column: str | None, labels: Sequence[str] | None) -> WordData:
    if path.suffix == ".conllu":
        return read_conllu(path, labels, tag=label_column or "upos")
    column = label_column or "-1"
    if not re.fullmatch(r"-?[1-9]\d*", column):
        raise ValueError(f"label_column: a CoNLL file's tags are in a column by number, not {column!r}")
    return read_conll(path, labels, tag=int(column))


def load_encoded(
    path: str | os.PathLike[str],
    model: Head,
    tokenizer: Tokenizer,
    *,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
    limit: int | None = None,
    labels: Sequence[str] | None = None,
    **reading: Any,
) -> Any:
    """Read a file and encode it for `model`: what `fit` and `evaluate` take.

    max_len, truncation    see `Head.encode`
    limit                  read only so many examples
    labels, reading        see `load_examples`; `labels` are the model's by default
    """
    words = isinstance(tokenizer, WordTokenizer)
    data = load_examples(path, model.task, labels=labels or model.label_names, words=words, **reading)
    return model.encode(tokenizer, data[:limit], max_len, truncation)


def texts_of(data: Examples) -> Iterator[str]:
    """Every text of the examples, for a vocabulary; a context once."""
    if isinstance(data, TextData):
        return chain(data.first, data.second or ())
    if isinstance(data, WordData):
        return (" ".join(words) for words in data.sentences)
    return chain(data.questions, dict.fromkeys(data.contexts))


# ---- input of predictions -------------------------------------------------------------------------------------------


def read_inputs(
    path: str | os.PathLike[str], model: Head, text_columns: Sequence[str] | None = None
) -> Iterator[tuple[Any, ...]]:
    """The parts of each unlabelled example of a file: a text; premise and hypothesis; words; question and context.

    text_columns    columns of a table (default: the file has one example a line, see `parse_lines`)
    """
    if not text_columns:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            yield from parse_lines(file, str(path), model)
        return
    counts = sorted({len(names) for names in _expected_fields(model)})
    if len(text_columns) not in counts:
        raise ValueError(
            f"{len(text_columns)} text columns ({', '.join(text_columns)}); the model takes "
            f"{' or '.join(map(str, counts))}"
        )
    data = read_table(path, text_columns, None)
    parts: list[Sequence[Any]] = [data.first] if data.second is None else [data.first, data.second]
    if model.task == "tagging":
        parts = [[text.split() for text in texts] for texts in parts]
    yield from zip(*parts, strict=True)


def parse_lines(lines: Iterable[str], where: str, model: Head) -> Iterator[tuple[Any, ...]]:
    """The parts of each line's example: JSON objects if the first line begins with `{`, else tab-separated text.

    where    the lines' source, for errors. Raises ValueError naming the line.
    """
    fields = _expected_fields(model)
    as_json: bool | None = None
    try:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                raise ValueError(f"{where}:{number}: the line is empty; expected {_format(fields)}")
            if as_json is None:
                as_json = line.lstrip().startswith("{")
            if as_json:
                example = _parse_json(line, f"{where}:{number}", fields)
            elif fields == (("words",),):
                example = (line.split(),)
            else:
                example = tuple(line.split("\t"))
                if len(example) not in map(len, fields):
                    raise ValueError(f"{where}:{number}: expected {_format(fields)}, found {len(example)} fields")
            fields = tuple(names for names in fields if len(names) == len(example))  # all lines are as the first
            yield example
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error


Fields = tuple[tuple[str, ...], ...]


def _expected_fields(model: Head) -> Fields:
    """The names of an example's parts: the head's, without those of another number of texts than in training."""
    texts = model.settings.get("texts")
    return tuple(names for names in model.fields if texts in (None, len(names)))


def _format(fields: Fields) -> str:
    return " or ".join("<TAB>".join(names) for names in {len(names): names for names in reversed(fields)}.values())


def _parse_json(line: str, where: str, fields: Fields) -> tuple[Any, ...]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    for names in fields:
        parts = [value.get(name) if isinstance(value, dict) else None for name in names]
        if names == ("words",):
            if isinstance(parts[0], list) and all(isinstance(word, str) for word in parts[0]):
                return tuple(parts)
        elif all(isinstance(part, str) for part in parts):
            return tuple(parts)
    kind = "a list of strings" if fields == (("words",),) else "strings"
    expected = " or ".join(" and ".join(f'"{name}"' for name in names) for names in fields)
    raise ValueError(f"{where}: expected an object with {kind} {expected}")
