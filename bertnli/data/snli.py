"""Files of labelled sentence pairs: SNLI's layout, and other tables with the usual names of columns."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from bertnli import _text
from bertnli.data.arguments import path_of, strings
from bertnli.data.columns import NULL, TEXT, Column
from bertnli.data.files import check_file
from bertnli.data.headers import check_columns, likely_options
from bertnli.data.labels import NUMBER, class_index, find_class, is_no_label, label_text
from bertnli.data.source import Source
from bertnli.data.tables import check_texts, column_names, has_consistent_quotes, json_format, read_columns
from bertnli.data.texts import TextData, Texts

T = TypeVar("T")
Columns = Literal["parse", "text"]
SNLI_LABELS = ("entailment", "contradiction", "neutral")


def read_pairs(
    path: str | os.PathLike[str],
    columns: Columns = "parse",
    label_names: Sequence[str] | None = None,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> TextData:
    """Read one file of labelled pairs.

    path          a table of any kind that `read_table` reads, with a header. The label is in `gold_label` or `label`
    columns       "parse" takes the words of `sentence1_binary_parse` and `sentence2_binary_parse`, as SNLI's files have
                  them; "text" takes `sentence1` and `sentence2` (or `premise` and `hypothesis`) unchanged
    label_names   classes (default: SNLI's names). A label is a name or, where no name is a number, an index. Without
                  label_names an index is an error, since corpora differ in the order of their classes
    encoding, delimiter    as in `read_table`

    Raises FileNotFoundError, and ValueError naming file and line for a broken row or an unknown label, and for a file
    without a labelled row.
    """
    source = Source(path, encoding, delimiter)
    options = reader_options(source, columns, label_names)
    data = read_in_one_pass(source, lambda: _read(options))
    if data is None:
        data = read_by_columns(source, options)
    if not data.labels:
        raise ValueError(f"{path} has no labelled rows")
    return data


def _read(options: dict[str, Any]) -> tuple[TextData, bool]:
    """The rows, and whether a field begins with a double quote."""
    arena, *bounds, labels, dropped, quotes = _text.read_pairs(**options, num_threads=torch.get_num_threads())
    first, second = Texts(arena, *bounds[:2]), Texts(arena, *bounds[2:])
    return TextData(first, second, labels, tuple(options["label_names"]), dropped), quotes


def read_in_one_pass(source: Source, read: Callable[[], tuple[T, bool]]) -> T | None:
    """What the extension reads from a plain file of tab-separated text or JSON lines; None for any other table, and for
    text with consistent quotes: `read_by_columns` reads these.

    read    returns what it read, and whether a field begins with a double quote
    """
    if not _is_one_pass(source):
        return None
    try:
        result, quotes = read()
    except ValueError:
        if not source.is_json and has_consistent_quotes(source):
            return None
        raise
    return None if quotes and not source.is_json and has_consistent_quotes(source) else result


def _is_one_pass(source: Source) -> bool:
    if not source.is_plain or source.is_csv or source.is_arrow:
        return False
    return json_format(source) == "lines" if source.is_json else source.delimiter == "\t"


def read_by_columns(source: Source, options: dict[str, Any]) -> TextData:
    """The rows of a table of any kind, for the arguments of the extension's reader."""
    names = column_names(source)
    sides = ([["sentence1_binary_parse"], ["sentence2_binary_parse"]] if options["parse"]
             else [["sentence1", "premise"], ["sentence2", "hypothesis"]])  # fmt: skip
    columns = []
    for alike in (["gold_label", "label"], *sides):
        present = [name for name in alike if name in names]
        if not present:
            raise ValueError(
                f"{source.path}:1: expected a column {' or '.join(map(repr, alike))}, found the columns "
                f"{', '.join(map(repr, names))}; name other columns: {likely_options(names)} (read_table in Python)"
            )
        columns.append(present[0])
    table = read_columns(source, [*columns[1:], columns[0]])
    check_texts(table, columns[1:])
    *texts, labels = table.columns
    index, codes = labels.distinct()
    classes: list[int] = []
    for i in index:
        found = _label_id(labels, i, options)
        if isinstance(found, str):
            raise ValueError(f"{table.place(i)}: {found}")
        classes.append(found)
    ids = np.array(classes, np.int64)[codes] if index else np.zeros(0, np.int64)
    first, second = (column[ids >= 0].texts for column in texts)
    if options["parse"]:
        first, second = (Texts.of(map(_text.extract_text, side)) for side in (first, second))
    return TextData(first, second, ids[ids >= 0].tolist(), tuple(options["label_names"]), int((ids < 0).sum()))


def _label_id(labels: Column, i: int, options: dict[str, Any]) -> int | str:
    """The index of a label's class, -1 where it is no label, or what is wrong with it."""
    kind = TEXT if labels.kinds is None else labels.kinds[i]
    text = "null" if kind == NULL else labels.texts[i]
    names: list[str] = options["label_names"]
    other: Callable[[str, bool], int | str] = options["other_label"]
    try:
        return names.index(text) if kind == TEXT and text in names else other(text, kind != TEXT)
    except TypeError as error:
        return f"the label is {error}"


def reader_options(
    source: Source, columns: str, label_names: Sequence[str] | None, strict_labels: bool = True
) -> dict[str, Any]:
    """Keyword arguments of the extension's reader for one file, as `read_pairs` describes them.

    strict_labels   whether an unknown label is an error (default: True); otherwise its row is dropped, as by D2L

    Raises ValueError for other columns and a header with a repeated name, FileNotFoundError, IsADirectoryError.
    """
    if not isinstance(columns, str) or columns not in ("parse", "text"):
        raise ValueError(f"columns must be 'parse' or 'text', not {columns!r}")
    label_names = None if label_names is None else strings(label_names, "label_names")
    check_file(source.path)
    if _is_one_pass(source) and not source.is_json:
        with source.path.open("rb") as file:
            header = re.split(b"[\r\n]", file.readline(1 << 20))[0].removeprefix(b"\xef\xbb\xbf")
        check_columns(f"{source.path}:1", (), header.decode(errors="replace").split("\t"))
    return {
        "path": str(source.path),
        "json_lines": source.is_json,
        "parse": columns == "parse",
        "label_names": list(SNLI_LABELS if label_names is None else label_names),
        "other_label": _label_reader(label_names) if strict_labels else lambda text, is_json: -1,
    }


def _label_reader(label_names: Sequence[str] | None) -> Callable[[str, bool], int | str]:
    """A function from a label that is no class's name, and whether it is JSON, to the index of its class; -1 where it
    is no label; what is wrong with it."""
    names = SNLI_LABELS if label_names is None else label_names
    index = class_index(names, by_index=label_names is not None)

    def read(text: str, is_json: bool) -> int | str:
        label = label_text(json.loads(text) if is_json else text)
        found = find_class(index, label)
        if found is not None:
            return found
        if is_no_label(label, real=False):
            return -1
        if label_names is None and NUMBER.fullmatch(label):
            return (
                f"the label is the number {label}; say which classes the numbers stand for, from 0 on, with "
                "label_names (--labels): Hugging Face's SNLI has entailment,neutral,contradiction"
            )
        return f"unknown label {label!r}; expected one of {', '.join(names)}"

    return read


def snli_file(path: str | os.PathLike[str], split: str) -> Path:
    """The file of one split: `path` itself, or `snli_1.0_{split}.txt` or `.jsonl` in the folder `path`.

    Raises FileNotFoundError naming the paths tried.
    """
    path = path_of(path, "data_dir")
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or folder: {path}")
    tried = [path / f"snli_1.0_{split}{suffix}" for suffix in (".txt", ".jsonl")]
    found = next((p for p in tried if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path} has neither {tried[0].name} nor {tried[1].name}; name the file instead")
    return found


def read_snli(
    data_dir: str | os.PathLike[str],
    is_train: bool = True,
    *,
    split: Literal["train", "dev", "test"] | None = None,
    columns: Columns = "parse",
) -> tuple[Texts, Texts, list[int]]:
    """D2L's `read_snli`: (premises, hypotheses, labels) with entailment 0, contradiction 1, neutral 2.

    data_dir   folder of `snli_1.0_train.txt` (or `.jsonl`), or such a file
    is_train   whether to read the training split; False means the test split
    split      overrides is_train
    columns    "parse" for the words of the binary parses, as D2L does; "text" for the raw sentences

    Rows with any other label are dropped.

    Raises FileNotFoundError naming the paths tried, and ValueError naming file and line for a broken row.
    """
    if split is None:
        split = "train" if is_train else "test"
    if not isinstance(split, str) or split not in ("train", "dev", "test"):
        raise ValueError(f"split must be 'train', 'dev' or 'test', not {split!r}")
    source = Source(snli_file(data_dir, split))
    options = reader_options(source, columns, None, strict_labels=False)
    data = _read(options)[0] if _is_one_pass(source) else read_by_columns(source, options)
    assert isinstance(data.first, Texts)
    assert isinstance(data.second, Texts)
    return data.first, data.second, data.labels or []
