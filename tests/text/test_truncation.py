"""Truncation rules, against D2L's loop and against `tokenizers`."""

from __future__ import annotations

import pytest
import tokenizers
from helpers import d2l_oracle
from helpers.texts import WORD_VOCAB, WORDS, kept_tokens, word_text
from tokenizers.processors import TemplateProcessing

from bertnli.text.tokenizer import Truncation

LENGTHS = [(p, h) for p in range(13) for h in range(13)]


@pytest.mark.parametrize("max_len", range(3, 26))
def test_longest_first_equals_popping(max_len: int) -> None:
    premises, hypotheses = [word_text(p) for p, _ in LENGTHS], [word_text(h, 25) for _, h in LENGTHS]
    expected = d2l_oracle.encode_dataset(WORD_VOCAB, premises, hypotheses, max_len)
    for tensor, wanted in zip(WORDS.encode_padded(premises, hypotheses, max_len), expected, strict=True):
        assert tensor.tolist() == wanted
    encoded = WORDS.encode_pairs(premises, hypotheses, max_len)
    for tensor, wanted in zip(encoded.to_padded(), expected, strict=True):
        assert tensor.tolist() == wanted


def test_the_designs_examples() -> None:
    pairs = [(10, 10), (7, 20)]
    premises, hypotheses = [word_text(p) for p, _ in pairs], [word_text(h) for _, h in pairs]
    assert kept_tokens(WORDS.encode_pairs(premises, hypotheses, 16)) == [(7, 6), (7, 6)]
    assert kept_tokens(WORDS.encode_pairs(premises, hypotheses, 16, truncation="longest_first_hf")) == [(6, 7), (6, 7)]


def huggingface(strategy: str, max_len: int) -> tokenizers.Tokenizer:
    model = tokenizers.models.WordLevel({**WORD_VOCAB.token_to_idx}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", WORD_VOCAB["<cls>"]), ("<sep>", WORD_VOCAB["<sep>"])],
    )
    tokenizer.enable_truncation(max_len, strategy=strategy)
    return tokenizer


@pytest.mark.parametrize("max_len", range(3, 26))
def test_longest_first_hf_equals_tokenizers(max_len: int) -> None:
    premises, hypotheses = [word_text(p) for p, _ in LENGTHS], [word_text(h, 25) for _, h in LENGTHS]
    expected = huggingface("longest_first", max_len).encode_batch(list(zip(premises, hypotheses, strict=True)))
    encoded = WORDS.encode_pairs(premises, hypotheses, max_len, truncation="longest_first_hf")
    ids, segments, lens = encoded.to_padded()
    for i, e in enumerate(expected):
        assert (ids[i, : lens[i]].tolist(), segments[i, : lens[i]].tolist()) == (e.ids, e.type_ids), LENGTHS[i]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("max_len", range(4, 26))
def test_only_one_is_cut(which: int, max_len: int) -> None:
    strategies: tuple[Truncation, ...] = ("only_first", "only_second")
    strategy = strategies[which]
    fit = [pair for pair in LENGTHS if pair[1 - which] < max_len - 3]  # (tokenizers wants one token to stay)
    premises, hypotheses = [word_text(p) for p, _ in fit], [word_text(h, 25) for _, h in fit]
    expected = huggingface(strategy, max_len).encode_batch(list(zip(premises, hypotheses, strict=True)))
    encoded = WORDS.encode_pairs(premises, hypotheses, max_len, truncation=strategy)
    assert encoded.ids.tolist() == [i for e in expected for i in e.ids]
    budget = max_len - 3
    names = ("hypotheses", "premises")
    full = [word_text(5), word_text(budget)], [word_text(5), word_text(budget)]
    long = [*full[1 - which][:1], word_text(budget + 1)]
    columns = (full[0], long) if which == 0 else (long, full[1])
    if budget >= 5:
        exact = kept_tokens(WORDS.encode_pairs(*full, max_len, truncation=strategy))[1]
        assert exact == ((0, budget) if which == 0 else (budget, 0))
        with pytest.raises(ValueError, match=rf"{names[which]}\[1\] has more than the {budget} tokens"):
            WORDS.encode_pairs(*columns, max_len, truncation=strategy)


def test_ratio_cuts_in_proportion() -> None:
    for max_len in range(3, 26):
        budget = max_len - 3
        encoded = WORDS.encode_pairs(
            [word_text(p) for p, _ in LENGTHS], [word_text(h) for _, h in LENGTHS], max_len, truncation="ratio"
        )
        for (p, h), (a, b) in zip(LENGTHS, kept_tokens(encoded), strict=True):
            if p + h <= budget:
                assert (a, b) == (p, h)
                continue
            assert a + b == budget
            assert a <= p
            assert b <= h
            if budget >= 2:
                assert (a > 0, b > 0) == (p > 0, h > 0)
                assert abs(a - budget * p / (p + h)) <= (0.5 if 0.5 < budget * p / (p + h) < budget - 0.5 else 1)


def test_texts_far_beyond_the_budget() -> None:
    # Counting stops early only where the rule cannot tell the difference.
    pairs = [(500, 500), (500, 400), (400, 500), (500, 3), (3, 500), (17, 500), (500, 17), (16, 18)]
    premises, hypotheses = [word_text(p) for p, _ in pairs], [word_text(h, 9) for _, h in pairs]
    wanted = d2l_oracle.encode_dataset(WORD_VOCAB, premises, hypotheses, 36)
    assert [t.tolist() for t in WORDS.encode_padded(premises, hypotheses, 36)] == list(wanted)
    hf = huggingface("longest_first", 36).encode_batch(list(zip(premises, hypotheses, strict=True)))
    ours = WORDS.encode_pairs(premises, hypotheses, 36, truncation="longest_first_hf")
    assert ours.ids.tolist() == [i for e in hf for i in e.ids]
    ratio = kept_tokens(WORDS.encode_pairs(premises, hypotheses, 36, truncation="ratio"))
    assert ratio == [(17, 16), (18, 15), (15, 18), (32, 1), (1, 32), (1, 32), (32, 1), (16, 17)]
