from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

torch_version: str

_Int32 = npt.NDArray[np.int32]
_Int64 = npt.NDArray[np.int64]
_Arena = tuple[npt.NDArray[np.uint8], _Int64, _Int64]
_Texts = list[str] | tuple[str, ...] | _Arena

class Tokenizer:
    def encode(self, text: str) -> list[int]: ...
    def encode_ragged(
        self, first: _Texts, second: _Texts | None, max_len: int, truncation: str, num_threads: int
    ) -> tuple[_Int32, _Int64, _Int32]: ...
    def encode_file(
        self,
        path: str,
        json_lines: bool,
        parse: bool,
        label_names: list[str],
        other_label: Callable[[str, bool], int | str],
        max_len: int,
        truncation: str,
        num_threads: int,
    ) -> tuple[_Int32, _Int64, _Int32, _Int64, int, bool]: ...
    def encode_spans(self, texts: _Texts, num_threads: int) -> tuple[_Int32, _Int64, _Int32, _Int32, _Int32]: ...

class WordTokenizer(Tokenizer):
    def __init__(self, vocab: Sequence[tuple[str, int]], pad: int, cls: int, sep: int, unk: int) -> None: ...

class WordPieceTokenizer(Tokenizer):
    def __init__(
        self,
        vocab: Sequence[tuple[str, int]],
        pad: int,
        cls: int,
        sep: int,
        unk: int,
        literals: Sequence[tuple[str, int]],
        lowercase: bool,
    ) -> None: ...

def read_pairs(
    path: str,
    json_lines: bool,
    parse: bool,
    label_names: list[str],
    other_label: Callable[[str, bool], int | str],
    num_threads: int,
) -> tuple[npt.NDArray[np.uint8], _Int64, _Int64, _Int64, _Int64, list[int], int, bool]: ...
def extract_text(parse: str) -> str: ...
def gather_packed(
    ids: _Int32, offsets: _Int64, first_lens: _Int32, index: _Int64
) -> tuple[_Int32, _Int32, _Int32, _Int32, int]: ...
def gather_padded(
    ids: _Int32,
    offsets: _Int64,
    first_lens: _Int32,
    index: _Int64 | None,
    pad: int,
    max_len: int,
) -> tuple[_Int64, _Int64, _Int64]: ...

class TableReader:
    def __init__(
        self,
        name: str,
        format: str,
        delimiter: str,
        quotes: bool,
        header: bool,
        keys: list[str],
        whole: bool,
        bytes: int,
        keep_bad: bool,
    ) -> None: ...
    @property
    def header(self) -> list[str] | None: ...
    @property
    def rows(self) -> int: ...
    def choose(self, columns: list[int]) -> None: ...
    def feed(self, block: bytes | memoryview, last: bool) -> None: ...
    def take(
        self, width: int
    ) -> tuple[npt.NDArray[np.uint8], _Int64, npt.NDArray[np.uint8] | None, _Int64, list[tuple[int, str, bytes]]]: ...

class QuoteScan:
    def __init__(self, delimiter: str) -> None: ...
    def feed(self, block: bytes | memoryview) -> bool: ...
    @property
    def consistent(self) -> bool: ...
    @property
    def ambiguous_line(self) -> int: ...

def distinct(
    arena: npt.NDArray[np.uint8], starts: _Int64, ends: _Int64, kinds: npt.NDArray[np.uint8] | None
) -> tuple[_Int64, _Int64]: ...
def read_arrow(column: object) -> tuple[npt.NDArray[np.uint8], _Int64, npt.NDArray[np.uint8] | None] | None: ...
