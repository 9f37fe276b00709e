"""Text to token ids: what all tokenizers share, and D2L's words."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertnli import _text
from bertnli.data.arguments import integer, items, strings
from bertnli.data.columns import texts_of
from bertnli.data.snli import Columns, read_by_columns, read_in_one_pass, reader_options
from bertnli.data.source import Source
from bertnli.data.texts import Texts
from bertnli.text.encoded import EncodedTexts, as_tensors, labels_tensor
from bertnli.text.vocab import Vocab

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
_MOST_THREADS = 1 << 16  # of a call; there are never more than texts
Truncation = Literal["longest_first", "longest_first_hf", "ratio", "only_first", "only_second"]


@dataclass(frozen=True)
class TokenizedTexts:
    """The tokens of N texts, without special tokens, and the place of each in its text.

    ids           int32 [total]
    offsets       int64 [N+1]     text i has the tokens offsets[i] to offsets[i+1]
    starts, ends  int32 [total]   the token is text[start:end], in characters of the original str
    word_ids      int32 [total]   index of the token's word within its text. A word is a run without white space and
                                  punctuation, a punctuation mark, or a literal special token
    """

    ids: Tensor
    offsets: Tensor
    starts: Tensor
    ends: Tensor
    word_ids: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Tokenizer(ABC):
    """Base class of the tokenizers. Texts are any sequence of str, or the `Texts` of the readers."""

    _core: _text.Tokenizer
    _columns: Columns  # default columns of SNLI's files
    pad_id: int
    cls_id: int
    sep_id: int
    unk_id: int
    has_warned = False  # of words that it does not know

    @abstractmethod
    def __len__(self) -> int: ...
    @abstractmethod
    def tokenize(self, text: str) -> list[str]: ...
    @abstractmethod
    def decode(self, ids: Iterable[int] | Tensor) -> str: ...
    @abstractmethod
    def token_to_id(self, token: str) -> int: ...
    @abstractmethod
    def id_to_token(self, index: int) -> str: ...

    def _check_special(self) -> None:  # noqa: B027  (only a vocabulary of words can lack one)
        """Raise ValueError where the vocabulary lacks a special token that sequences need."""

    @property
    def vocab_size(self) -> int:
        return len(self)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special tokens. Raises ValueError for a lone surrogate."""
        return self._core.encode(text)

    def encode_pairs(
        self,
        premises: Iterable[str],
        hypotheses: Iterable[str],
        max_len: int = 128,
        truncation: Truncation = "longest_first",
        num_threads: int = 0,
        labels: Sequence[Any] | Tensor | None = None,
    ) -> EncodedTexts:
        """Encode pairs as `<cls> premise <sep> hypothesis <sep>`, stored without padding.

        max_len       most tokens of a sequence, at least 3 (default: 128)
        truncation    how a pair that is too long is cut (default: "longest_first")
            "longest_first"      drop the last token of the longer text, the hypothesis where they are equal (D2L, BERT)
            "longest_first_hf"   the rule of Hugging Face's fast tokenizers, which differs by one token for odd budgets
            "ratio"              cut both in proportion to their lengths
            "only_first", "only_second"   cut that text only; ValueError names a pair whose other text does not fit
        num_threads   threads to use (default: torch.get_num_threads())
        labels        one label a pair, integers or real numbers (default: none)

        Raises ValueError for texts of unequal number, a smaller max_len or a lone surrogate, TypeError where a text is
        not a str.
        """
        arrays = self._encode(premises, hypotheses, max_len, truncation, num_threads)
        return self._encoded(arrays, labels, max_len)

    def encode_texts(
        self,
        texts: Iterable[str],
        max_len: int = 128,
        num_threads: int = 0,
        labels: Sequence[Any] | Tensor | None = None,
    ) -> EncodedTexts:
        """Encode single texts as `<cls> text <sep>`, the end of a text cut where it is too long; max_len >= 2."""
        return self._encoded(self._encode(texts, None, max_len, "longest_first", num_threads), labels, max_len)

    def encode_padded(
        self,
        premises: Iterable[str],
        hypotheses: Iterable[str],
        max_len: int = 128,
        truncation: Truncation = "longest_first",
        num_threads: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`encode_pairs(...).to_padded()`: token_ids and segments [N, max_len], valid_lens [N], all int64."""
        arrays = self._encode(premises, hypotheses, max_len, truncation, num_threads)
        return as_tensors(_text.gather_padded(*arrays, None, self.pad_id, max_len))

    def encode_file(
        self,
        path: str | os.PathLike[str],
        max_len: int = 128,
        truncation: Truncation = "longest_first",
        num_threads: int = 0,
        *,
        columns: Columns | None = None,
        label_names: Sequence[str] | None = None,
    ) -> EncodedTexts:
        """`read_pairs` and `encode_pairs` in one pass over the file, which may be larger than memory.

        columns       as in `read_pairs` (default: the parses for words, the sentences for WordPiece)
        label_names   as in `read_pairs`

        Raises FileNotFoundError, and ValueError naming file and line for a broken row or an unknown label.
        """
        self._check_special()
        max_len = integer(max_len, "max_len")
        source = Source(path)
        options = reader_options(source, self._columns if columns is None else columns, label_names)
        how: dict[str, Any] = dict(max_len=max_len, truncation=str(truncation), num_threads=_threads(num_threads))

        def encode() -> tuple[EncodedTexts, bool]:
            *arrays, labels, dropped, quotes = self._core.encode_file(**options, **how)
            return self._encoded(tuple(arrays), torch.from_numpy(labels), max_len, dropped), quotes

        encoded = read_in_one_pass(source, encode)
        if encoded is None:
            data = read_by_columns(source, options)
            encoded = self.encode_pairs(data.first, data.second or (), labels=data.labels, **how)
            encoded.dropped = data.dropped
        if not len(encoded):
            raise ValueError(f"{path} has no labelled rows")
        return encoded

    def encode_texts_with_offsets(self, texts: Iterable[str], num_threads: int = 0) -> TokenizedTexts:
        """All tokens of each text and their places, as `tokenizers` gives them with `add_special_tokens=False`.

        Nothing is truncated. The words of a `WordTokenizer` are those of `text.split()`. Raises ValueError for a lone
        surrogate, TypeError where a text is not a str.
        """
        arrays = self._core.encode_spans(_text_source(texts, "texts"), _threads(num_threads))
        return TokenizedTexts(*map(torch.from_numpy, arrays))

    def _encode(
        self, first: Iterable[str], second: Iterable[str] | None, max_len: int, truncation: Truncation, num_threads: int
    ) -> tuple[Int32Array, Int64Array, Int32Array]:
        """The arrays ids, offsets, first_lens."""
        self._check_special()
        first = _text_source(first, "texts" if second is None else "premises")
        second = None if second is None else _text_source(second, "hypotheses")
        max_len = integer(max_len, "max_len")
        return self._core.encode_ragged(first, second, max_len, str(truncation), _threads(num_threads))

    def _encoded(self, arrays: tuple[Any, ...], labels: Any, max_len: int, dropped: int = 0) -> EncodedTexts:
        ids, offsets, first_lens = map(torch.from_numpy, arrays)
        labels = labels_tensor(labels, len(first_lens))
        return EncodedTexts(ids, offsets, first_lens, labels, pad_id=self.pad_id, max_len=max_len, dropped=dropped)


def _text_source(texts: Iterable[str], name: str) -> list[str] | tuple[Any, ...]:
    """What the extension takes: a list or tuple of str, or the three arrays of a `Texts`."""
    if isinstance(texts, list | tuple):  # first, since isinstance of an abstract class takes longer
        return texts
    found = texts if isinstance(texts, Texts) else texts_of(texts, name)
    return tuple(items(texts, name)) if found is None else (found.arena, found.starts, found.ends)


def _threads(num_threads: int) -> int:
    num_threads = integer(num_threads, "num_threads")
    if num_threads < 0:
        raise ValueError(f"num_threads must not be negative: {num_threads}")
    return min(num_threads, _MOST_THREADS) or torch.get_num_threads()


def as_tokenizer(tokenizer: Tokenizer | Vocab) -> Tokenizer:
    """The tokenizer itself; for a Vocab, as D2L's checkpoints have it, its WordTokenizer. Raises TypeError."""
    if isinstance(tokenizer, Vocab):
        return WordTokenizer(tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            "tokenizer must be a WordPieceTokenizer, WordTokenizer or Vocab (bertnli.from_pretrained gives a model and "
            f"its tokenizer); found {tokenizer!r:.60}"
        )
    return tokenizer


def id_list(ids: Iterable[int] | Tensor) -> list[int]:
    """Token ids as a list of int."""
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    return [integer(i, f"ids[{place}]") for place, i in enumerate(items(ids, "ids", "int"))]


class WordTokenizer(Tokenizer):
    """D2L's words: `text.lower().split()`, looked up in a vocabulary; unknown words become `<unk>`.

    vocab   a `Vocab`, or any object with `idx_to_token` and `token_to_idx`, which are read once, here. Sequences need
            `<pad>`, `<cls>` and `<sep>` in it: encoding pairs raises ValueError where one is missing

    A literal "<sep>" (`<pad>`, `<cls>`, `<mask>`) in a text is an unknown word, so that no text can forge a segment.
    """

    _columns = "parse"
    SPECIAL = ("<pad>", "<mask>", "<cls>", "<sep>")

    def __init__(self, vocab: Any) -> None:
        index: dict[str, int] | None = getattr(vocab, "token_to_idx", None)
        if index is None:
            raise TypeError(f"vocab must be a Vocab, or have token_to_idx and idx_to_token as one; found {vocab!r:.60}")
        self.vocab = vocab
        self.unk_id = index.get("<unk>", 0)
        self._missing = [token for token in ("<pad>", "<cls>", "<sep>") if token not in index]
        self.pad_id, self.cls_id, self.sep_id = (index.get(t, self.unk_id) for t in ("<pad>", "<cls>", "<sep>"))
        words = [(token, i) for token, i in index.items() if token not in self.SPECIAL]
        self._core = _text.WordTokenizer(words, self.pad_id, self.cls_id, self.sep_id, self.unk_id)

    @classmethod
    def from_texts(cls, texts: Iterable[str], min_freq: int = 5) -> WordTokenizer:
        """Take the lower-case words that occur `min_freq` times or more, by falling frequency, as D2L does.

        Pass sentences through `space_out` first; otherwise "sleeping." with its full stop becomes a word.
        """
        words = [text.lower().split() for text in strings(texts, "texts")]
        min_freq = integer(min_freq, "min_freq")
        return cls(Vocab(words, min_freq=min_freq, reserved_tokens=cls.SPECIAL))

    def __reduce__(self) -> tuple[Any, ...]:
        return WordTokenizer, (self.vocab,)

    def _check_special(self) -> None:
        if self._missing:
            raise ValueError(
                f"the vocabulary has no {' and no '.join(self._missing)}; "
                "build it with reserved_tokens=['<pad>', '<mask>', '<cls>', '<sep>']"
            )

    def __len__(self) -> int:
        return len(self.vocab.idx_to_token)

    def __repr__(self) -> str:
        return f"WordTokenizer({len(self)} tokens)"

    def tokenize(self, text: str) -> list[str]:
        """The words, also those that are not in the vocabulary."""
        return text.lower().split()

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The words joined by spaces, without `<pad>`, `<cls>` and `<sep>`."""
        left_out = {self.pad_id, self.cls_id, self.sep_id} - {self.unk_id}
        return " ".join(self.id_to_token(i) for i in id_list(ids) if i not in left_out)

    def token_to_id(self, token: str) -> int:
        index: dict[str, int] = self.vocab.token_to_idx
        return index.get(token, self.unk_id)

    def id_to_token(self, index: int) -> str:
        token: str = self.vocab.idx_to_token[index]
        return token
