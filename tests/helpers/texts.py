"""Texts, vocabularies and comparisons for the tests of tokenizers and encoded texts."""
# ruff: noqa: RUF001  (other alphabets are the point)

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers

from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import TokenizedTexts, Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RESERVED = ["<pad>", "<mask>", "<cls>", "<sep>"]
CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
MARKS = [c for c in CODE_POINTS if unicodedata.combining(c)]
# Whole words, pieces, and letters of several scripts, so that small texts exercise every branch.
SMALL = [
    *SPECIAL, "the", "un", "##aff", "##able", "run", "##ning", "a", "##a", "##b", "b", "strasse", "####", "#", "[", "]",
    ".", ",", "!", "'", "$", "5", "##5", "中", "文", "e", "##e", "##́", "é", "##é", "σ", "##σ", "ς", "##ς", "A", "##A",
    "İ", "i", "##i", "한", "ᄒ", "##ᅡ", "##ᆫ", "##〮", "##𝅥", "sep", "mask", "SEP", "x", "##y", "##x", "y",
]  # fmt: skip
# Words of several scripts, and of lengths around the 15 bytes of a cache key.
ALPHABETS = Vocab(
    ["a", "dog", "ας", "ασ", "straße", "i̇", "é", "a\u200bb", "x" * 20, "x" * 16, "x" * 15, "中文", "."],
    reserved_tokens=RESERVED,
)
WORD_VOCAB = Vocab([f"w{i}" for i in range(50)], reserved_tokens=RESERVED)
WORDS = WordTokenizer(WORD_VOCAB)
Real = tuple[WordPieceTokenizer, tokenizers.Tokenizer]  # MiniLM's vocabulary in both


def word_text(count: int, start: int = 0) -> str:
    """`count` words of WORD_VOCAB from number `start` on."""
    return " ".join(f"w{(start + i) % 50}" for i in range(count))


def random_pairs(rng: random.Random, count: int, longest: int = 12) -> tuple[list[str], list[str]]:
    """Premises, some of them repeated, and hypotheses of words of WORD_VOCAB."""
    premises = [word_text(rng.randint(0, longest), rng.randint(0, 49)) for _ in range(count)]
    for i in range(1, count):
        if rng.random() < 0.3:
            premises[i] = premises[i - 1]
    return premises, [word_text(rng.randint(0, longest), rng.randint(0, 49)) for _ in range(count)]


def d2l_vocabulary(*columns: Iterable[str]) -> Vocab:
    """The words that occur at least twice."""
    words = [text.lower().split() for column in columns for text in column]
    return Vocab(words, min_freq=2, reserved_tokens=RESERVED)


def random_texts(rng: random.Random, count: int) -> list[str]:
    """Texts of any characters, many of them hard ones."""
    pools: list[Sequence[str]] = [
        CODE_POINTS, MARKS, "abexyABEXYσΣİ", " \t\n\r\x0b\x85\u3000\u2028\u200b\0", ".,!'#[]$5", "中文한글",
        ["[SEP]", "[sep]", "[MASK]", "[PAD", "un", "affable", " the ", " ", " ", "🙂", "👩\u200d👧", "é" * 50],
        ["a" * k for k in range(97, 104)],
    ]  # fmt: skip
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 25))) for _ in range(count)]


def reference(
    tokens: Sequence[str], lowercase: bool = True, split_special_tokens: bool = False
) -> tokenizers.Tokenizer:
    """BERT's pipeline made of the `tokenizers` package."""
    model = models.WordPiece(
        {token: i for i, token in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.encode_special_tokens = split_special_tokens
    return tokenizer


def assert_same_ids(expected: tokenizers.Tokenizer, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    texts = list(texts)
    encodings = expected.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        assert tokenizer.encode(text) == encoding.ids, ascii(text)


def assert_same_offsets(
    expected: tokenizers.Tokenizer, tokenizer: Tokenizer, texts: Iterable[str], num_threads: int = 1
) -> TokenizedTexts:
    texts = list(texts)
    encodings = expected.encode_batch(texts, add_special_tokens=False)
    found = tokenizer.encode_texts_with_offsets(texts, num_threads)
    ids, starts, ends, words = (t.tolist() for t in (found.ids, found.starts, found.ends, found.word_ids))
    bounds = found.offsets.tolist()
    assert len(bounds) == len(texts) + 1
    for i, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        a, b = bounds[i], bounds[i + 1]
        assert ids[a:b] == encoding.ids, ascii(text)
        assert list(zip(starts[a:b], ends[a:b], strict=True)) == encoding.offsets, ascii(text)
        assert words[a:b] == encoding.word_ids, ascii(text)
    return found


def sequences_of(encoded: EncodedTexts) -> list[list[int]]:
    """The ids of each sequence."""
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]


def kept_tokens(encoded: EncodedTexts) -> list[tuple[int, int]]:
    """(premise tokens, hypothesis tokens) of each pair."""
    return [(f - 2, n - f - 1) for f, n in zip(encoded.first_lens.tolist(), encoded.lengths.tolist(), strict=True)]


def assert_equal_encoded(a: EncodedTexts, b: EncodedTexts) -> None:
    for name in ("ids", "offsets", "first_lens", "labels"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name
    assert (a.pad_id, a.max_len) == (b.pad_id, b.max_len)
