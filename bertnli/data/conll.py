"""Sentences of words with a tag each: CoNLL and CoNLL-U files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from bertnli.data.arguments import integer, path_of, strings
from bertnli.data.files import open_text
from bertnli.data.headers import looks_like_header
from bertnli.data.labels import label_indices

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

    def __getitem__(self, part: slice) -> WordData:
        """The sentences of a slice."""
        return replace(self, sentences=self.sentences[part], tags=None if self.tags is None else self.tags[part])


def read_conll(
    path: str | os.PathLike[str], label_names: Sequence[str] | None = None, *, word: int = 1, tag: int = -1
) -> WordData:
    """Read a CoNLL file: one word a line, columns separated by tabs (or by spaces), sentences by empty lines.

    Lines that begin with -DOCSTART- are skipped, and so are comments before a sentence: lines that begin with "# " and
    have another number of columns than the words, and CoNLL-2012's "#begin document" and "#end document".

    label_names    the tags (default: those in the file, sorted)
    word, tag      column numbers, from 1; -1 is the last column

    Raises FileNotFoundError, and ValueError naming file and line for a line with another number of columns than the
    first one, an unknown tag, a header, a line that could be a comment or a word, and words that are numbers alone.
    """
    word, tag = integer(word, "word"), integer(tag, "tag")
    if not word or not tag:
        raise ValueError(f"columns are counted from 1, or from the end: word={word}, tag={tag}")
    path = path_of(path)
    sentences = _read_sentences(path, lambda line: line.startswith("-DOCSTART-"))
    lines = [line for sentence in sentences for line in sentence]
    words = [columns for _, line, columns in lines if line[0] != "#"]
    width = len((words or [columns for *_, columns in lines] or [[]])[0])
    if any(line.startswith(("# ", "#begin ", "#end ")) for _, line, _ in lines):
        known = {(i, value) for columns in words for i, value in enumerate(columns) if i}
        sentences = [_without_comments(path, sentence, width, known) for sentence in sentences]
    expected = f"a word in column {word} and a tag in column {tag} of {width}"
    data = _word_data(path, sentences, label_names, (word, tag), width, expected)
    if all(_WORD_NUMBER.fullmatch(text) for words in data.sentences for text in words):
        cure = "read CoNLL-U by read_conllu, from a file whose name ends in .conllu" if width == 10 else "name another"
        raise ValueError(f"{path}: column {word} counts the words; {cure}")
    return data


def read_conllu(
    path: str | os.PathLike[str], label_names: Sequence[str] | None = None, *, tag: str = "upos"
) -> WordData:
    """Read a CoNLL-U file with the tags of column `tag`, "upos" or "xpos".

    Comments, multiword tokens ("1-2") and empty nodes ("1.1") are skipped. Arguments and errors are those of
    `read_conll`.
    """
    if tag not in ("upos", "xpos"):
        raise ValueError(f'tag must be "upos" or "xpos"; found {tag!r}')
    path = path_of(path)
    sentences = _read_sentences(path, lambda line: line.startswith("#"))
    for number, line, columns in (line for sentence in sentences for line in sentence):
        if len(columns) != 10 or not _WORD_NUMBER.fullmatch(columns[0]):
            raise ValueError(
                f"{path}:{number}: expected the ten columns of CoNLL-U, the first a number; found {line!r}"
            )
    sentences = [[line for line in sentence if line[2][0].isdecimal()] for sentence in sentences]
    return _word_data(path, sentences, label_names, (2, 4 if tag == "upos" else 5), 10, "a word and a tag")


def _read_sentences(path: Path, skip: Callable[[str], bool]) -> list[list[Line]]:
    """The lines between empty lines, without those to skip."""
    sentences: list[list[Line]] = [[]]
    with open_text(path) as lines:
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


def _word_data(
    path: Path,
    sentences: list[list[Line]],
    label_names: Sequence[str] | None,
    indices: tuple[int, int],
    width: int,
    expected: str,
) -> WordData:
    """indices: column of the word, column of the tag, from 1 or from the end. `expected` is for errors."""
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise ValueError(f"{path} has no sentences")
    words: list[str] = []
    raw_tags: list[str] = []
    places: list[str] = []
    word, tag = (index - (index > 0) for index in indices)
    enough = width >= max(2, *map(abs, indices))
    for number, line, columns in (line for sentence in sentences for line in sentence):
        if not enough or len(columns) != width or not columns[word].strip() or not columns[tag].strip():
            raise ValueError(f"{path}:{number}: expected {expected}; found {line!r}")
        words.append(columns[word])
        raw_tags.append(columns[tag].strip())
        places.append(f"{path}:{number}")
    if looks_like_header([words[0], raw_tags[0]]) and raw_tags.count(raw_tags[0]) == 1:
        raise ValueError(f"{places[0]}: {sentences[0][0][1]!r} looks like a header; remove the line")
    label_names = None if label_names is None else strings(label_names, "label_names")
    names, flat = label_indices(raw_tags, places, label_names)
    bounds = [0, *accumulate(map(len, sentences))]
    parts = list(pairwise(bounds))
    return WordData([words[begin:end] for begin, end in parts], [flat[begin:end] for begin, end in parts], names)
