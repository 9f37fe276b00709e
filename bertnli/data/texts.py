"""The example type of classification and regression: texts or pairs of texts, with labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt


def check_unicode(text: str, where: str) -> None:
    """Raise ValueError at `where` for a lone surrogate, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} of {text[:40]!a} is a lone surrogate, half a character; remove it"
        ) from None


class Texts(Sequence[str]):
    """An immutable sequence of str in one block of UTF-8 bytes. Tokenizers read it without making strings.

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
    def of(cls, texts: Iterable[str], places: Sequence[str] | None = None) -> Texts:
        """Copy texts into one block.

        places    where each text is ("file:line"), for errors. Raises ValueError for a lone surrogate.
        """
        texts = list(texts)
        try:
            pieces = [text.encode() for text in texts]
        except UnicodeEncodeError:
            for i, text in enumerate(texts):
                check_unicode(text, f"text {i}" if places is None else places[i])
            raise
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

    __hash__ = None  # type: ignore[assignment]  # it equals lists, and lists are not hashable

    def __repr__(self) -> str:
        shown = ", ".join(repr(text if len(text) <= 40 else text[:37] + "...") for text in self[:3])
        return f"Texts([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"

    def __reduce__(self) -> tuple[Any, ...]:
        if len(self) == 0:
            return Texts, (np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
        low, high = int(self.starts.min()), int(self.ends.max())  # only the part that a slice uses
        return Texts, (self.arena[low:high].copy(), self.starts - low, self.ends - low)


@dataclass(frozen=True)
class TextData:
    """Texts or pairs of texts, with labels: the examples of classification and regression.

    first, second   N texts each; second is None for single texts
    labels          N indices into label_names, or N real numbers; None without labels
    label_names     the classes; empty for real numbers
    dropped         number of rows of the file without a gold label ('-', '' or -1), which are left out
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: list[Any] | None
    label_names: tuple[str, ...] = ()
    dropped: int = 0

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            texts = getattr(self, name)
            if texts is not None and not hasattr(texts, "__len__"):  # a generator
                object.__setattr__(self, name, list(texts))

    @classmethod
    def of(cls, first: str | Sequence[str], second: str | Sequence[str] | None = None) -> TextData:
        """Unlabelled texts or pairs; one string (or two) is one example."""
        if isinstance(first, str) and (second is None or isinstance(second, str)):
            first, second = [first], None if second is None else [second]
        return cls(first, second, None)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, part: slice | Sequence[int]) -> TextData:
        """The examples of a slice, or of a list of indices."""
        return replace(
            self,
            first=part_of(self.first, part),
            second=None if self.second is None else part_of(self.second, part),
            labels=None if self.labels is None else part_of(self.labels, part),
        )


def part_of(values: Any, part: slice | Sequence[int]) -> Any:
    """The elements of a slice, or of a list of indices."""
    return values[part] if isinstance(part, slice) else [values[i] for i in part]
