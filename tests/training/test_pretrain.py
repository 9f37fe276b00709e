"""Pretraining on one's own text: masks, losses, and what is learnt."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.d2l_oracle import pretraining_losses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertnli import BERTConfig, BERTModel, Callback, WordPieceTokenizer, WordTokenizer, pretrain, read_paragraphs
from bertnli.tasks.pretraining import NOT_MASKED, BERTPretrainer, encode_paragraphs, mask_tokens, sentence_pairs
from bertnli.text.tokenizer import Tokenizer

WORDS = [f"w{i}" for i in range(20)]
PIECES = [*WordPieceTokenizer.SPECIAL, *"abcdef", *(f"##{c}" for c in "abcdef")]


def paragraphs(count: int = 60, seed: int = 0) -> list[list[str]]:
    """Each paragraph has words of its own kind, so that next sentences can be told."""
    rng = random.Random(seed)
    return [
        [" ".join(rng.choices(WORDS[2 * (i % 4) :][:2], k=rng.randint(3, 8))) for _ in range(rng.randint(1, 5))]
        for i in range(count)
    ]


def words() -> WordTokenizer:
    return WordTokenizer.from_texts([" ".join(WORDS)], min_freq=1)


def bert(tokenizer: Tokenizer, **sizes: Any) -> BERTModel:
    torch.manual_seed(0)
    small: dict[str, Any] = dict(num_hiddens=16, ffn_num_hiddens=32, num_heads=2, num_layers=2, max_len=64, dropout=0.0)
    return BERTModel(BERTConfig(len(tokenizer), **small | sizes))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abc def", max_size=40), min_size=2, max_size=12), st.booleans(), st.integers(0, 99))
def test_masks(sentences: list[str], whole_words: bool, seed: int) -> None:
    """The number of masked tokens, the rest unchanged, labels, and whole words."""
    tokenizer = WordPieceTokenizer(PIECES)
    plain = tokenizer.encode_pairs(sentences[:-1], sentences[1:], 64, labels=[1] * (len(sentences) - 1))
    encoded = mask_tokens(plain, tokenizer, np.random.default_rng(seed), whole_words)
    assert encoded.labels is not None
    for i, (begin, end) in enumerate(zip(plain.offsets[:-1].tolist(), plain.offsets[1:].tolist(), strict=True)):
        ids, changed, labels = (x[begin:end] for x in (plain.ids, encoded.ids, encoded.labels))
        masked = labels[1:] != NOT_MASKED
        assert labels[0] == 1
        assert torch.equal(labels[1:][masked], ids[1:][masked].long())
        assert torch.equal(changed[1:][~masked], ids[1:][~masked])
        assert not bool((masked & (ids[1:] == tokenizer.sep_id)).any())
        wanted, free = max(1, round(0.15 * len(ids))), int((ids[1:] != tokenizer.sep_id).sum())
        if not whole_words:
            assert int(masked.sum()) == min(wanted, free)
            continue
        texts = [tokenizer.id_to_token(int(t)) for t in ids[1:]]
        chosen = masked.tolist()
        for j in range(1, len(texts)):
            if texts[j].startswith("##"):
                assert chosen[j] == chosen[j - 1], (i, texts, chosen)
        starts = sum(m and not text.startswith("##") for m, text in zip(chosen, texts, strict=True))
        assert sum(chosen) <= wanted or starts == 1
        assert bool(starts) == bool(free)


def test_masks_are_drawn_evenly() -> None:
    """80 % `<mask>`, 10 % another token, 10 % the same, 15 % of all, at all places alike."""
    tokenizer = words()
    data = encode_paragraphs(tokenizer, [[" ".join(WORDS)] * 501], 64, seed=5)
    labels = data.labels
    assert labels is not None
    labels, ids = labels.view(500, 43), data.ids.view(500, 43)
    masked = labels[:, 1:] != NOT_MASKED
    share = masked.double().mean(0)
    assert share[[20, 41]].sum() == 0  # <sep>
    assert share.sum() == pytest.approx(round(43 * 0.15))
    assert share[torch.arange(42) % 21 != 20].min() > 0.08
    was, now = labels[:, 1:][masked], ids[:, 1:][masked]
    assert float((now == tokenizer.token_to_id("<mask>")).double().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((now == was).double().mean()) == pytest.approx(0.1, abs=0.03)
    assert float((labels[:, 0] == 1).double().mean()) == pytest.approx(0.5, abs=0.08)


def test_pairs_of_sentences() -> None:
    text = paragraphs()
    first, second, follows = sentence_pairs(text, np.random.default_rng(0))
    assert len(first) == sum(len(p) - 1 for p in text)
    place = iter(range(len(first)))
    for paragraph in text:
        for a, b in pairwise(paragraph):
            i = next(place)
            assert first[i] == a
            assert second[i] == b or not follows[i]
    assert {s for s, f in zip(second, follows, strict=True) if not f} <= {s for p in text for s in p}


def test_the_loss_is_d2ls() -> None:
    """Of the same masked examples, padded, in float64: the mean over masked words plus that over pairs."""
    tokenizer = words()
    model = BERTPretrainer(bert(tokenizer).double())
    data = encode_paragraphs(tokenizer, paragraphs(), 32)
    batch, size = data.batch(range(20)), len(tokenizer)
    outputs = model(batch)
    loss = model.loss(outputs, batch) / model.num_targets(batch)
    assert batch.labels is not None
    labels = batch.pad(batch.labels + 1) - 1  # padding is -1
    labels[labels < 0] = NOT_MASKED
    nsp, masked = labels[:, 0].clone(), labels.clone()
    masked[:, 0] = NOT_MASKED
    positions = [row.ne(NOT_MASKED).nonzero().squeeze(1) for row in masked]
    tokens, segments, valid_lens = data.to_padded(index=range(20))
    model.eval()
    wanted = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(positions):  # one by one, since D2L's mean counts padding
        columns = tokens[i : i + 1], segments[i : i + 1], valid_lens[i : i + 1], row[None], torch.ones(1, len(row))
        net = nn.ModuleDict({"mlm": model.mlm, "nsp": model.nsp})
        del net
        a, b = pretraining_losses(
            _triple(model), nn.CrossEntropyLoss(), size, *columns, masked[i, row][None], nsp[i : i + 1]
        )
        wanted = wanted + a * len(row) / model.num_targets(batch) + b / 20
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-7)
    correct = model.num_correct(outputs, batch)
    assert 0 <= int(correct) <= model.num_targets(batch)


def _triple(model: BERTPretrainer) -> Any:
    def net(tokens: Any, segments: Any, valid_lens: Any, positions: Any) -> Any:
        encoded = model.encoder(tokens, segments, valid_lens)
        return encoded, model.mlm(encoded, positions), model.nsp(model.hidden(encoded[:, 0]))

    return net


def test_it_learns_and_continues(tmp_path: Path) -> None:
    """Words of a paragraph are of one kind; next sentences too. An interrupted run ends equal."""
    tokenizer, text = words(), paragraphs(300)
    options: dict[str, Any] = dict(max_len=32, lr=5e-3, batch_size=32, progress=False, weight_decay=0.0)
    net = bert(tokenizer, dropout=0.1)
    history = pretrain(net, tokenizer, text, paragraphs(60, 9), epochs=12, **options)
    best = history.evaluations[-1].figures
    assert net.provenance["run"]["metric"] == "masked_accuracy"
    assert best["masked_accuracy"] > 0.25  # by chance 0.05
    assert best["next_sentence_accuracy"] > 0.6
    assert history.losses[-1] < history.losses[0] - 1
    net, twin = (bert(tokenizer, dropout=0.1) for _ in range(2))
    wanted = pretrain(net, tokenizer, text, epochs=2, **options).losses
    stop = Callback(on_step=lambda step: 1 // (7 - step.step))
    with pytest.raises(ZeroDivisionError):
        pretrain(twin, tokenizer, text, epochs=2, state_file=tmp_path / "s", save_steps=5, callbacks=[stop], **options)
    assert pretrain(twin, tokenizer, text, epochs=2, state_file=tmp_path / "s", **options).losses == wanted
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="no pretraining heads"):
        pretrain(bert(tokenizer, pretraining_heads=False), tokenizer, text)
    with pytest.raises(ValueError, match="no paragraph has two sentences"):
        pretrain(net, tokenizer, [["w1"], []])


def test_paragraphs_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One. Two! Is it?  Yes\n\n = x = \n a b . c d .\n", encoding="utf-8")
    assert read_paragraphs(tmp_path / "a.txt") == [["One.", "Two!", "Is it?", "Yes"], ["= x ="], ["a b .", "c d ."]]
    with pytest.raises(FileNotFoundError):
        read_paragraphs(tmp_path / "b.txt")
