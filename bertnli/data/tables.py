"""Files of other shapes than SNLI's: tables with named columns, words with tags, questions on contexts.

    table       .csv, .tsv and other tab-separated text, JSON lines, .parquet    read_table     TextData
    tags        CoNLL (a word and its tags a line), CoNLL-U                      read_conll(u)  WordData
    questions   SQuAD 1.1 and 2.0 (JSON)                                         read_squad     QuestionData

What is broken is a ValueError that names the file and the line (of .parquet the row, of SQuAD the question).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar

from bertnli.data.files import check_file
from bertnli.data.snli import JSON_LINES, TextData, Texts

_NO_LABEL = {"", "-", "-1"}  # how the corpora say that there is no gold label
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class WordData:
    """Sentences of words with a tag each.

    sentences     M lists of words
    tags          M lists of as many indices into label_names; None where there are no tags
    """

    sentences: Sequence[Sequence[str]]
    tags: Sequence[Sequence[int]] | None
    label_names: tuple[str, ...] = ()
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, rows: slice) -> WordData:
        """The sentences of a slice."""
        return replace(self, sentences=self.sentences[rows], tags=None if self.tags is None else self.tags[rows])


@dataclass(frozen=True)
class QuestionData:
    """Questions on contexts.

    questions, contexts   texts, N each
    answers               of each question its answers as (first character in the context, text), none where the context
                          has no answer; None for questions without known answers
    ids, titles           N strings each; the title is the article's
    """

    questions: Sequence[str]
    contexts: Sequence[str]
    answers: Sequence[Sequence[tuple[int, str]]] | None
    ids: Sequence[str]
    titles: Sequence[str]
    label_names: ClassVar[tuple[str, ...]] = ()
    dropped: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, rows: slice) -> QuestionData:
        """The questions of a slice."""
        return self._map(lambda values: values[rows])

    def where(self, keep: Callable[[str], bool]) -> QuestionData:
        """The questions on articles of whose titles `keep` is true."""
        rows = [i for i, title in enumerate(self.titles) if keep(title)]
        return self._map(lambda values: [values[i] for i in rows])

    def _map(self, f: Callable[[Any], Any]) -> QuestionData:
        answers = None if self.answers is None else f(self.answers)
        return QuestionData(f(self.questions), f(self.contexts), answers, f(self.ids), f(self.titles))


# ---- tables ---------------------------------------------------------------------------------------------------------


def read_table(
    path: str | os.PathLike[str],
    text: str | Sequence[str],
    label: str | None,
    label_names: Sequence[str] | None = None,
    *,
    real: bool = False,
) -> TextData:
    """Texts or pairs with labels from named columns of a table.

    path          .csv (quoted as Excel does), .parquet (needs pyarrow), JSON lines (.jsonl, .json, .ndjson), or
                  tab-separated text without quoting (anything else)
    text          the column of the texts, or the two of the pairs
    label         the column of the labels; None reads all rows, without labels
    label_names   the classes: a label is a name or, where no name is a number, an index. None takes the labels that the
                  file has, numbers in their order, else by the alphabet. Rows without a label (empty, "-", and but for
                  reals -1) are dropped and counted
    real          the labels are real numbers

    Columns that are all numbers, as "1", are places from 1 in a table without a header (.csv and tab-separated text).
    """
    path = Path(path)
    columns = [text] if isinstance(text, str) else list(text)
    if len(columns) not in (1, 2):
        raise ValueError(f"text must name one column or two; found {columns}")
    texts: list[list[str]] = [[] for _ in columns]
    raw: list[str] = []
    places: list[int] = []
    dropped = 0
    for place, values in _rows(path, columns if label is None else [*columns, label]):
        gold = "?" if label is None else "" if values[-1] is None else values[-1]
        if not isinstance(gold, (str, Number)) or gold != gold:
            raise ValueError(f"{path}:{place}: {label} is {gold!r}, not a label")
        found = str(gold).strip()
        if found in _NO_LABEL and found not in (label_names or ()) and not (real and found == "-1"):
            dropped += 1
            continue
        for column, name, value in zip(texts, columns, values, strict=False):
            if not isinstance(value, str):
                raise ValueError(f"{path}:{place}: {name} is {value!r}, not a text")
            column.append(value)
        raw.append(found)
        places.append(place)
    if not raw:
        raise ValueError(f"{path} has no {'rows' if label is None else 'labelled rows'}")
    names: tuple[str, ...] = ()
    labels: list[Any] | None
    if label is None:
        labels = None
    elif real:
        labels = [_real(value, f"{path}:{place}") for value, place in zip(raw, places, strict=True)]
    else:
        names, labels = _indices(raw, [f"{path}:{place}" for place in places], label_names, by_index=True)
    first, *second = map(Texts.of, texts)
    return TextData(first, second[0] if second else None, labels, names, dropped)


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, list[Any]]]:
    """Line (or row) number and the values of the columns, for each row."""
    if path.suffix.lower() == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise ValueError(f"{path}: to read parquet, pip install pyarrow") from None
        try:
            schema = parquet.read_schema(path)
            _demand(path, columns, schema.names)
            table = parquet.read_table(path, columns=columns)
        except ArrowException as error:
            raise ValueError(f"{path} is no intact parquet file: {error}") from None
        yield from enumerate(map(list, zip(*(table[name].to_pylist() for name in columns), strict=True)), 1)
        return
    with _opened(path) as lines:
        if path.suffix.lower() in JSON_LINES:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}:{number}: expected a JSON object")
                _demand(f"{path}:{number}", columns, list(row))
                yield number, [row[name] for name in columns]
            return
        csv.field_size_limit(2**31 - 1)
        if path.suffix.lower() == ".csv":
            reader = csv.reader(lines, strict=True)
        else:
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            if all(name.isdecimal() and int(name) for name in columns):
                places = [int(name) - 1 for name in columns]
            else:
                header = next(reader, [])
                _demand(path, columns, header)
                places = [header.index(name) for name in columns]
            for row in reader:
                if not row:
                    continue
                if len(row) <= max(places):
                    raise ValueError(
                        f"{path}:{reader.line_num}: expected at least {max(places) + 1} columns, found {len(row)}"
                    )
                yield reader.line_num, [row[i] for i in places]
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}") from None


def _demand(where: object, columns: list[str], found: list[str]) -> None:
    for name in columns:
        if name not in found:
            hint = " (numbers are places where all columns are numbers, the labels' too)" if name.isdecimal() else ""
            raise ValueError(
                f"{where}: there is no column {name!r}{hint}; the columns are {', '.join(map(repr, found))}"
            )


def _real(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not a number")
    return value


def _indices(
    labels: Sequence[str], places: Sequence[str], label_names: Sequence[str] | None, by_index: bool = False
) -> tuple[tuple[str, ...], list[int]]:
    """The classes and each label's index; `places` are for complaints; with `by_index` labels may be indices."""
    if label_names is None:
        label_names = sorted(set(labels))
        if all(map(_NUMBER.fullmatch, label_names)):
            label_names.sort(key=float)
    index = {name: i for i, name in enumerate(label_names)}
    if by_index and not any(map(_NUMBER.fullmatch, label_names)):
        index |= {str(i): i for i in range(len(label_names))}
    for label, place in zip(labels, places, strict=True):
        if label not in index:
            raise ValueError(f"{place}: unknown label {label!r}; expected one of {', '.join(label_names)}")
    return tuple(label_names), [index[label] for label in labels]


class _opened:
    """The lines of a UTF-8 file, kept as they end; a byte order mark is skipped; errors name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_file(path)

    def __enter__(self) -> Iterator[str]:
        self.file = open(self.path, encoding="utf-8-sig", newline="")
        return iter(self.file)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(f"{self.path} is not UTF-8: {error}") from None


# ---- words with tags ------------------------------------------------------------------------------------------------


def read_conll(
    path: str | os.PathLike[str], label_names: Sequence[str] | None = None, *, word: int = 1, tag: int = -1
) -> WordData:
    """Sentences of a CoNLL file: a line a word, columns parted by tabs (or else by white space), an empty line between
    sentences; lines that begin with -DOCSTART- are skipped.

    word, tag      the columns, from 1; -1 is the last
    label_names    the tags; None takes those that the file has, by the alphabet
    """
    if not word or not tag:
        raise ValueError(f"columns are counted from 1, or from the end: word={word}, tag={tag}")
    return _read_words(
        Path(path), label_names, word, tag, "a word and a tag", skip=lambda line: line.startswith("-DOCSTART-")
    )


def read_conllu(
    path: str | os.PathLike[str], label_names: Sequence[str] | None = None, *, tag: str = "upos"
) -> WordData:
    """Sentences of a CoNLL-U file with the tags of column `tag`, "upos" or "xpos".

    Comments, words of several tokens ("1-2") and empty nodes ("1.1") are skipped.
    """
    if tag not in ("upos", "xpos"):
        raise ValueError(f'tag must be "upos" or "xpos"; found {tag!r}')
    return _read_words(
        Path(path), label_names, 2, 4 if tag == "upos" else 5, "the ten columns of CoNLL-U",
        skip=lambda line: line.startswith("#") or not line.split("\t", 1)[0].isdecimal(),
    )  # fmt: skip


def _read_words(
    path: Path, label_names: Sequence[str] | None, word: int, tag: int, expected: str, skip: Callable[[str], bool]
) -> WordData:
    sentences: list[list[str]] = []
    raw: list[str] = []
    places: list[str] = []
    between = True
    columns = [place - (place > 0) for place in (word, tag)]
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                between = True
                continue
            if skip(line):
                continue
            fields = line.split("\t") if "\t" in line else line.split()
            needed = max(2, word, tag, -word, -tag)
            if len(fields) < needed or not fields[columns[0]] or not fields[columns[1]].strip():
                raise ValueError(f"{path}:{number}: expected {expected}; found {line!r}")
            if between:
                sentences.append([])
            between = False
            sentences[-1].append(fields[columns[0]])
            raw.append(fields[columns[1]].strip())
            places.append(f"{path}:{number}")
    if not sentences:
        raise ValueError(f"{path} has no sentences")
    names, flat = _indices(raw, places, label_names)
    tags, begin = [], 0
    for sentence in sentences:
        tags.append(flat[begin : begin + len(sentence)])
        begin += len(sentence)
    return WordData(sentences, tags, names)


# ---- questions ------------------------------------------------------------------------------------------------------


def read_squad(path: str | os.PathLike[str]) -> QuestionData:
    """Questions of a file in the layout of SQuAD 1.1 or 2.0; those that 2.0 calls impossible have no answers."""
    path = Path(path)
    with _opened(path) as lines:
        try:
            articles = json.loads("".join(lines))["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: expected a JSON object with "data", as SQuAD has it: {error!r}') from None
    questions: list[str] = []
    contexts, answers, ids, titles = [], [], [], []
    where = f"{path}: data"
    try:
        for number, article in enumerate(articles, 1):
            where = f"{path}: article {number}"
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    where = f"{path}: question {len(questions) + 1}"
                    where = f"{path}: question {question['id']!r}"
                    known = [] if question.get("is_impossible") else question["answers"]
                    found = [(int(answer["answer_start"]), str(answer["text"])) for answer in known]
                    for start, text in found:
                        if context[start : start + len(text)] != text:
                            raise ValueError(f"the context does not have {text!r} at character {start}")
                    questions.append(str(question["question"]))
                    contexts.append(str(context))
                    answers.append(found)
                    ids.append(str(question["id"]))
                    titles.append(str(article.get("title", "")))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not as in SQuAD: {error!r}") from None
    if not questions:
        raise ValueError(f"{path} has no questions")
    return QuestionData(questions, contexts, answers, ids, titles)
