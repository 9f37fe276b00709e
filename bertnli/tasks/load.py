"""Files to examples of a task: labelled data for training and evaluation, input lines for prediction."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bertnli.data.arguments import path_of
from bertnli.data.conll import WordData, read_conll, read_conllu
from bertnli.data.files import JSON_LINES, check_file, check_json_lines, decoded_lines
from bertnli.data.snli import Columns, read_pairs, snli_file
from bertnli.data.squad import QuestionData, read_squad
from bertnli.data.tables import column_names, likely_options, looks_like_header, parse_object, read_table
from bertnli.data.texts import TextData, check_unicode
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import space_out_data

Examples = TextData | WordData | QuestionData
_TABLES = {".csv", ".tsv", ".parquet"}  # suffixes of files that prediction may read as tables


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
    separator: str = ",",
) -> Examples:
    """Read labelled examples of a task.

    path            a file, or a folder in SNLI's layout
    task            "classification", "multilabel", "regression", "tagging" or "qa"; a custom head's examples are texts
                    or pairs
    split           "train", "dev" or "test": the file of a folder
    text_columns    column of the texts, or of premise and hypothesis, in a table: see `read_table` (default: the file
                    has SNLI's layout: see `read_pairs`)
    label_column    column of the labels in a table (default: "label"); for tagging the number of the tags' column
                    (default: -1, the last), in a .conllu file "upos" (default) or "xpos"
    labels          class names (default: SNLI's in its layout, else the labels in the file)
    columns         SNLI's layout: "parse" for the words of its parses, "text" for its sentences (default: "parse" if
                    `words`, else "text")
    words           whether a WordTokenizer will encode them: then spaces are put around the punctuation of sentences
    separator       multilabel: text between the classes of an example, see `read_table`

    Raises FileNotFoundError, and ValueError for a broken file or for columns that the file cannot have.
    """
    path = path_of(path)
    if label_column and (task == "qa" or not (task == "tagging" or text_columns)):
        raise ValueError("label_column goes with text_columns, or with a file of tagging; SNLI's layout has its own")
    if task == "qa":
        return read_squad(path)
    if task == "tagging":
        return _load_words(path, label_column, labels)
    if text_columns:
        between = separator if task == "multilabel" else None
        column, real = label_column or "label", task == "regression"
        data = read_table(path, text_columns, column, labels, real=real, separator=between)
    elif task in ("regression", "multilabel"):
        raise ValueError(f"{task} needs text_columns and label_column")
    else:
        columns = columns or ("parse" if words else "text")
        data = _read_pairs(snli_file(path, split), columns, labels)
    return space_out_data(data) if words and (text_columns or columns == "text") else data


def _read_pairs(path: Path, columns: Columns, labels: Sequence[str] | None) -> TextData:
    try:
        return read_pairs(path, columns, labels)
    except ValueError as error:
        if "expected a header" not in str(error) and "expected a field" not in str(error):
            raise
        options = likely_options(column_names(path))
        raise ValueError(f"{error}; name other columns: {options} (text_columns, label_column in Python)") from None


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

    text_columns    columns of a table (default: those of `model.fields` in the header of a .csv, .tsv or .parquet file;
                    any other file has one example a line, see `parse_lines`)

    Raises FileNotFoundError, and ValueError for a broken line and for a table without these columns.
    """
    path = path_of(path)
    check_file(path)
    text_columns = text_columns or _columns_of_table(path, model)
    if not text_columns:
        with open(path, "rb") as file:
            yield from parse_lines(decoded_lines(file, path), str(path), model)
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


def _columns_of_table(path: Path, model: Head) -> Sequence[str] | None:
    """The columns of a table's header that `model` reads; None for a file of lines.

    Raises ValueError for a table without them and for a file of another kind.
    """
    suffix = path.suffix.lower()
    if suffix in (".conll", ".conllu"):
        raise ValueError(f"{path}: expected one sentence a line, with spaces between words; found a {suffix} file")
    if suffix in JSON_LINES:
        check_json_lines(path)
    if suffix not in _TABLES:
        return None
    names, fields = column_names(path), _expected_fields(model)
    for choice in fields:
        if set(choice) <= set(names):
            return choice
    if suffix == ".tsv" and not looks_like_header(names):
        return None
    raise ValueError(_name_columns(f"{path} is a table with the columns {', '.join(map(repr, names))}", names, fields))


def shared_columns(path: str | os.PathLike[str], text_columns: Sequence[str] | None) -> Sequence[str] | None:
    """`text_columns` if the table `path` has them, else None: for a second file beside one that is read by them."""
    path = path_of(path)
    if not text_columns or path.suffix.lower() not in _TABLES | JSON_LINES:
        return None
    return text_columns if set(text_columns) <= set(column_names(path)) else None


def _name_columns(what: str, names: Sequence[str], fields: Fields) -> str:
    """An error that asks for the columns of a table, with the likeliest."""
    likely = [name for name in names if looks_like_header([name])] or list(names)
    example = ",".join(likely[: len(fields[0])])
    return f"{what}; name the columns of {_format(fields)}: --text-columns {example} (text_columns in Python)"


def parse_lines(lines: Iterable[str], where: str, model: Head) -> Iterator[tuple[Any, ...]]:
    """The parts of each line's example: JSON objects if the first line begins with `{`, else tab-separated text.

    where    the lines' source, for errors. Raises ValueError naming the line.
    """
    fields = _expected_fields(model)
    as_json: bool | None = None
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            raise ValueError(f"{where}:{number}: the line is empty; expected {_format(fields)}")
        if as_json is None:
            as_json = line.lstrip().startswith("{")
            _check_first_line(line, f"{where}:{number}", fields)
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


def _check_first_line(line: str, where: str, fields: Fields) -> None:
    """Raise ValueError where the first line is the header of a table or begins a JSON array."""
    if line.strip() == "[" or line.lstrip().startswith("[{"):
        raise ValueError(f"{where}: expected JSON lines (one object a line) or text; found a JSON array")
    names = [name.strip('" ') for name in line.split("\t" if "\t" in line else ",")]
    if tuple(names) in fields or (len(names) > 1 and looks_like_header(names)):
        raise ValueError(_name_columns(f"{where}: {line!r} looks like the header of a table", names, fields))


Fields = tuple[tuple[str, ...], ...]


def _expected_fields(model: Head) -> Fields:
    """The names of an example's parts: the head's, without those of another number of texts than in training."""
    texts = model.settings.get("texts")
    return tuple(names for names in model.fields if texts in (None, len(names)))


def _format(fields: Fields) -> str:
    return " or ".join("<TAB>".join(names) for names in {len(names): names for names in reversed(fields)}.values())


def _parse_json(line: str, where: str, fields: Fields) -> tuple[Any, ...]:
    value = parse_object(line, where)
    for names in fields:
        parts = [value.get(name) for name in names]
        texts = parts[0] if names == ("words",) else parts
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            for text in texts:
                check_unicode(text, where)
            return tuple(parts)
    kind = "a list of strings" if fields == (("words",),) else "strings"
    expected = " or ".join(" and ".join(f'"{name}"' for name in names) for names in fields)
    raise ValueError(
        f"{where}: expected an object with {kind} {expected}; found the keys {', '.join(map(repr, value))}. "
        "Texts under other keys: --text-columns (text_columns in Python)"
    )
