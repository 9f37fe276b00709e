"""Explanations: complete, of the right words, and those of captum on a model of transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from helpers.commands import run
from helpers.huggingface_models import TEXTS, make_model, make_tokenizer
from helpers.tiny_tasks import PIECES, WORDS, teacher
from transformers import BertForSequenceClassification

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    Explanation,
    Model,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    save_pretrained,
)
from bertnli.report.explain import LEAST, TOLERANCE

TOKENIZER = WordPieceTokenizer(PIECES)


def assert_complete(found: Explanation) -> None:
    assert abs(found.error) <= TOLERANCE * abs(found.output - found.baseline) + LEAST
    for word in found.words:
        assert found.texts[word.part][word.start : word.end] == word.text != ""


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_scores_sum_to_the_difference_of_the_outputs(task: str) -> None:
    model = Model(teacher(task), TOKENIZER)
    with torch.no_grad():
        model.head.output.weight.mul_(20)
    for example in ("red one", ("red greens, one", "never  two"), ("red " * 40, "one " * 40), ("", "one")):
        found = model.explain(example)
        assert_complete(found)
        outputs = model._outputs([[text] for text in found.texts], 1)[0]
        assert found.output == pytest.approx(float(outputs.max()), abs=1e-4)
    assert found.target == (None if task == "regression" else model.head.label_names[int(outputs.argmax())])  # type: ignore[index]


def test_scores_are_those_of_captum_on_a_model_of_transformers(tmp_path: Path) -> None:
    theirs = make_model(BertForSequenceClassification, num_labels=3).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(tmp_path)
    with torch.no_grad():
        theirs.classifier.weight.mul_(30)
    theirs.save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path, device="cpu")

    def outputs(ids: torch.Tensor, segments: torch.Tensor) -> Any:
        return theirs(input_ids=ids, token_type_ids=segments).logits

    attribute = LayerIntegratedGradients(outputs, theirs.bert.embeddings.word_embeddings).attribute
    for pair in [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[0])]:
        for target in range(3):
            found = model.explain(pair, target=target)
            assert_complete(found)
            inputs = tokenizer(*pair, return_tensors="pt")
            ids = inputs["input_ids"]
            special = torch.tensor(tokenizer.get_special_tokens_mask(ids[0], already_has_special_tokens=True)).bool()
            baseline = ids.masked_fill(~special, tokenizer.pad_token_id)
            scores = attribute(
                ids, baseline, target=target, additional_forward_args=(inputs["token_type_ids"],), n_steps=300
            )[0].sum(1)
            sums: dict[tuple[int, int], float] = {}
            for i, part in enumerate(inputs.sequence_ids(0)):
                if part is not None:
                    word = (part, inputs.word_ids(0)[i])
                    sums[word] = sums.get(word, 0.0) + float(scores[i])
            assert len(sums) == len(found.words)
            largest = max(map(abs, sums.values()))
            np.testing.assert_allclose([w.score for w in found.words], list(sums.values()), atol=0.02 * largest)


@pytest.mark.parametrize("original", [False, True])
def test_a_model_that_reads_one_word(original: bool) -> None:
    """Every other token has the embedding of padding: it carries nothing, exactly. Pieces are one word."""
    torch.manual_seed(0)
    make = BERTConfig.original if original else BERTConfig
    sizes: dict[str, Any] = dict(num_hiddens=16, ffn_num_hiddens=16, num_heads=2, num_layers=2, max_len=32)
    head = BERTClassifier(BERTModel(make(len(PIECES), **sizes)), 2, ("no", "yes"))
    with torch.no_grad():
        table = head.encoder.token_embedding.weight
        table[:] = table[TOKENIZER.pad_id]
        table[[TOKENIZER.token_to_id("green"), TOKENIZER.token_to_id("##s")]] += 2.0
    found = Model(head, TOKENIZER).explain(("one Réd, red", "never greens!"), target="yes")
    assert found.target == "yes"
    assert [(w.text, w.part) for w in found.words] == [
        ("one", 0), ("Réd", 0), (",", 0), ("red", 0), ("never", 1), ("greens", 1), ("!", 1),
    ]  # fmt: skip
    assert {w.text for w in found.words if w.score} == {"greens"}
    assert_complete(found)


def test_words_of_a_word_vocabulary_lie_in_the_given_text() -> None:
    """The model reads the text with its punctuation set apart."""
    tokenizer = WordTokenizer(
        Vocab([["a", "man", "is", "n't", "asleep", ".", "u.s."]], reserved_tokens=WordTokenizer.SPECIAL)
    )
    head = BERTClassifier(BERTModel(BERTConfig(len(tokenizer), 16, 16, 2, 1)), 2)
    found = Model(head, tokenizer).explain("A\tman  isn't in the U.S.\n asleep.")
    assert [w.text for w in found.words] == ["A", "man", "is", "n't", "in", "the", "U.S.", "asleep", "."]
    assert_complete(found)


def test_what_cannot_be_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(teacher(), TOKENIZER)
    for target in ("neither", 2, -1):
        with pytest.raises(ValueError, match=r"no class 'neither'; its classes are none, some|between 0 and 1; found"):
            model.explain("red", target=target)
    with pytest.raises(ValueError, match="for classifiers and regressors; this is a BERTTagger"):
        Model(teacher("tagging"), TOKENIZER).explain(["red"])
    model.head.settings["windows"] = "mean"
    with pytest.raises(ValueError, match="splits texts"):
        model.explain("red")
    monkeypatch.setitem(sys.modules, "captum.attr", None)  # as if it were missing
    with pytest.raises(ImportError, match=r"pip install 'bertnli\[explain\]'"):
        model.explain("red")


def test_texts_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In notebooks and on the command's page."""
    save_pretrained(teacher(), tmp_path / "model", TOKENIZER)
    lines = ["red<script>alert(1)</script>one\tone & two", " ".join(WORDS) + "\tred"]
    (tmp_path / "in.tsv").write_text("".join(f"{line}\n" for line in lines))
    page = tmp_path / "page.html"
    status, out, err = run(
        "explain", "--model", tmp_path / "model", "--input", tmp_path / "in.tsv", "--html", page, "--target", "some",
        capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["texts"] for each in found] == [line.split("\t") for line in lines]
    assert {each["target"] for each in found} == {"some"}
    assert {"text", "start", "end", "part", "score"} == set(found[0]["words"][0])
    shown = page.read_text(encoding="utf-8")
    assert "<script" not in shown
    assert "&lt;" in shown
    assert shown.count("Example ") == 2
