"""Files of labelled sentence pairs: SNLI's official layout, other tab-separated files with a header, JSON lines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt
import torch

from bertnli import _text
from bertnli.data.files import check_file

Columns = Literal["parse", "text"]
SNLI_LABELS = ("entailment", "contradiction", "neutral")
JSON_LINES = {".jsonl", ".json-lines", ".jsonlines", ".ndjson", ".json"}


class Texts(Sequence[str]):
    """An immutable sequence of str over one block of UTF-8 bytes; the tokenizers read it without making strings.

    arena         uint8 [bytes]   UTF-8
    starts, ends  int64 [N]       text i is the bytes starts[i] to ends[i]

    `Texts.of(["a", "b"])` makes one from strings. A slice shares the block.
    """

    __slots__ = ("arena", "ends", "starts")

    def __init__(
        self, arena: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> None:
        self.arena = arena
        self.starts = starts
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The same texts in one block."""
        pieces = [text.encode() for text in texts]
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if pieces else ends
        return cls(np.frombuffer(b"".join(pieces), np.uint8), starts, ends)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self.arena, self.starts[index], self.ends[index])
        return self.arena[self.starts[index] : self.ends[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        arena = self.arena.data
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield str(arena[start:end], "utf-8")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __repr__(self) -> str:
        shown = ", ".join(repr(text if len(text) <= 40 else text[:37] + "...") for text in self[:3])
        return f"Texts([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"

    def __reduce__(self) -> tuple[Any, ...]:
        if len(self) == 0:
            return Texts, (np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
        low, high = int(self.starts.min()), int(self.ends.max())  # a slice takes along only its own part
        return Texts, (self.arena[low:high].copy(), self.starts - low, self.ends - low)


@dataclass(frozen=True)
class TextData:
    """Pairs of texts, or single texts.

    first, second   texts, N each; single texts have no second (None)
    labels          N indices into label_names, or N reals; None where there are no labels
    label_names     the classes; empty for reals
    dropped         the number of rows without a gold label ('-', '' or -1), which are not in the lists
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: list[Any] | None
    label_names: tuple[str, ...] = ()
    dropped: int = 0

    @classmethod
    def of(cls, first: str | Sequence[str], second: str | Sequence[str] | None = None) -> TextData:
        """Unlabelled texts or pairs; a string, or two, are one of them."""
        if isinstance(first, str) and (second is None or isinstance(second, str)):
            first, second = [first], None if second is None else [second]
        return cls(first, second, None)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> TextData:
        """The rows of a slice."""
        return replace(
            self,
            first=self.first[rows],
            second=None if self.second is None else self.second[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


def read_pairs(
    path: str | os.PathLike[str], columns: Columns = "parse", label_names: Sequence[str] | None = None
) -> TextData:
    """Read one file of labelled pairs.

    `.jsonl`, `.json-lines`, `.ndjson` and `.json` hold one JSON object a line; anything else is tab-separated text with
    a header. The label is `gold_label` or `label`: a name of `label_names` or, where no name is a number, an index into
    it; None means SNLI's names, and that a file with numbers for labels is refused, since corpora differ in their
    order. `columns="parse"` takes the words from `sentence1_binary_parse` and `sentence2_binary_parse` (official SNLI),
    `columns="text"` reads `sentence1` and `sentence2` (or `premise` and `hypothesis`) as they are.

    Raises FileNotFoundError, and ValueError naming file and line for a broken row or an unknown label.
    """
    return TextData(*_read(Path(path), columns, label_names))


def _read(
    path: Path, columns: str, label_names: Sequence[str] | None, strict_labels: bool = True
) -> tuple[Texts, Texts, list[int], tuple[str, ...], int]:
    options = read_options(path, columns, label_names, strict_labels)
    arena, *bounds, labels, dropped = _text.read_pairs(**options, num_threads=torch.get_num_threads())
    return Texts(arena, *bounds[:2]), Texts(arena, *bounds[2:]), labels, tuple(options["label_names"]), dropped


class ReadOptions(TypedDict):
    """How the extension is to read a file of labelled pairs."""

    path: str
    json_lines: bool
    parse: bool
    strict_labels: bool
    indices: bool
    label_names: list[str]


def read_options(
    path: Path, columns: str, label_names: Sequence[str] | None, strict_labels: bool = True
) -> ReadOptions:
    """The options of a file, checked; label_names as `read_pairs` has it.

    Raises ValueError for other columns, FileNotFoundError, IsADirectoryError.
    """
    if columns not in ("parse", "text"):
        raise ValueError(f"columns must be 'parse' or 'text', not {columns!r}")
    check_file(path)
    return {
        "path": str(path),
        "json_lines": path.suffix.lower() in JSON_LINES,
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
    tried = [path / f"snli_1.0_{split}{suffix}" for suffix in (".txt", ".jsonl")] if path.is_dir() else [path]
    found = next((p for p in tried if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no SNLI file: tried {' and '.join(map(str, tried))}")
    return found


def read_snli(
    data_dir: str | os.PathLike[str],
    is_train: bool = True,
    *,
    split: Literal["train", "dev", "test"] | None = None,
    columns: Columns = "parse",
) -> tuple[Texts, Texts, list[int]]:
    """D2L's `read_snli`: (premises, hypotheses, labels) with entailment 0, contradiction 1, neutral 2.

    `data_dir` is the folder of `snli_1.0_train.txt` (or `.jsonl`), or such a file. `split` overrides `is_train`, whose
    False means the test set. Rows with any other label are dropped. `columns="parse"` gives the words of the binary
    parses, as the book does; `columns="text"` the raw sentences.

    Raises FileNotFoundError naming the paths tried, and ValueError naming file and line for a broken row.
    """
    if split is None:
        split = "train" if is_train else "test"
    if split not in ("train", "dev", "test"):
        raise ValueError(f"split must be 'train', 'dev' or 'test', not {split!r}")
    path = snli_file(data_dir, split)
    premises, hypotheses, labels, *_ = _read(path, columns, None, strict_labels=False)
    return premises, hypotheses, labels
