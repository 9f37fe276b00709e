"""The place of every token in its text, as `tokenizers` gives it."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
import torch
from helpers.texts import (
    ALPHABETS,
    CODE_POINTS,
    MARKS,
    SMALL,
    SPECIAL,
    Real,
    assert_same_offsets,
    random_texts,
    reference,
)
from tokenizers import normalizers

from bertnli.data.snli import read_snli
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.wordpiece import WordPieceTokenizer


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_offsets_of_random_texts(lowercase: bool, split: bool) -> None:
    texts = random_texts(random.Random(11), 6000)
    ours = WordPieceTokenizer(SMALL, lowercase, split)
    found = assert_same_offsets(reference(SMALL, lowercase, split), ours, texts, num_threads=3)
    dtypes = [t.dtype for t in (found.ids, found.offsets, found.starts, found.ends, found.word_ids)]
    assert dtypes == [torch.int32, torch.int64, torch.int32, torch.int32, torch.int32]
    assert len(found) == len(texts)


@pytest.mark.parametrize("lowercase", [True, False])
def test_offsets_with_a_real_vocabulary(minilm_tokens: list[str], lowercase: bool) -> None:
    ours = WordPieceTokenizer(minilm_tokens, lowercase)
    assert_same_offsets(reference(minilm_tokens, lowercase), ours, random_texts(random.Random(12), 6000))


def test_offsets_of_every_code_point() -> None:
    # Pieces of single letters, so that each character's own place shows.
    tokens = [*SPECIAL, *"abxyAE", *("##" + c for c in "abxyAE"), *MARKS, *("##" + m for m in MARKS)]
    expected, ours = reference(tokens), WordPieceTokenizer(tokens)
    words = [f"x{c}y" for c in CODE_POINTS]
    assert_same_offsets(expected, ours, [" ".join(words[i : i + 64]) for i in range(0, len(words), 64)])


def test_offsets_where_marks_change_places() -> None:
    composed = [c for c in CODE_POINTS if len(unicodedata.normalize("NFD", c)) > 1 and not "가" <= c <= "힣"]
    pools = [MARKS, composed, ["\u302e", "\U0001d165", "\U0001d15e", "\u0344", "\u0f73", "a", "\u034f", "\u200b", " "]]
    rng = random.Random(13)
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 9))) for _ in range(20_000)]
    kept = {c for text in texts for c in normalizers.BertNormalizer().normalize_str(text)} - {" "}
    tokens = [*SPECIAL, *sorted(kept), *("##" + c for c in sorted(kept))]
    assert_same_offsets(reference(tokens), WordPieceTokenizer(tokens), texts)


def test_offsets_of_real_texts(data_dir: Path, real: Real) -> None:
    texts = (data_dir / "xquad" / "xquad.zh.json").read_text(encoding="utf-8").split('"')[:4000]
    texts += read_snli(data_dir / "snli_1.0", split="dev", columns="text")[1][:3000]
    assert_same_offsets(real[1], real[0], texts)


def test_offsets_of_words() -> None:
    ours = WordTokenizer(ALPHABETS)
    rng = random.Random(14)
    pools = [CODE_POINTS[:0x3000], " \t\x1c\x85\u3000", ALPHABETS.idx_to_token, ["ΑΣ", "DOG", "İİ"]]
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 12))) for _ in range(5000)]
    found = ours.encode_texts_with_offsets(texts, num_threads=2)
    for i, text in enumerate(texts):
        a, b = found.offsets[i], found.offsets[i + 1]
        spans = zip(found.starts[a:b].tolist(), found.ends[a:b].tolist(), strict=True)
        assert [text[start:end] for start, end in spans] == text.split()
        assert found.ids[a:b].tolist() == ours.encode(text)
        assert found.word_ids[a:b].tolist() == list(range(b - a))


def test_offsets_of_nothing(real: Real) -> None:
    for texts in ([], ["", " "]):
        found = real[0].encode_texts_with_offsets(texts)
        assert (found.offsets.tolist(), len(found.ids), len(found)) == ([0] * (len(texts) + 1), 0, len(texts))
    with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate"):
        real[0].encode_texts_with_offsets(["a", "\ud800"])
