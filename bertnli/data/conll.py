"""Sentences of words with a tag each: CoNLL and CoNLL-U files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bertnli.data.files import open_text
from bertnli.data.tables import label_indices


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

    Lines that begin with -DOCSTART- are skipped.

    label_names    the tags (default: those in the file, sorted)
    word, tag      column numbers, from 1; -1 is the last column

    Raises FileNotFoundError, and ValueError naming file and line for a line without the two columns or an unknown tag.
    """
    if not word or not tag:
        raise ValueError(f"columns are counted from 1, or from the end: word={word}, tag={tag}")
    return _read_words(
        Path(path), label_names, word, tag, "a word and a tag", skip=lambda line: line.startswith("-DOCSTART-")
    )


def read_conllu(
    path: str | os.PathLike[str], label_names: Sequence[str] | None = None, *, tag: str = "upos"
) -> WordData:
    """Read a CoNLL-U file with the tags of column `tag`, "upos" or "xpos".

    Comments, multiword tokens ("1-2") and empty nodes ("1.1") are skipped. Arguments and errors are those of
    `read_conll`.
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
    raw_tags: list[str] = []
    places: list[str] = []
    new_sentence = True
    columns = [number - (number > 0) for number in (word, tag)]
    needed = max(2, word, tag, -word, -tag)
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                new_sentence = True
                continue
            if skip(line):
                continue
            fields = line.split("\t") if "\t" in line else line.split()
            if len(fields) < needed or not fields[columns[0]] or not fields[columns[1]].strip():
                raise ValueError(f"{path}:{number}: expected {expected}; found {line!r}")
            if new_sentence:
                sentences.append([])
            new_sentence = False
            sentences[-1].append(fields[columns[0]])
            raw_tags.append(fields[columns[1]].strip())
            places.append(f"{path}:{number}")
    if not sentences:
        raise ValueError(f"{path} has no sentences")
    names, flat = label_indices(raw_tags, places, label_names)
    tags, begin = [], 0
    for sentence in sentences:
        tags.append(flat[begin : begin + len(sentence)])
        begin += len(sentence)
    return WordData(sentences, tags, names)
