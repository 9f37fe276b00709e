"""Files to examples of a task: labelled data for training and evaluation, input lines for prediction."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from bertnli.data.arguments import path_of
from bertnli.data.conll import WordData, open_conll, read_conll, read_conllu
from bertnli.data.files import check_file, decoded_lines
from bertnli.data.headers import likely_options, looks_like_header
from bertnli.data.snli import Columns, read_pairs, snli_file
from bertnli.data.source import Source
from bertnli.data.squad import QuestionData, is_squad, questions_of, read_squad, read_whole
from bertnli.data.tables import check_texts, column_names, json_format, parse_object, read_table, read_tables
from bertnli.data.texts import TextData, check_unicode
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import space_out_data

Examples = TextData | WordData | QuestionData
CONLL = (".conll", ".conllu")  # suffixes of files of sentences that `read_inputs` takes
_ROWS = 4096  # rows of a table that are read at a time


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
    encoding: str = "utf-8",
    delimiter: str | None = None,
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
    encoding        of the text, by Python's name (default: "utf-8")
    delimiter       of a table: see `read_table`

    Raises FileNotFoundError, and ValueError for a broken file or for columns that the file cannot have.
    """
    path = path_of(path)
    if label_column and (task == "qa" or not (task == "tagging" or text_columns)):
        raise ValueError("label_column goes with text_columns, or with a file of tagging; SNLI's layout has its own")
    if task in ("qa", "tagging") and delimiter is not None:
        raise ValueError("delimiter is for tables, and not for files of questions or of tags")
    if task == "qa":
        return read_squad(path, encoding=encoding)
    if task == "tagging":
        return _load_words(Source(path, encoding), label_column, labels)
    if text_columns:
        between = separator if task == "multilabel" else None
        column, real = label_column or "label", task == "regression"
        data = read_table(
            path, text_columns, column, labels,
            real=real, separator=between, encoding=encoding, delimiter=delimiter,
        )  # fmt: skip
    elif task in ("regression", "multilabel"):
        raise ValueError(f"{task} needs text_columns and label_column")
    else:
        columns = columns or ("parse" if words else "text")
        data = _read_pairs(Source(snli_file(path, split), encoding, delimiter), columns, labels)
    return space_out_data(data) if words and (text_columns or columns == "text") else data


def _read_pairs(source: Source, columns: Columns, labels: Sequence[str] | None) -> TextData:
    try:
        return read_pairs(source.path, columns, labels, encoding=source.encoding, delimiter=source.delimiter)
    except ValueError as error:
        if "expected a header" not in str(error) and "expected a field" not in str(error):
            raise
        options, found = likely_options(column_names(source)), str(error).partition("; for a .csv")[0]  # one advice
        raise ValueError(f"{found}; name other columns: {options} (text_columns, label_column in Python)") from None


def _load_words(source: Source, label_column: str | None, labels: Sequence[str] | None) -> WordData:
    path, encoding = source.path, source.encoding
    index = tag_index(source, label_column)
    if source.suffix == ".conllu":
        return read_conllu(path, labels, tag=label_column or "upos", encoding=encoding)
    return read_conll(path, labels, tag=index + (index >= 0), encoding=encoding)


def tag_index(source: Source, label_column: str | None) -> int:
    """The column of the tags in a CoNLL file, from 0 or from the end: see `load_examples`."""
    if source.suffix == ".conllu":
        return 4 if label_column == "xpos" else 3
    column = label_column or "-1"
    if not re.fullmatch(r"-?[1-9]\d*", column):
        raise ValueError(f"label_column: a CoNLL file's tags are in a column by number, not {column!r}")
    return int(column) - (int(column) > 0)


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
    path: str | os.PathLike[str],
    model: Head,
    text_columns: Sequence[str] | None = None,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> Iterator[tuple[Any, ...]]:
    """The parts of each unlabelled example of a file: a text; premise and hypothesis; words; question and context.
    For question answering also of a file in SQuAD's layout, for tagging of a .conll or .conllu file.

    text_columns    columns of a table (default: those of `model.fields` in the header of a .csv, .tsv, .parquet, .arrow
                    or .json file; any other file has one example a line, see `parse_lines`)
    encoding, delimiter    as in `read_table`

    Raises FileNotFoundError, and ValueError for a broken line and for a table without these columns.
    """
    source = Source(path, encoding, delimiter)
    check_file(source.path)
    if model.task == "tagging" and source.suffix in CONLL:
        yield from zip(open_conll(source, source.suffix == ".conllu").sentences(), strict=True)
        return
    if model.task == "qa" and is_squad(source):
        data = questions_of(read_whole(source), source.path)
        yield from zip(data.questions, data.contexts, strict=True)
        return
    text_columns = text_columns or columns_of_table(source, model)
    if not text_columns:
        yield from parse_lines(decoded_lines(source.lines(), path), str(path), model)
        return
    check_count(text_columns, model)
    for row in _rows(source, text_columns):
        yield tuple(text.split() for text in row) if model.task == "tagging" else row


def _rows(source: Source, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of a table's columns, row by row."""
    for table in read_tables(source, columns, _ROWS):
        check_texts(table, columns)
        yield from zip(*(column.texts for column in table.columns), strict=True)


def read_texts(source: Source, column: str | None) -> Iterator[str]:
    """The single texts of a file: of a table's column, by default "text", "sentence", or the only one; else its lines.

    Raises ValueError naming the line for an empty one.
    """
    if column is None and not (source.is_json or _is_table(source)):
        return (text for text, _ in text_lines(decoded_lines(source.lines(), source.path), str(source.path)))
    if column is None:
        names = column_names(source)
        column = next((name for name in ("text", "sentence", *names[: len(names) == 1]) if name in names), None)
        if column is None:
            found = ", ".join(map(repr, names))
            raise ValueError(
                f"{source.path} is a table with the columns {found}; name that of the texts: --text-columns"
            )
    return (text for (text,) in _rows(source, [column]))


def check_count(text_columns: Sequence[str], model: Head) -> None:
    """Raise ValueError for another number of columns than the model takes."""
    counts = sorted({len(names) for names in _expected_fields(model)})
    if len(text_columns) not in counts:
        raise ValueError(
            f"{len(text_columns)} text columns ({', '.join(text_columns)}); the model takes "
            f"{' or '.join(map(str, counts))}"
        )


def _is_table(source: Source) -> bool:
    """Whether prediction reads a file as a table, if it has a header."""
    return source.is_csv or source.is_arrow or source.suffix == ".tsv" or (
        source.is_json and json_format(source) == "array"
    )  # fmt: skip


def columns_of_table(source: Source, model: Head) -> Sequence[str] | None:
    """The columns of a table's header that `model` reads; None for a file of lines.

    Raises ValueError for a table without them and for a file of another kind.
    """
    if source.suffix in CONLL:
        raise ValueError(f"{source.path}: a {source.suffix} file is for tagging; expected {_format(model.fields)}")
    if not _is_table(source):
        return None
    names, fields = column_names(source), _expected_fields(model)
    if (chosen := choose_columns(names, model)) is not None:
        return chosen
    if source.suffix == ".tsv" and not looks_like_header(names):
        return None
    what = f"{source.path} is a table with the columns {', '.join(map(repr, names))}"
    raise ValueError(_name_columns(what, names, fields))


def choose_columns(names: Sequence[str], model: Head) -> Sequence[str] | None:
    """Those of `model.fields` that are all among a table's columns; None if there are none."""
    return next((choice for choice in _expected_fields(model) if set(choice) <= set(names)), None)


def shared_columns(source: Source, text_columns: Sequence[str] | None) -> Sequence[str] | None:
    """`text_columns` if the table has them, else None: for a second file beside one that is read by them."""
    if not text_columns or not (source.is_json or _is_table(source)):
        return None
    return text_columns if set(text_columns) <= set(column_names(source)) else None


def _name_columns(what: str, names: Sequence[str], fields: Fields) -> str:
    """An error that asks for the columns of a table, with the likeliest."""
    likely = [name for name in names if looks_like_header([name])] or list(names)
    example = ",".join(likely[: len(fields[0])])
    return f"{what}; name the columns of {_format(fields)}: --text-columns {example} (text_columns in Python)"


def text_lines(lines: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    """Each line without its end, and its place for errors. Raises ValueError for an empty one."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            raise ValueError(f"{where}:{number}: the line is empty; expected a text")
        yield text, f"{where}:{number}"


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
