"""D2L's vocabulary of words, and text separated into the words that such a vocabulary has."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

from torch import Tensor

from bertnli.data.arguments import items, path_of
from bertnli.data.files import atomic_path, read_json
from bertnli.data.texts import TextData


class Vocab:
    """D2L's vocabulary: `<unk>`, the reserved tokens, then the tokens by falling frequency (ties: first seen first).

    tokens            a list of tokens, or of lists of tokens. A token is a str, or a tuple of str (a bigram, say)
    min_freq          least frequency of a token (default: 0)
    reserved_tokens   tokens after `<unk>` whatever their frequency

    `idx_to_token` (list) and `token_to_idx` (dict) may be assigned.

    >>> vocab = Vocab([["a", "b"], ["b"]], reserved_tokens=["<pad>"])
    >>> vocab["b"], vocab[["a", "zebra"]], vocab.to_tokens(2)
    (2, [3, 0], 'b')
    """

    def __init__(
        self,
        tokens: Sequence[Any] | None = None,
        min_freq: int = 0,
        reserved_tokens: Sequence[str] | None = None,
    ) -> None:
        counter: Counter[Any] = Counter()
        for line in items(tokens, "tokens", "str, or of lists of str") if tokens is not None else ():
            counter.update((line,) if isinstance(line, str | tuple) else line)
        self._token_freqs = counter.most_common()  # stable: ties keep the order of first appearance
        self.idx_to_token: list[str] = ["<unk>", *(reserved_tokens or ())]
        self.token_to_idx: dict[str, int] = {token: i for i, token in enumerate(self.idx_to_token)}
        for token, freq in self._token_freqs:
            if freq < min_freq:
                break
            if token not in self.token_to_idx:
                self.token_to_idx[token] = len(self.idx_to_token)
                self.idx_to_token.append(token)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Vocab:
        """Read a JSON list of tokens in the order of their ids (D2L's `vocab.json`)."""
        tokens = read_json(path_of(path))
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"{path}: expected a JSON list of tokens, all strings")
        return cls.of(tokens)

    @classmethod
    def of(cls, tokens: list[str]) -> Vocab:
        """The vocabulary of these tokens, in the order of their ids."""
        vocab = cls()
        vocab.idx_to_token = tokens
        vocab.token_to_idx = {token: i for i, token in enumerate(tokens)}
        return vocab

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens as a JSON list that `from_json` reads."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_text(), encoding="utf-8", newline="\n")

    def to_text(self) -> str:
        """The content of `vocab.json`."""
        return json.dumps(self.idx_to_token, ensure_ascii=False)

    def __len__(self) -> int:
        return len(self.idx_to_token)

    @overload
    def __getitem__(self, tokens: str) -> int: ...
    @overload
    def __getitem__(self, tokens: list[Any] | tuple[Any, ...]) -> list[Any]: ...
    def __getitem__(self, tokens: str | list[Any] | tuple[Any, ...]) -> int | list[Any]:
        if isinstance(tokens, list | tuple):
            bigrams: dict[Any, int] = self.token_to_idx
            if isinstance(tokens, tuple) and all(isinstance(token, str) for token in tokens) and tokens in bigrams:
                return bigrams[tokens]
            return [self[token] for token in tokens]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices: int | Sequence[int] | Tensor) -> str | list[str]:
        """The token of one index (also a tensor with one element), or the list of several."""
        if isinstance(indices, Tensor):
            indices = int(indices) if indices.numel() == 1 else indices.tolist()
        if isinstance(indices, Sequence):
            return [self.idx_to_token[int(i)] for i in indices]
        return self.idx_to_token[int(indices)]

    @property
    def unk(self) -> int:
        return self.token_to_idx.get("<unk>", 0)

    @property
    def token_freqs(self) -> list[tuple[str, int]]:
        """(token, frequency) of the tokens given to the constructor, by falling frequency."""
        return self._token_freqs


def space_out(text: str) -> str:
    """Put spaces around punctuation and before clitics, as in the texts that D2L's vocabularies come from.

    >>> space_out("A man isn't sleeping.").split()
    ['A', 'man', 'is', "n't", 'sleeping', '.']
    """
    text = re.sub(r"([^\w\s'\u2019-])", r" \1 ", text)
    return re.sub(r"(?i)(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", text)


def space_out_data(data: TextData, vocab: Any = None) -> TextData:
    """`space_out` of all texts, except for words that the vocabulary has ("U.S.", "...")."""
    known = {} if vocab is None else vocab.token_to_idx

    def spaced(texts: Any) -> Any:
        if texts is None or isinstance(texts, str):  # encoding raises the error for one str in place of a list
            return texts
        return [" ".join(w if w.lower() in known else space_out(w) for w in text.split()) for text in texts]

    return replace(data, first=spaced(data.first), second=spaced(data.second))
