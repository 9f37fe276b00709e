"""Files of labelled sentence pairs: SNLI's layout, other tab-separated files with a header, JSON lines."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from bertnli import _text
from bertnli.data.files import JSON_LINES, check_file, check_json_lines
from bertnli.data.tables import column_names, likely_options
from bertnli.data.texts import TextData, Texts

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

    Raises FileNotFoundError, and ValueError naming file and line for a broken row or an unknown label.
    """
    return TextData(*_read(reader_options(Path(path), columns, label_names)))


def _read(options: dict[str, Any]) -> tuple[Texts, Texts, list[int], tuple[str, ...], int]:
    arena, *bounds, labels, dropped = _text.read_pairs(**options, num_threads=torch.get_num_threads())
    return Texts(arena, *bounds[:2]), Texts(arena, *bounds[2:]), labels, tuple(options["label_names"]), dropped


def reader_options(
    path: Path, columns: str, label_names: Sequence[str] | None, strict_labels: bool = True
) -> dict[str, Any]:
    """Keyword arguments of the extension's reader for one file, as `read_pairs` describes them.

    strict_labels   whether an unknown label is an error (default: True); otherwise its row is dropped

    Raises ValueError for other columns or another kind of file, FileNotFoundError, IsADirectoryError.
    """
    if columns not in ("parse", "text"):
        raise ValueError(f"columns must be 'parse' or 'text', not {columns!r}")
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
        "strict_labels": strict_labels,
        "indices": label_names is not None,
        "label_names": list(SNLI_LABELS if label_names is None else label_names),
    }


def snli_file(path: str | os.PathLike[str], split: str) -> Path:
    """The file of one split: `path` itself, or `snli_1.0_{split}.txt` or `.jsonl` in the folder `path`.

    Raises FileNotFoundError naming the paths tried.
    """
    path = Path(path)
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
    if split not in ("train", "dev", "test"):
        raise ValueError(f"split must be 'train', 'dev' or 'test', not {split!r}")
    options = reader_options(snli_file(data_dir, split), columns, None, strict_labels=False)
    premises, hypotheses, labels, *_ = _read(options)
    return premises, hypotheses, labels
