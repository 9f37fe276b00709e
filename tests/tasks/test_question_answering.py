"""Questions and contexts to rows, rows to answers, answers to figures."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bertnli import (
    Answer,
    BERTConfig,
    BERTModel,
    BERTQuestionAnswering,
    QuestionData,
    WordPieceTokenizer,
    evaluate,
    fit,
    predict,
    read_squad,
)
from bertnli.tasks.question_answering import answer_metrics, best_spans, encode_questions, normalized

PIECES = [*WordPieceTokenizer.SPECIAL, "who", "is", "the", "man", "dog", "barks", "a", "b", "c", "##x", ".", "?"]


@pytest.mark.parametrize(("max_len", "stride"), [(384, 128), (128, 32), (96, 0)])
def test_windows_are_those_of_transformers(data_dir: Path, minilm_dir: Path, max_len: int, stride: int) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    ours = WordPieceTokenizer.from_file(minilm_dir / "tokenizer.json")
    data = read_squad(data_dir / "xquad" / "xquad.en.json")[:300]
    encoded = encode_questions(ours, data, max_len, stride)
    found = theirs(
        list(data.questions), list(data.contexts), truncation="only_second", max_length=max_len, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    pairs = encoded.encoded
    assert len(pairs) == len(found["input_ids"])
    owner = torch.repeat_interleave(torch.arange(len(data)), encoded.begins.diff()).tolist()
    assert owner == found["overflow_to_sample_mapping"]
    answered = 0
    assert pairs.labels is not None
    assert data.answers is not None
    for i, (ids, offsets, kind) in enumerate(
        zip(found["input_ids"], found["offset_mapping"], found["token_type_ids"], strict=True)
    ):
        low, high = pairs.offsets[i], pairs.offsets[i + 1]
        assert pairs.ids[low:high].tolist() == ids
        assert int(pairs.first_lens[i]) == len(kind) - sum(kind)
        places = list(zip(encoded.starts[low:high].tolist(), encoded.ends[low:high].tolist(), strict=True))
        inside = [j for j, k in enumerate(kind) if k][:-1]
        assert [places[j] for j in inside] == [tuple(offsets[j]) for j in inside]
        assert all(places[j] == (-1, -1) for j in range(len(ids)) if j not in set(inside))
        # The label by the recipe of transformers' examples.
        start, text = data.answers[owner[i]][0]
        end = start + len(text)
        first, last = pairs.labels[i].tolist()
        if not (offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end):
            assert (first, last) == (0, 0)
            continue
        answered += 1
        assert first == max(j for j in inside if offsets[j][0] <= start)
        assert last == min(j for j in inside if offsets[j][1] >= end)
        assert normalized(text) in normalized(data.contexts[owner[i]][places[first][0] : places[last][1]])
    assert answered >= 300 * 0.9


def test_best_spans_by_trying_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 12, 4)
        offsets = torch.tensor(np.concatenate([[0], lengths.cumsum()]))
        total, most = int(offsets[-1]), int(rng.integers(1, 9))
        outputs = torch.tensor(rng.normal(size=(total, 2)), dtype=torch.float32)
        allowed = torch.tensor(rng.random(total) < 0.8)
        score, length = best_spans(outputs, allowed, offsets, most)
        row = np.repeat(np.arange(4), lengths)
        for i in range(total):
            ends = [j for j in range(i, min(total, i + most)) if allowed[i] and allowed[j] and row[i] == row[j]]
            if not ends:
                assert score[i] == -np.inf
                continue
            best = max(ends, key=lambda j: float(outputs[i, 0] + outputs[j, 1]))
            assert score[i] == pytest.approx(float(outputs[i, 0] + outputs[best, 1]))
            assert length[i] == best - i + 1


def model(**settings: object) -> BERTQuestionAnswering:
    torch.manual_seed(0)
    config = BERTConfig.original(
        len(PIECES), num_hiddens=32, ffn_num_hiddens=64, num_heads=2, num_layers=2, max_len=24, dropout=0.0
    )
    net = BERTQuestionAnswering(BERTModel(config))
    net.settings.update(stride=4, **settings)
    return net


def questions(n: int, unanswerable: float = 0.0) -> QuestionData:
    """ "who barks?": the word before "barks" in a context that has several windows."""
    rng = random.Random(0)
    contexts, answers = [], []
    for _ in range(n):
        words = rng.choices(["the", "is", "A", "b", "c", "man"], k=30)
        who = rng.choice(["Dog", "MANx", "cx"])
        at = rng.randrange(28)
        has = rng.random() >= unanswerable
        if has:
            words[at : at + 2] = [who, "barks"]
        contexts.append("  ".join(words) + ".")
        answers.append([(len("  ".join([*words[:at], ""])), who)] if has else [])
    ids = [str(i) for i in range(n)]
    return QuestionData(["who barks?"] * n, contexts, answers, ids, ids)


@pytest.mark.parametrize("unanswerable", [0.0, 0.4])
def test_it_learns_to_answer_from_long_contexts(unanswerable: float) -> None:
    data, tokenizer = questions(150, unanswerable), WordPieceTokenizer(PIECES)
    net = model(no_answer=unanswerable > 0)
    encoded = net.encode(tokenizer, data, 24)
    assert len(encoded.encoded) == 2 * len(data)
    assert data.answers is not None
    fit(net, encoded, epochs=12, batch_size=16, lr=4e-3, progress=False)
    figures = evaluate(net, encoded)
    assert figures["exact_match"] > 0.9
    assert ("without_answer" in figures) == (unanswerable > 0)
    answers = predict(net, tokenizer, data.questions, data.contexts, max_len=24)
    for answer, context in zip(answers, data.contexts, strict=True):
        assert context[answer.start : answer.end] == answer.text  # cut from the context as it was given
    right = sum(a.text == (known[0][1] if known else "") for a, known in zip(answers, data.answers, strict=True))
    assert right / len(data) == pytest.approx(figures["exact_match"])
    assert predict(net, tokenizer, data.questions[0], data.contexts[0], max_len=24) == answers[:1]


def test_no_answer_is_a_matter_of_the_threshold() -> None:
    net, tokenizer = model(no_answer=True), WordPieceTokenizer(PIECES)
    encoded = net.encode(tokenizer, QuestionData(["who?"], ["A dog. The man."], None, ["0"], ["0"]), 24)
    outputs = torch.zeros(len(encoded.encoded.ids), 2)
    outputs[0] = torch.tensor([3.0, 2.0])  # <cls>
    outputs[4] = torch.tensor([2.0, 0.0])
    outputs[5] = torch.tensor([0.0, 1.0])
    assert net.predictions(outputs, encoded) == [Answer("", 0, 0, 5.0)]
    net.settings["threshold"] = 2.5
    assert net.predictions(outputs, encoded) == [Answer("A dog", 0, 5, 3.0)]
    net.settings.update(threshold=0.0, no_answer=False)
    assert net.predictions(outputs, encoded) == [Answer("A dog", 0, 5, 3.0)]
    net.settings["max_answer"] = 1
    assert net.predictions(outputs, encoded)[0].text in ("A", "dog")


def test_bad_rows() -> None:
    tokenizer = WordPieceTokenizer(PIECES)
    data = questions(2)
    with pytest.raises(ValueError, match="it must be more than stride=16"):
        encode_questions(tokenizer, data, 20, 16)
    with pytest.raises(ValueError, match="stride must not be negative; found -1"):
        encode_questions(tokenizer, data, 20, -1)
    with pytest.raises(ValueError, match="leaves 0 tokens"):
        encode_questions(tokenizer, data, 5, 0)
    empty = encode_questions(tokenizer, QuestionData(["who?"], [""], [[]], ["0"], ["0"]), 20, 4)
    assert len(empty.encoded) == 1
    assert model().predictions(torch.zeros(5, 2), empty)[0].text == ""
    with pytest.raises(ValueError, match="2 questions for 1 contexts"):
        predict(model(), tokenizer, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="2 outputs, not 3"):
        BERTQuestionAnswering(model(), 3)


@pytest.mark.parametrize(
    ("guess", "truth", "exact", "f1"),
    [
        ("The  Cat!", ["cat"], 1, 1),
        ("a cat sat", ["the cat", "dog"], 0, 2 / 3),
        ("dog cat cat", ["cat cat bird"], 0, 2 / 3),
        ("theatre", ["atre"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),
        ("U.S.A", ["usa"], 1, 1),
    ],
)
def test_figures(guess: str, truth: list[str], exact: float, f1: float) -> None:
    figures = answer_metrics([guess], [truth])
    assert figures["exact_match"] == exact
    assert figures["f1"] == pytest.approx(f1)


def test_figures_are_those_of_the_official_script() -> None:
    """By way of torchmetrics, which has its rules."""
    from torchmetrics.text import SQuAD

    rng = random.Random(0)
    words = ["The", "cat", "a", "dog's", "U.S.", "7%", "an", "7", "cats,", "dog", "cat"]
    guesses = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(400)]
    truths = [[" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(3)] for _ in range(400)]
    rows = [(g, [t for t in ts if normalized(t)]) for g, ts in zip(guesses, truths, strict=True) if normalized(g)]
    rows = [(g, ts) for g, ts in rows if ts]
    metric = SQuAD()
    metric.update(
        [{"prediction_text": g, "id": str(i)} for i, (g, _) in enumerate(rows)],
        [{"answers": {"answer_start": [0] * len(ts), "text": ts}, "id": str(i)} for i, (_, ts) in enumerate(rows)],
    )
    wanted = metric.compute()
    figures = answer_metrics([g for g, _ in rows], [ts for _, ts in rows])
    assert len(rows) > 300
    assert figures["exact_match"] * 100 == pytest.approx(float(wanted["exact_match"]), rel=1e-5)
    assert figures["f1"] * 100 == pytest.approx(float(wanted["f1"]), rel=1e-5)
    assert 5 < float(wanted["exact_match"]) < 95
