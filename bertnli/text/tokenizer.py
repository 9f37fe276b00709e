"""Text to token ids: D2L's vocabulary of words, and BERT's WordPiece exactly as `transformers` has it."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from bertnli import _text
from bertnli.data.files import atomic_path
from bertnli.data.snli import Columns, ReadOptions, TextData, Texts, read_options
from bertnli.text.encoded import EncodedTexts, as_tensors, labels_tensor

_CACHE = 1  # of encode_file: to be raised when what files are encoded to changes
Truncation = Literal["longest_first", "longest_first_hf", "ratio", "only_first", "only_second"]


class Vocab:
    """D2L's vocabulary: `<unk>`, the reserved tokens, then the tokens by falling frequency (ties: first seen first).

    tokens: a list of str or a list of such lists. `idx_to_token` (list) and `token_to_idx` (dict) may be assigned.

    >>> vocab = Vocab([["a", "b"], ["b"]], reserved_tokens=["<pad>"])
    >>> vocab["b"], vocab[["a", "zebra"]], vocab.to_tokens(2)
    (2, [3, 0], 'b')
    """

    def __init__(
        self,
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        min_freq: int = 0,
        reserved_tokens: Sequence[str] | None = None,
    ) -> None:
        counter: Counter[str] = Counter()
        for line in tokens if tokens is not None else ():
            counter.update((line,) if isinstance(line, str) else line)
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
        """The vocabulary whose tokens a JSON list holds, in the order of their ids (the book's `vocab.json`)."""
        with open(path, encoding="utf-8") as file:
            try:
                tokens = json.load(file)
            except ValueError as error:
                raise ValueError(f"{path}: expected a JSON list of tokens: {error}") from None
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
        """Write the tokens as a JSON list that `from_json` reads; the file appears whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.idx_to_token, ensure_ascii=False), encoding="utf-8", newline="\n")

    def __len__(self) -> int:
        return len(self.idx_to_token)

    @overload
    def __getitem__(self, tokens: str) -> int: ...
    @overload
    def __getitem__(self, tokens: list[Any] | tuple[Any, ...]) -> list[Any]: ...
    def __getitem__(self, tokens: str | list[Any] | tuple[Any, ...]) -> int | list[Any]:
        if isinstance(tokens, list | tuple):
            return [self[token] for token in tokens]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices: int | Sequence[int] | Tensor) -> str | list[str]:
        """The token of one index (also a tensor of one), or the list of several."""
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
        """(token, frequency) of the tokens that it was built from, by falling frequency."""
        return self._token_freqs


def space_out(text: str) -> str:
    """Punctuation and clitics set apart by spaces, as the words of a Vocab are.

    >>> space_out("A man isn't sleeping.").split()
    ['A', 'man', 'is', "n't", 'sleeping', '.']
    """
    text = re.sub(r"([^\w\s'\u2019-])", r" \1 ", text)
    return re.sub(r"(?i)(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", text)


def space_out_pairs(data: TextData, vocab: Any = None) -> TextData:
    """The texts `space_out`, but for words that the vocabulary has ("U.S.", "...")."""
    known = {} if vocab is None else vocab.token_to_idx

    def apart(texts: Any) -> Any:
        if texts is None or isinstance(texts, str):  # one string instead of a list: encoding says so
            return texts
        words = (text.split() for text in texts)
        return [" ".join(w if w.lower() in known else space_out(w) for w in of_text) for of_text in words]

    return replace(data, first=apart(data.first), second=apart(data.second))


def _source(texts: Iterable[str], name: str) -> list[str] | tuple[Any, ...]:
    """What the extension takes: a list or tuple of str, or the three arrays of a `Texts`."""
    if isinstance(texts, list | tuple):  # (first: of an abstract class, isinstance takes longer)
        return texts
    if isinstance(texts, Texts):
        return texts.arena, texts.starts, texts.ends
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a sequence of str, not one str; put it into a list")
    return tuple(texts)


@dataclass(frozen=True)
class TokenizedTexts:
    """The tokens of N texts, without special tokens, and where each lies in its text.

    ids           int32 [total]
    offsets       int64 [N+1]     text i has the tokens offsets[i] to offsets[i+1]
    starts, ends  int32 [total]   the token is text[start:end], in characters of the str as it was given
    word_ids      int32 [total]   which word of its text it belongs to, from 0: a run without white space or
                                  punctuation, a punctuation mark, or a special token written out
    """

    ids: Tensor
    offsets: Tensor
    starts: Tensor
    ends: Tensor
    word_ids: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Tokenizer(ABC):
    """What both tokenizers share. Texts are any sequence of str, or the `Texts` of the reader."""

    _core: _text.Tokenizer
    _columns: Columns  # of SNLI's that suit it
    pad_id: int
    cls_id: int
    sep_id: int
    unk_id: int

    @abstractmethod
    def _fingerprint(self) -> Any: ...  # JSON of all that ids depend on
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
        """Raise ValueError where a special token that rows need is missing."""

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
        """Rows `<cls> premise <sep> hypothesis <sep>` of at most `max_len` tokens, stored without padding.

        truncation: where a pair is too long,
            "longest_first"     the longer text loses its last token, the hypothesis where they are equal (D2L, BERT)
            "longest_first_hf"  the rule of Hugging Face's fast tokenizers, which differs by one token for odd budgets
            "ratio"             both are cut in proportion to their lengths
            "only_first", "only_second"   only that text is cut; ValueError names a row whose other text does not fit
        num_threads: 0 means torch.get_num_threads().
        Raises ValueError for texts of unequal number, `max_len` under 3 or a lone surrogate, TypeError where a text is
        no str.
        """
        self._check_special()
        first, second = _source(premises, "premises"), _source(hypotheses, "hypotheses")
        arrays = self._core.encode_ragged(first, second, operator.index(max_len), truncation, _threads(num_threads))
        return self._encoded(arrays, labels, max_len)

    def encode_file(
        self,
        path: str | os.PathLike[str],
        max_len: int = 128,
        truncation: Truncation = "longest_first",
        num_threads: int = 0,
        *,
        columns: Columns | None = None,
        label_names: Sequence[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> EncodedTexts:
        """`read_pairs` and `encode_pairs` in one pass over the mapped file, which may be larger than memory.

        columns: None means the parses for words and the sentences for WordPiece; label_names: as `read_pairs` has it.
        cache: a folder that keeps what was encoded, under a name made of the file's content, the tokenizer's and the
            options; the next call maps it. Several processes may share it.
        Raises FileNotFoundError, and ValueError naming file and line for a broken row or an unknown label.
        """
        self._check_special()
        path, max_len = Path(path), operator.index(max_len)
        options = read_options(path, columns or self._columns, label_names)
        encode = functools.partial(self._encode_file, options, max_len, truncation, _threads(num_threads))
        if cache is None:
            return encode()
        key = json.dumps([_CACHE, self._fingerprint(), {**options, "path": ""}, max_len, truncation])
        digest = _text.digest_file(options["path"])
        kept = Path(cache) / f"{digest}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.safetensors"
        try:
            return EncodedTexts.load(kept)
        except (FileNotFoundError, ValueError):  # (not there, or damaged)
            pairs = encode()
            pairs.save(kept)
            return pairs

    def _encode_file(
        self, options: ReadOptions, max_len: int, truncation: Truncation, num_threads: int
    ) -> EncodedTexts:
        *arrays, labels, dropped = self._core.encode_file(
            **options, max_len=max_len, truncation=truncation, num_threads=num_threads
        )
        ids, offsets, first_lens = map(torch.from_numpy, arrays)
        return EncodedTexts(
            ids, offsets, first_lens, torch.from_numpy(labels), pad_id=self.pad_id, max_len=max_len, dropped=dropped
        )

    def encode_texts(
        self,
        texts: Iterable[str],
        max_len: int = 128,
        num_threads: int = 0,
        labels: Sequence[Any] | Tensor | None = None,
    ) -> EncodedTexts:
        """Rows `<cls> text <sep>` of at most `max_len` (>= 2) tokens, the text's end cut where it is too long."""
        self._check_special()
        arrays = self._core.encode_ragged(
            _source(texts, "texts"), None, operator.index(max_len), "longest_first", _threads(num_threads)
        )
        return self._encoded(arrays, labels, max_len)

    def encode_texts_with_offsets(self, texts: Iterable[str], num_threads: int = 0) -> TokenizedTexts:
        """Every token of each text and its place in it, as `tokenizers` gives them with `add_special_tokens=False`.

        Nothing is truncated. For `WordTokenizer` the words are those of `text.split()`. num_threads: 0 means
        torch.get_num_threads(). Raises ValueError for a lone surrogate, TypeError where a text is no str.
        """
        arrays = self._core.encode_spans(_source(texts, "texts"), _threads(num_threads))
        return TokenizedTexts(*map(torch.from_numpy, arrays))

    def _encoded(self, arrays: tuple[Any, ...], labels: Any, max_len: int) -> EncodedTexts:
        ids, offsets, first_lens = map(torch.from_numpy, arrays)
        return EncodedTexts(
            ids, offsets, first_lens, labels_tensor(labels, len(first_lens)), pad_id=self.pad_id, max_len=max_len
        )

    def encode_padded(
        self,
        premises: Iterable[str],
        hypotheses: Iterable[str],
        max_len: int = 128,
        truncation: Truncation = "longest_first",
        num_threads: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of `encode_pairs`, padded: token_ids and segments [N, max_len], valid_lens [N], all int64."""
        self._check_special()
        first, second = _source(premises, "premises"), _source(hypotheses, "hypotheses")
        max_len = operator.index(max_len)
        return as_tensors(self._core.encode_dense(first, second, max_len, truncation, _threads(num_threads)))


def _threads(num_threads: int) -> int:
    if num_threads < 0:
        raise ValueError(f"num_threads must not be negative: {num_threads}")
    return num_threads or torch.get_num_threads()


def _ids(ids: Iterable[int] | Tensor) -> list[int]:
    return [int(i) for i in (ids.tolist() if isinstance(ids, Tensor) else ids)]


class WordTokenizer(Tokenizer):
    """D2L's words: `text.lower().split()`, looked up in a vocabulary; what is not in it becomes `<unk>`.

    vocab: a `Vocab` or anything with `idx_to_token` and `token_to_idx`; it is read once, here. Rows need `<pad>`,
    `<cls>` and `<sep>` in it: encoding pairs raises ValueError where one is missing.
    """

    _columns = "parse"

    def __init__(self, vocab: Any) -> None:
        self.vocab = vocab
        self._build()

    @classmethod
    def from_texts(cls, texts: Iterable[str], min_freq: int = 5) -> WordTokenizer:
        """The lower-case words of the texts that occur `min_freq` times, by falling frequency, as the book has them.

        Pass sentences through `space_out` first, or the vocabulary has "sleeping." with its full stop.
        """
        words = [text.lower().split() for text in texts]
        return cls(Vocab(words, min_freq=min_freq, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))

    def _build(self) -> None:
        index: dict[str, int] = self.vocab.token_to_idx
        self.unk_id = index.get("<unk>", 0)
        self._missing = [token for token in ("<pad>", "<cls>", "<sep>") if token not in index]
        self.pad_id, self.cls_id, self.sep_id = (index.get(t, self.unk_id) for t in ("<pad>", "<cls>", "<sep>"))
        self._items = list(index.items())
        self._core = _text.WordTokenizer(self._items, self.pad_id, self.cls_id, self.sep_id, self.unk_id)

    def _fingerprint(self) -> Any:
        return ["words", self._items]

    def __getstate__(self) -> dict[str, Any]:
        return {"vocab": self.vocab}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.vocab = state["vocab"]
        self._build()

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
        """The words joined by spaces; `<pad>`, `<cls>` and `<sep>` are left out."""
        left_out = {self.pad_id, self.cls_id, self.sep_id} - {self.unk_id}
        return " ".join(self.id_to_token(i) for i in _ids(ids) if i not in left_out)

    def token_to_id(self, token: str) -> int:
        index: dict[str, int] = self.vocab.token_to_idx
        return index.get(token, self.unk_id)

    def id_to_token(self, index: int) -> str:
        token: str = self.vocab.idx_to_token[index]
        return token


class WordPieceTokenizer(Tokenizer):
    """BERT's WordPiece, id for id what `transformers.BertTokenizerFast` gives.

    tokens: the vocabulary in the order of the ids, with [PAD], [UNK], [CLS], [SEP] and [MASK].
    lowercase: lower the text and strip its accents (uncased models).
    split_special_tokens: take a literal "[SEP]" in a text for ordinary text. As in `transformers`, the default turns it
        into the special token, so that whoever writes the text can forge a row: set it for text that you do not trust.
    """

    _columns = "text"
    SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(self, tokens: Iterable[str], lowercase: bool = True, split_special_tokens: bool = False) -> None:
        self.tokens = list(tokens)
        self.lowercase = lowercase
        self.split_special_tokens = split_special_tokens
        self._build()

    def _build(self) -> None:
        self._index = {token: i for i, token in enumerate(self.tokens)}  # of equal tokens the last counts
        missing = [token for token in self.SPECIAL if token not in self._index]
        if missing:
            raise ValueError(f"the vocabulary has no {' and no '.join(missing)}")
        special = [(token, self._index[token]) for token in self.SPECIAL]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (i for _, i in special)
        self._special_ids = {i for _, i in special}
        self._core = _text.WordPieceTokenizer(
            list(self._index.items()),
            self.pad_id,
            self.cls_id,
            self.sep_id,
            self.unk_id,
            [] if self.split_special_tokens else special,
            self.lowercase,
        )

    def _fingerprint(self) -> Any:
        return ["wordpiece", self.tokens, self.lowercase, self.split_special_tokens]

    def __reduce__(self) -> tuple[Any, ...]:
        return WordPieceTokenizer, (self.tokens, self.lowercase, self.split_special_tokens)

    @classmethod
    def of_characters(cls, texts: Iterable[str], min_freq: int = 1) -> WordPieceTokenizer:
        """The tokenizer whose pieces are the single characters of the texts, Chinese or other, by falling frequency.

        What occurs fewer than `min_freq` times is unknown. Case and accents are dropped, as with every other one.
        """
        special = list(cls.SPECIAL)
        texts = list(texts)
        words = cls(special).encode_texts_with_offsets(texts)  # all unknown: only their places count
        counts: Counter[str] = Counter()
        bounds = words.offsets.tolist()
        places = list(zip(words.starts.tolist(), words.ends.tolist(), strict=True))
        for text, low, high in zip(texts, bounds, bounds[1:], strict=False):
            for start, end in places[low:high]:
                plain = unicodedata.normalize("NFD", text[start:end].lower())
                first, *rest = [c for c in plain if unicodedata.category(c) != "Mn"] or [""]
                counts.update([first, *(f"##{c}" for c in rest)])
        del counts[""]
        return cls([*special, *(piece for piece, n in counts.most_common() if n >= min_freq)])

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], lowercase: bool | None = None, split_special_tokens: bool = False
    ) -> WordPieceTokenizer:
        """Read `vocab.txt` (one token a line) or a Hugging Face `tokenizer.json`.

        lowercase: None means True for `vocab.txt`, and what the file says for `tokenizer.json`. That file's truncation
        and padding are ignored. Raises ValueError for settings which this class does not have.
        """
        path = Path(path)
        text = path.read_bytes().decode("utf-8")
        if path.suffix == ".json":
            tokens, lower = _read_tokenizer_json(path, text)
            if lowercase is not None and lowercase != lower:
                raise ValueError(f"{path} says lowercase={lower}, but lowercase={lowercase} was asked for")
            return cls(tokens, lower, split_special_tokens)
        lines = text.removeprefix("\ufeff").split("\n")
        if lines[-1] == "":
            lines.pop()
        try:
            return cls((line.removesuffix("\r") for line in lines), lowercase is not False, split_special_tokens)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary, one token a line; the file appears whole or not at all."""
        if any("\n" in token for token in self.tokens):
            raise ValueError("a token with a line feed cannot be saved in a vocab.txt")
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{token}\n" for token in self.tokens), encoding="utf-8", newline="\n")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"WordPieceTokenizer({len(self)} tokens, lowercase={self.lowercase})"

    def tokenize(self, text: str) -> list[str]:
        """The pieces, `##` before those that continue a word, [UNK] for a word that has none."""
        return [self.tokens[i] for i in self.encode(text)]

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The words joined by spaces, pieces glued, special tokens left out."""
        tokens = [self.tokens[i] for i in _ids(ids) if i not in self._special_ids]
        return "".join(
            token if i == 0 else token[2:] if token.startswith("##") else " " + token for i, token in enumerate(tokens)
        )

    def token_to_id(self, token: str) -> int:
        return self._index.get(token, self.unk_id)

    def id_to_token(self, index: int) -> str:
        return self.tokens[index]


def _read_tokenizer_json(path: Path, text: str) -> tuple[list[str], bool]:
    """The tokens and `lowercase` of a Hugging Face tokenizer.json; ValueError where it is more than plain BERT."""
    try:
        settings = json.loads(text)
        model, normalizer = settings["model"], settings["normalizer"] or {}
        vocab: dict[str, int] = model["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a Hugging Face tokenizer.json: {error!r}") from None

    def demand(what: str, found: object, *allowed: object) -> None:
        if found not in allowed:
            raise ValueError(
                f"{path}: {what} is {found!r}; only {' or '.join(map(repr, allowed))} can be reproduced exactly"
            )

    demand("model.type", model.get("type", "WordPiece"), "WordPiece")
    demand("model.unk_token", model.get("unk_token"), "[UNK]")
    demand("model.continuing_subword_prefix", model.get("continuing_subword_prefix"), "##")
    demand("model.max_input_chars_per_word", model.get("max_input_chars_per_word"), 100)
    demand("normalizer.type", normalizer.get("type"), "BertNormalizer")
    demand("normalizer.clean_text", normalizer.get("clean_text"), True)
    demand("normalizer.handle_chinese_chars", normalizer.get("handle_chinese_chars"), True)
    demand("normalizer.lowercase", normalizer.get("lowercase"), True, False)
    lowercase = bool(normalizer["lowercase"])
    demand("normalizer.strip_accents", normalizer.get("strip_accents"), None, lowercase)
    demand("pre_tokenizer.type", (settings.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer")
    post = settings.get("post_processor") or {}
    demand("post_processor.type", post.get("type"), "TemplateProcessing", "BertProcessing")
    if post["type"] == "TemplateProcessing":
        shape = ["".join(f"{k[0]}{v['id']}{v['type_id']} " for item in post[which] for k, v in item.items())
                 for which in ("single", "pair")]  # fmt: skip
        single = "S[CLS]0 SA0 S[SEP]0 "
        demand("post_processor", shape, [single, single + "SB1 S[SEP]1 "])
    else:
        demand("post_processor.cls", post["cls"][0], "[CLS]")
        demand("post_processor.sep", post["sep"][0], "[SEP]")
    added = {token["content"]: token for token in settings.get("added_tokens", ())}
    demand("the set of added tokens", sorted(added), sorted(WordPieceTokenizer.SPECIAL))
    for content, token in added.items():
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            demand(f"{flag} of the added token {content}", token.get(flag), False)
        demand(f"the id of the added token {content}", token["id"], vocab.get(content))
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"{path}: expected the ids of model.vocab to be 0 to {len(tokens) - 1} without gaps")
    return tokens, lowercase
