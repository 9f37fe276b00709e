"""Long texts in windows, with transformers' tokenizer as the reference."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import PIECES, make, save
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

import bertnli
from bertnli import Model, TextData, WordPieceTokenizer
from bertnli.tasks.base import HEADS
from bertnli.text.windows import encode_windows

THEIRS: Any = BertTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)})
WORDS = ["the", "dog", "runs", "cat", "sleeping", "a", "b", "unknown", "[SEP]"]


def texts(seed: int, n: int = 6) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 40))) for _ in range(n)]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.integers(0, 17))
def test_windows_are_those_of_transformers(seed: int, max_len: int, stride: int) -> None:
    examples, tokenizer = texts(seed), WordPieceTokenizer(PIECES)
    if stride >= max_len - 2:
        with pytest.raises(ValueError, match=rf"stride must be an integer from 0 to below max_len - 2 = {max_len - 2}"):
            encode_windows(tokenizer, examples, max_len, stride)
        return
    found = encode_windows(tokenizer, examples, max_len, stride, labels=range(6))
    wanted = THEIRS(examples, truncation=True, max_length=max_len, stride=stride, return_overflowing_tokens=True)
    bounds = found.encoded.offsets.tolist()
    ids = [found.encoded.ids[a:b].tolist() for a, b in pairwise(bounds)]
    assert ids == wanted["input_ids"]
    assert found.encoded.labels is not None
    assert found.encoded.labels.tolist() == wanted["overflow_to_sample_mapping"]
    assert len(found) == 6
    plain = tokenizer.encode_texts(examples, 100)
    whole = encode_windows(tokenizer, examples, 100, 5)
    assert torch.equal(plain.ids, whole.encoded.ids)
    assert torch.equal(plain.offsets, whole.encoded.offsets)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.integers(0, 9))
def test_windows_of_pairs_are_those_of_transformers(seed: int, max_len: int, stride: int) -> None:
    first, second, tokenizer = texts(seed), texts(seed + 1), WordPieceTokenizer(PIECES)
    budget = max_len - 3
    if stride >= budget - budget // 2:
        with pytest.raises(ValueError, match="stride must be an integer from 0 to below half of max_len - 3"):
            encode_windows(tokenizer, first, max_len, stride, None, second)
        return
    found = encode_windows(tokenizer, first, max_len, stride, range(6), second)
    sequences = [(found.encoded.ids[a:b].tolist(), n) for (a, b), n in zip(
        pairwise(found.encoded.offsets.tolist()), found.encoded.first_lens.tolist(), strict=True)]  # fmt: skip
    for i, pair in enumerate(zip(first, second, strict=True)):
        mine = sequences[int(found.begins[i]) : int(found.begins[i + 1])]
        ids = [THEIRS(text, add_special_tokens=False)["input_ids"] for text in pair]
        longer = int(len(ids[1]) > len(ids[0]))
        fits = sum(map(len, ids)) <= budget
        if all(ids) and (fits or len(ids[1 - longer]) <= budget // 2):  # (to transformers an empty text is none)
            cut = ("only_first", "only_second")[longer]
            how = dict(truncation=cut, max_length=max_len, stride=stride, return_overflowing_tokens=True)
            theirs = THEIRS(*pair, **how)
            assert mine == [
                (row, kinds.index(1) if 1 in kinds else len(row))
                for row, kinds in zip(theirs["input_ids"], theirs["token_type_ids"], strict=True)
            ]
            continue
        parts = [(row[1 : n - 1], row[n:-1]) for row, n in mine]
        assert all(part[1 - longer] == ids[1 - longer][: None if fits else budget // 2] for part in parts)
        windows = [part[longer] for part in parts]
        assert windows[0] + [token for window in windows[1:] for token in window[stride:]] == ids[longer]
        assert all(len(row) == max_len for row, _ in mine[:-1])
    assert found.labels is not None
    assert found.labels.tolist() == list(range(6))


def model(task: str, tmp_path: Path, **more: Any) -> Model:
    theirs = make("BertModel")
    bert, tokenizer = bertnli.from_pretrained(save(theirs, tmp_path))
    names = ("x", "y", "z")
    head = HEADS[task](bert, 3, names) if task != "regression" else HEADS[task](bert)
    torch.nn.init.normal_(head.output.weight)
    head.settings |= {"max_len": 9, "stride": 2} | more
    return Model(head.eval(), tokenizer)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("kind", ["mean", "max"])
def test_outputs_are_pooled(task: str, kind: str, tmp_path: Path) -> None:
    some, examples = model(task, tmp_path / "bert", windows=kind), texts(1)
    windows = encode_windows(some.tokenizer, examples, 9, 2)
    assert len(windows.encoded) > 10
    outputs = bertnli.score(some.head, windows.encoded).split(windows.begins.diff().tolist())
    pooled = torch.stack([rows.mean(0) if kind == "mean" else rows.amax(0) for rows in outputs])
    torch.testing.assert_close(bertnli.score(some.head, windows), pooled)
    plain = some.head.predictions(pooled, None)
    for found in (some.predict(examples), bertnli.predict(some.head, some.tokenizer, examples)):
        assert len(found) == 6
        if task == "classification":
            assert [p.label_id for p in found] == pooled.argmax(1).tolist()
            assert found[0].probabilities == pytest.approx(plain[0].probabilities, rel=1e-5)
        if task == "regression":
            assert found == pytest.approx(plain, rel=1e-5)
    labels: dict[str, list[Any]] = {
        "classification": [0, 1, 2] * 2,
        "regression": [0.5, 1.0, 0.0] * 2,
        "multilabel": [[0, 1, 1]] * 6,
    }
    rows = labels[task]
    data = TextData(examples, None, rows, some.head.label_names or ())
    figures = some.evaluate(data)
    assert figures["examples"] == 6
    if task == "classification":
        assert figures["accuracy"] == pytest.approx(float((pooled.argmax(1) == torch.tensor(rows)).float().mean()))
    for format in ("bertnli", "huggingface"):
        some.save_pretrained(tmp_path / format, format=format)
        again = Model.from_pretrained(tmp_path / format)
        assert {"windows": kind, "stride": 2, "max_len": 9}.items() <= again.head.settings.items()
        assert again.evaluate(data) == figures


def test_training_learns_what_is_beyond_the_first_window(tmp_path: Path) -> None:
    rng = random.Random(0)
    names = [rng.choice(["cat", "dog"]) for _ in range(200)]
    data = [(" ".join(["b"] * rng.randint(8, 16) + [name] + ["c"] * rng.randint(0, 4)), name) for name in names]
    accuracy = {}
    for kind in (None, "max"):
        bert, tokenizer = bertnli.from_pretrained(save(make("BertModel"), tmp_path / str(kind)))
        some = Model(bertnli.BERTClassifier(bert, label_names=["cat", "dog"], dropout=0.0), tokenizer)
        if kind is not None:
            some.head.settings |= {"windows": kind, "stride": 1}
        some.fit(data[:150], data[150:], epochs=6, lr=3e-3, max_len=10, progress=False)
        accuracy[kind] = some.evaluate(data[150:])["accuracy"]
    assert accuracy["max"] > 0.9 > 0.8 > accuracy[None]


def test_pairs_are_pooled_in_every_function(tmp_path: Path) -> None:
    some = model("classification", tmp_path / "bert", windows="mean")
    documents, claims = texts(1), ["the dog", "a", "cat", "b", "runs", ""]
    windows = encode_windows(some.tokenizer, documents, 9, 2, None, claims)
    assert len(windows.encoded) > 10
    outputs = bertnli.score(some.head, windows.encoded).split(windows.begins.diff().tolist())
    wanted = torch.stack([rows.mean(0) for rows in outputs]).softmax(1)
    torch.testing.assert_close(torch.from_numpy(some.score(documents, claims)), wanted)
    ranked = some.rank(claims[0], documents, top_k=6, label="x")
    pairs = torch.from_numpy(some.score([claims[0]] * 6, documents, label="x"))
    assert [i for i, _ in ranked] == pairs.argsort(descending=True, stable=True).tolist()
    data = TextData(documents, claims, [0, 1, 2] * 2, some.head.label_names or ())
    figures = some.evaluate(data)
    assert figures["accuracy"] == pytest.approx(float((wanted.argmax(1) == torch.tensor(data.labels)).float().mean()))
    some.save_pretrained(tmp_path / "saved")
    assert Model.from_pretrained(tmp_path / "saved").evaluate(data) == figures


def test_what_is_refused(tmp_path: Path) -> None:
    some = model("classification", tmp_path, windows="median")
    with pytest.raises(ValueError, match=r"windows.* must be mean or max; found 'median'"):
        some.predict(["a"])
    some.head.settings["windows"] = "mean"
    some.head.settings["stride"] = 7
    with pytest.raises(ValueError, match="stride must be an integer from 0 to below max_len - 2 = 7; found 7"):
        some.predict(["a"])
