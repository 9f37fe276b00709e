"""Sentences of words with a tag each: CoNLL and CoNLL-U files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from pathlib import Path

from bertnli.data.arguments import integer, strings
from bertnli.data.headers import looks_like_header
from bertnli.data.labels import label_indices
from bertnli.data.source import Source
from bertnli.data.texts import part_of

_WORD_NUMBER = re.compile(r"[0-9]+([-.][0-9]+)?")  # 1, 1-2 for several, 1.1 for one that is not written
Line = tuple[int, str, list[str]]  # its number in the file, its text, its columns


@dataclass(frozen=True)
class WordData:
    """Sentences of words with a tag each: the examples of tagging.

    sentences     M lists of words
    tags          M lists of as many indices into label_names; None without tags
    label_names   the tags
    dropped       always 0: every sentence of a file is read
    """

    sentences: Sequence[Sequence[str]]
    tags: Sequence[Sequence[int]] | None
    label_names: tuple[str, ...] = ()
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, part: slice | Sequence[int]) -> WordData:
        """The sentences of a slice, or of a list of indices."""
        tags = None if self.tags is None else part_of(self.tags, part)
        return replace(self, sentences=part_of(self.sentences, part), tags=tags)


def read_conll(
    path: str | os.PathLike[str],
    label_names: Sequence[str] | None = None,
    *,
    word: int = 1,
    tag: int = -1,
    encoding: str = "utf-8",
) -> WordData:
    """Read a CoNLL file: one word a line, columns separated by tabs (or by spaces), sentences by empty lines.

    Lines that begin with -DOCSTART- are skipped, and so are comments before a sentence: lines that begin with "# " and
    have another number of columns than the words, and CoNLL-2012's "#begin document" and "#end document".

    path           may have .gz or .zst behind its suffix
    label_names    the tags (default: those in the file, sorted)
    word, tag      column numbers, from 1; -1 is the last column
    encoding       of the text, by Python's name (default: "utf-8")

    Raises FileNotFoundError, and ValueError naming file and line for a line with another number of columns than the
    first one, an unknown tag, a header, a line that could be a comment or a word, and words that are numbers alone.
    """
    word, tag = integer(word, "word"), integer(tag, "tag")
    if not word or not tag:
        raise ValueError(f"columns are counted from 1, or from the end: word={word}, tag={tag}")
    file = open_conll(Source(path, encoding), is_conllu=False)
    expected = f"a word in column {word} and a tag in column {tag} of {file.width}"
    data = _word_data(file, label_names, (word, tag), expected)
    if all(_WORD_NUMBER.fullmatch(text) for words in data.sentences for text in words):
        is_conllu = file.width == 10
        cure = "read CoNLL-U by read_conllu, from a file whose name ends in .conllu" if is_conllu else "name another"
        raise ValueError(f"{path}: column {word} counts the words; {cure}")
    return data


def read_conllu(
    path: str | os.PathLike[str],
    label_names: Sequence[str] | None = None,
    *,
    tag: str = "upos",
    encoding: str = "utf-8",
) -> WordData:
    """Read a CoNLL-U file with the tags of column `tag`, "upos" or "xpos".

    Comments, multiword tokens ("1-2") and empty nodes ("1.1") are skipped. Arguments and errors are those of
    `read_conll`.
    """
    if tag not in ("upos", "xpos"):
        raise ValueError(f'tag must be "upos" or "xpos"; found {tag!r}')
    file = open_conll(Source(path, encoding), is_conllu=True)
    return _word_data(file, label_names, (2, 4 if tag == "upos" else 5), "a word and a tag")


@dataclass(frozen=True)
class ConllFile:
    """A CoNLL or CoNLL-U file.

    path       of the file
    lines      all its lines, with their ends
    words      the lines of each sentence that are words
    width      number of columns of a word
    is_conllu  whether the columns are those of CoNLL-U
    """

    path: Path
    lines: Sequence[str]
    words: Sequence[Sequence[Line]]
    width: int
    is_conllu: bool

    def sentences(self) -> list[list[str]]:
        """The words of each sentence, whether or not the file has tags."""
        column = 1 if self.is_conllu else 0
        self.check([column], column + 1, f"a word in column {column + 1} of {self.width}")
        return self.column(column)

    def column(self, index: int) -> list[list[str]]:
        """A column of each sentence's words, by index."""
        return [[columns[index] for *_, columns in sentence] for sentence in self.words]

    def check(self, indices: Sequence[int], min_width: int, expected: str) -> None:
        """Raise ValueError naming the line of a word that lacks one of the columns, by index, or has another number of
        columns than the first one. `expected` is for the error."""
        enough = self.width >= min_width
        for number, line, columns in chain.from_iterable(self.words):
            if not enough or len(columns) != self.width or not all(columns[i].strip() for i in indices):
                raise ValueError(f"{self.path}:{number}: expected {expected}; found {line!r}")

    def tagged(self, tags: Sequence[Sequence[str]]) -> Iterator[str]:
        """All lines, a word's with its tag: in one more column; in CoNLL-U, where there are ten, as `Predicted=TAG` in
        the last, MISC."""
        numbers = (number for sentence in self.words for number, *_ in sentence)
        tag_of = dict(zip(numbers, chain.from_iterable(tags), strict=True))
        for number, line in enumerate(self.lines, 1):
            tag, text = tag_of.get(number), line.rstrip("\r\n")
            if tag is not None and self.is_conllu:
                *columns, misc = text.split("\t" if "\t" in text else None)
                misc = f"Predicted={tag}" if misc == "_" else f"{misc}|Predicted={tag}"
                text = "\t".join([*columns, misc])
            elif tag is not None:
                text = f"{text}\t{tag}" if "\t" in text else f"{text.rstrip()} {tag}"
            yield text + (line[len(line.rstrip("\r\n")) :] or "\n")


def open_conll(source: Source, is_conllu: bool) -> ConllFile:
    """Read a file for its words. Errors are those of `read_conll`, without those of the tags."""
    path = source.path
    with source.text_lines() as found:
        lines = list(found)
    sentences = _sentences(lines, lambda line: line.startswith("#" if is_conllu else "-DOCSTART-"))
    words = [columns for sentence in sentences for _, line, columns in sentence if line[0] != "#"]
    width = len((words or [columns for sentence in sentences for *_, columns in sentence] or [[]])[0])
    if is_conllu:
        for number, line, columns in chain.from_iterable(sentences):
            if len(columns) != 10 or not _WORD_NUMBER.fullmatch(columns[0]):
                raise ValueError(
                    f"{path}:{number}: expected the ten columns of CoNLL-U, the first a number; found {line!r}"
                )
        sentences = [[line for line in sentence if line[2][0].isdecimal()] for sentence in sentences]
    elif any(line.startswith(("# ", "#begin ", "#end ")) for _, line, _ in chain.from_iterable(sentences)):
        known = {(i, value) for columns in words for i, value in enumerate(columns) if i}
        sentences = [_without_comments(path, sentence, width, known) for sentence in sentences]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise ValueError(f"{path} has no sentences")
    return ConllFile(path, lines, sentences, width, is_conllu)


def _sentences(lines: Sequence[str], skip: Callable[[str], bool]) -> list[list[Line]]:
    """The lines between empty lines, without those to skip."""
    sentences: list[list[Line]] = [[]]
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            sentences.append([])
        elif not skip(line):
            sentences[-1].append((number, line, line.split("\t") if "\t" in line else line.split()))
    return sentences


def _without_comments(path: Path, sentence: list[Line], width: int, known: set[tuple[int, str]]) -> list[Line]:
    """The sentence without the comments before it.

    width    number of columns of the file's words
    known    (column, value) of the words' columns but the first
    """
    for i, (number, line, columns) in enumerate(sentence):
        if re.match("#(begin|end) document", line):
            continue
        if not line.startswith("# ") or not line[1:].strip():
            return sentence[i:]
        if len(columns) == width and " " not in columns[0]:
            if any((column, value) in known for column, value in enumerate(columns) if column):
                return sentence[i:]
            raise ValueError(
                f"{path}:{number}: {line!r} could be a comment or a word; remove a comment, and separate a word's "
                "columns by tabs"
            )
    return []


def _word_data(file: ConllFile, label_names: Sequence[str] | None, indices: tuple[int, int], expected: str) -> WordData:
    """indices: column of the word, column of the tag, from 1 or from the end. `expected` is for errors."""
    words: list[str] = []
    raw_tags: list[str] = []
    places: list[str] = []
    word, tag = (index - (index > 0) for index in indices)
    file.check([word, tag], max(2, *map(abs, indices)), expected)
    for number, _, columns in chain.from_iterable(file.words):
        words.append(columns[word])
        raw_tags.append(columns[tag].strip())
        places.append(f"{file.path}:{number}")
    if looks_like_header([words[0], raw_tags[0]]) and raw_tags.count(raw_tags[0]) == 1:
        raise ValueError(f"{places[0]}: {file.words[0][0][1]!r} looks like a header; remove the line")
    label_names = None if label_names is None else strings(label_names, "label_names")
    names, flat = label_indices(raw_tags, places, label_names)
    parts = list(pairwise([0, *accumulate(map(len, file.words))]))
    return WordData([words[begin:end] for begin, end in parts], [flat[begin:end] for begin, end in parts], names)
