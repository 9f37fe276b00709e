"""Files of labelled sentence pairs: SNLI's layout, other tab-separated files with a header, JSON lines."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from bertnli import _text
from bertnli.data.arguments import path_of, strings
from bertnli.data.files import JSON_LINES, check_file, check_json_lines, open_text
from bertnli.data.labels import NUMBER, class_index, find_class, is_no_label, label_text
from bertnli.data.tables import column_names, has_consistent_quotes, likely_options, read_rows
from bertnli.data.texts import TextData, Texts

T = TypeVar("T")
Columns = Literal["parse", "text"]
SNLI_LABELS = ("entailment", "contradiction", "neutral")


def read_pairs(
    path: str | os.PathLike[str], columns: Columns = "parse", label_names: Sequence[str] | None = None
) -> TextData:
    """Read one file of labelled pairs.

    path          JSON lines (.jsonl, .json-lines, .ndjson, .json), or tab-separated text with a header (any other
                  suffix). The label is in `gold_label` or `label`
    columns       "parse" takes the words of `sentence1_binary_parse` and `sentence2_binary_parse`, as SNLI's files have
                  them; "text" takes `sentence1` and `sentence2` (or `premise` and `hypothesis`) unchanged
    label_names   classes (default: SNLI's names). A label is a name or, where no name is a number, an index. Without
                  label_names an index is an error, since corpora differ in the order of their classes

    Raises FileNotFoundError, and ValueError naming file and line for a broken row or an unknown label, and for a file
    without a labelled row.
    """
    options = reader_options(path_of(path), columns, label_names)
    data = read_unless_quoted(options, lambda: _read(options))
    if data is None:
        data = read_quoted(options)
    if not data.labels:
        raise ValueError(f"{path} has no labelled rows")
    return data


def _read(options: dict[str, Any]) -> tuple[TextData, bool]:
    """The rows, and whether a field begins with a double quote."""
    arena, *bounds, labels, dropped, quotes = _text.read_pairs(**options, num_threads=torch.get_num_threads())
    first, second = Texts(arena, *bounds[:2]), Texts(arena, *bounds[2:])
    return TextData(first, second, labels, tuple(options["label_names"]), dropped), quotes


def read_unless_quoted(options: dict[str, Any], read: Callable[[], tuple[T, bool]]) -> T | None:
    """What the extension reads; None for tab-separated text with consistent quotes, which `read_quoted` reads.

    read    returns what it read, and whether a field begins with a double quote
    """
    path = Path(options["path"])

    def is_quoted() -> bool:
        if options["json_lines"]:
            return False
        with open_text(path) as lines:
            return has_consistent_quotes(lines, path)

    try:
        result, quotes = read()
    except ValueError:
        if is_quoted():
            return None
        raise
    return None if quotes and is_quoted() else result


def read_quoted(options: dict[str, Any]) -> TextData:
    """The rows of quoted tab-separated text, for the arguments of the extension's reader."""
    path = Path(options["path"])
    names = column_names(path)
    label = "label" if "gold_label" not in names else "gold_label"
    columns = ["sentence1_binary_parse", "sentence2_binary_parse"]
    if not options["parse"]:
        alike = ("sentence1", "premise"), ("sentence2", "hypothesis")
        columns = [name if name in names else other for name, other in alike]
    known = {name: i for i, name in enumerate(options["label_names"])}
    texts: tuple[list[str], list[str]] = ([], [])
    labels: list[int] = []
    dropped = 0
    for number, (*values, text) in read_rows(path, [*columns, label]):
        found = known[text] if text in known else options["other_label"](text, False)
        if isinstance(found, str):
            raise ValueError(f"{path}:{number}: {found}")
        if found < 0:
            dropped += 1
            continue
        for column, value in zip(texts, values, strict=True):
            column.append(_text.extract_text(value) if options["parse"] else value)
        labels.append(found)
    return TextData(Texts.of(texts[0]), Texts.of(texts[1]), labels, tuple(options["label_names"]), dropped)


def reader_options(
    path: Path, columns: str, label_names: Sequence[str] | None, strict_labels: bool = True
) -> dict[str, Any]:
    """Keyword arguments of the extension's reader for one file, as `read_pairs` describes them.

    strict_labels   whether an unknown label is an error (default: True); otherwise its row is dropped, as by D2L

    Raises ValueError for other columns or another kind of file, FileNotFoundError, IsADirectoryError.
    """
    if not isinstance(columns, str) or columns not in ("parse", "text"):
        raise ValueError(f"columns must be 'parse' or 'text', not {columns!r}")
    label_names = None if label_names is None else strings(label_names, "label_names")
    check_file(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        raise ValueError(
            f"{path}: expected tab-separated text or JSON lines, found a {suffix} table; name its columns: "
            f"{likely_options(column_names(path))} (read_table in Python)"
        )
    if suffix in JSON_LINES:
        check_json_lines(path)
    else:
        with path.open("rb") as file:
            header = re.split(b"[\r\n]", file.readline(1 << 20))[0].removeprefix(b"\xef\xbb\xbf")
        names = Counter(header.split(b"\t"))
        for name, count in names.items():
            if name and count > 1:
                raise ValueError(f"{path}:1: the header has {count} columns {name.decode(errors='replace')!r}")
    return {
        "path": str(path),
        "json_lines": suffix in JSON_LINES,
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
    options = reader_options(snli_file(data_dir, split), columns, None, strict_labels=False)
    data, _ = _read(options)
    assert isinstance(data.first, Texts)
    assert isinstance(data.second, Texts)
    return data.first, data.second, data.labels or []
