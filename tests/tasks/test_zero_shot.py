"""Zero-shot classification, with the pipeline of transformers as the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from helpers.checkpoints import make, save

from bertnli import Model

TEXTS = ["the dog runs", "b c d", "a " * 40, "cat"]
LABELS = ["dog", "cat", "a b", "sleeping"]
NLI = ("contradiction", "neutral", "entailment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("nli"), NLI)


def write(folder: Path, names: tuple[str, ...]) -> Path:
    labels: dict[str, Any] = dict(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return save(make("BertForSequenceClassification", **labels), folder)


@pytest.mark.parametrize("names", [NLI, ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")])
@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_the_pipelines(multi_label: bool, names: tuple[str, ...], tmp_path: Path) -> None:
    theirs: Any = transformers.pipeline("zero-shot-classification", model=str(write(tmp_path, names)), device="cpu")
    model = Model.from_pretrained(tmp_path)
    for labels in (LABELS, "dog, cat", ["dog"]):
        for template in ("This example is {}.", "the {} runs"):
            found = model.zero_shot(TEXTS, labels, template, multi_label=multi_label, batch_size=3)
            wanted = theirs(TEXTS, candidate_labels=labels, hypothesis_template=template, multi_label=multi_label)
            for prediction, reference in zip(found, wanted, strict=True):
                ranked = sorted(prediction.probabilities, key=lambda name: -prediction.probabilities[name])
                assert ranked == reference["labels"]
                scores = [prediction.probabilities[name] for name in ranked]
                assert scores == pytest.approx(reference["scores"], rel=1e-4, abs=1e-6)
                assert prediction.label == ranked[0] == list(prediction.probabilities)[prediction.label_id]


def test_labels_of_each_text(folder: Path) -> None:
    model = Model.from_pretrained(folder)
    labels = [["dog", "cat"], ["a"], ["cat", "dog", "b"], LABELS]
    for multi_label in (False, True):
        found = model.zero_shot(TEXTS, labels, multi_label=multi_label)
        for text, some, prediction in zip(TEXTS, labels, found, strict=True):
            (alone,) = model.zero_shot(text, some, multi_label=multi_label)
            assert list(prediction.probabilities) == some
            assert list(prediction.probabilities.values()) == pytest.approx(
                list(alone.probabilities.values()), rel=1e-5
            )
    assert model.zero_shot([], LABELS) == []


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], "{}", "the labels of text 0 must be one or more, all different"),
        (["a", "a"], "{}", r"the labels of text 0 must be one or more, all different; found \['a', 'a'\]"),
        ([["a"]], "{}", "labels are 1 lists for 4 texts; give one list, or one a text"),
        (["a"], "nothing", r"template must have \{\} in the label's place; found 'nothing'"),
    ],
)
def test_arguments_that_do_not_fit(labels: Any, template: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(folder).zero_shot(TEXTS, labels, template)


def test_other_models_are_refused(tmp_path: Path) -> None:
    model = Model.from_pretrained(write(tmp_path, ("a", "b")))
    with pytest.raises(ValueError, match="needs a classifier with a class named entailment; its classes are a, b"):
        model.zero_shot(TEXTS, LABELS)
