"""Model against the functions below it."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow
import pytest
import torch
from helpers.commands import LABELS, task_jobs

import bertnli
from bertnli import BERTConfig, BERTModel, Model, TextData, WordPieceTokenizer, WordTokenizer
from bertnli.tasks.base import HEADS, Head
from bertnli.tasks.convert import to_examples

WORDS = ["red", "green", "blue", "one", "two", "which", "colour", "?", "this", "example", "is", "."]
PAIRS = [("red one", "green two"), ("blue", "one one two"), ("two", "red"), ("green", "blue ?")]


def tiny(task: str, *names: str, columns: int = 1) -> Model:
    torch.manual_seed(0)
    tokenizer = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, *WORDS])
    sizes = dict(num_hiddens=16, ffn_num_hiddens=16, num_heads=2, num_layers=2, max_len=64)
    bert = BERTModel(BERTConfig.original(len(tokenizer), **sizes, dropout=0.0, pretraining_heads=False))
    head = HEADS[task](bert, len(names) or columns, names or None)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Model(head.eval(), tokenizer)


def frame(columns: dict[str, list[Any]], kind: str) -> Any:
    """The same columns as another kind of table."""
    if kind == "arrow":
        return pyarrow.table(columns)
    if kind == "dicts":
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "tuples":
        return list(zip(*columns.values(), strict=True))
    if kind == "frame":  # as pandas and polars have it: columns by name, each with `to_list`
        return Frame(columns)
    return columns


class Frame:
    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = np.array(list(columns))
        self.values = columns

    def __getitem__(self, name: str) -> Any:
        return Series(self.values[name])


class Series:
    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def to_list(self) -> list[Any]:
        return self.values


KINDS = ["arrow", "dicts", "tuples", "frame", "dict"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_predict_takes_examples_in_every_form(precision: str, tmp_path: Path) -> None:
    model = tiny("classification", *LABELS)
    model.precision = precision
    premises, hypotheses = map(list, zip(*PAIRS, strict=True))
    wanted = bertnli.predict(model.head, model.tokenizer, premises, hypotheses, precision=precision)
    assert model.predict(PAIRS) == model.predict(premises, hypotheses) == wanted
    for kind in KINDS:
        assert model.predict(frame({"premise": premises, "hypothesis": hypotheses}, kind)) == wanted
    other = {"id": [1, 2, 3, 4], "b": hypotheses, "a": premises}
    assert model.predict(frame(other, "frame"), text_columns=["a", "b"]) == wanted
    (tmp_path / "pairs.tsv").write_text("".join(f"{p}\t{h}\n" for p, h in PAIRS))
    assert model.predict(tmp_path / "pairs.tsv") == wanted
    assert model.predict([]) == []
    assert model.predict("red one") == bertnli.predict(model.head, model.tokenizer, "red one", precision=precision)
    model.head.settings["texts"] = 2
    with pytest.raises(ValueError, match="trained on pairs; found single texts"):
        model.predict(["red"])
    with pytest.raises(ValueError, match="data:2: expected 2 parts, as the first example has"):
        model.predict([("red", "one"), ("red",)])
    with pytest.raises(ValueError, match=r"no columns 'premise' and 'hypothesis' or .*its columns are id, b, a"):
        model.predict(frame(other, "frame"))


def test_predict_of_the_other_tasks() -> None:
    tagger, qa, regressor = tiny("tagging", "O", "B-x"), tiny("qa", columns=2), tiny("regression")
    sentences = [["red", "one"], ["blue"]]
    assert tagger.predict(sentences) == bertnli.predict(tagger.head, tagger.tokenizer, sentences)
    questions = [("which colour ?", "one red"), ("which ?", "blue two")]
    wanted = bertnli.predict(qa.head, qa.tokenizer, *zip(*questions, strict=True))
    assert qa.predict(questions) == wanted
    assert regressor.predict(["red", "one two"]) == bertnli.predict(
        regressor.head, regressor.tokenizer, ["red", "one two"]
    )


def test_score_and_rank() -> None:
    model, regressor = tiny("classification", *LABELS), tiny("regression")
    scores = model.score(PAIRS)
    assert scores.shape == (4, 3)
    assert scores.dtype == np.float32
    assert scores.tolist() == [list(p.probabilities.values()) for p in model.predict(PAIRS)]
    assert model.score(PAIRS, label="neutral").tolist() == scores[:, 2].tolist()
    assert model.score([]).shape == (0, 3)
    assert regressor.score(PAIRS).tolist() == regressor.predict(PAIRS)
    documents = [" ".join(random.Random(i).choices(WORDS, k=4)) for i in range(20)]
    scored = regressor.score([("red", document) for document in documents])
    order = sorted(range(20), key=lambda i: -scored[i])
    assert regressor.rank("red", documents, 5) == [(i, float(scored[i])) for i in order[:5]]
    assert len(regressor.rank("red", documents, 50)) == 20
    best = model.rank("red", documents, label="entailment")[0]
    assert best[1] == max(model.score([("red", document) for document in documents], label="entailment"))
    with pytest.raises(ValueError, match="a classifier ranks by the probability of a class"):
        model.rank("red", documents)
    with pytest.raises(ValueError, match="has no class 'no'; its classes are entailment, contradiction, neutral"):
        model.score(PAIRS, label="no")
    with pytest.raises(ValueError, match="score needs a classifier, or a head of one output; this is a BERTTagger"):
        tiny("tagging", "O", "B-x").score(["red"])


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_data_in_every_form(kind: str) -> None:
    """Names of classes and their indices, rows without a label."""
    premises, hypotheses = map(list, zip(*PAIRS, strict=True))
    wanted = TextData(premises[:3], hypotheses[:3], [2, 0, 1], tuple(LABELS), dropped=1)
    for labels in (
        ["neutral", "entailment", "contradiction", "-"],
        [2, 0, 1, -1],
        ["2", "0", "1", None],
        [2.0, 0.0, 1.0, math.nan],
    ):
        data = frame({"premise": premises, "hypothesis": hypotheses, "label": labels}, kind)
        model = tiny("classification", *LABELS)
        assert to_examples(data, model.head) == wanted
        figures = model.evaluate(data)
        encoded = model.tokenizer.encode_pairs(premises[:3], hypotheses[:3], labels=[2, 0, 1])
        assert figures == bertnli.evaluate(model.head, encoded)
        state = {name: value.clone() for name, value in model.head.state_dict().items()}
        losses = model.fit(data, data, epochs=2, batch_size=2, lr=1e-3, progress=False).losses
        assert model.head.settings["texts"] == 2
        model.head.load_state_dict(state)
        assert losses == bertnli.fit(model.head, encoded, epochs=2, batch_size=2, lr=1e-3, progress=False).losses


def test_indices_of_a_dataset_are_of_its_names() -> None:
    @dataclasses.dataclass
    class ClassLabel:
        names: list[str]

    class Dataset(dict[str, list[Any]]):
        features: ClassVar[Any] = {"label": ClassLabel(["entailment", "neutral", "contradiction"])}

    data = Dataset(premise=["red", "blue", "one"], hypothesis=["one", "two", "two"], label=[1, 2, -1])
    examples: Any = to_examples(data, tiny("classification", *LABELS).head)
    assert examples.labels == [LABELS.index("neutral"), LABELS.index("contradiction")]
    assert examples.dropped == 1


def test_labelled_data_of_the_other_tasks() -> None:
    tagger, qa, regressor = tiny("tagging", "O", "B-x"), tiny("qa", columns=2), tiny("regression")
    words, tags = [["red", "one"], ["blue"]], [["B-x", "O"], ["O"]]
    tables: list[Any] = [{"words": words, "tags": tags}, list(zip(words, [[1, 0], [0]], strict=True))]
    for data in tables:
        assert tagger.evaluate(data)["words"] == 3
        sentences: Any = to_examples(data, tagger.head)
        assert sentences.tags == [[1, 0], [0]]
    answers = [{"text": ["red"], "answer_start": [4]}, {"text": [], "answer_start": []}]
    questions = {"question": ["which ?", "which ?"], "context": ["one red", "two"], "answers": answers}
    examples: Any = to_examples(questions, qa.head)
    assert examples.answers == [[(4, "red")], []]
    assert qa.evaluate(questions)["examples"] == 2
    assert not qa.head.settings["no_answer"]
    qa.fit(questions, epochs=1, progress=False)  # as the command line does, it learns that a question may have none
    assert qa.head.settings["no_answer"]
    examples = to_examples([("red", 1), ("blue", -1.5)], regressor.head)
    assert (examples.labels, examples.label_names) == ([1.0, -1.5], ())


def test_labelled_data_that_does_not_fit() -> None:
    tagger, qa, pairs = (
        tiny("tagging", "O", "B-x").head,
        tiny("qa", columns=2).head,
        tiny("classification", *LABELS).head,
    )
    cases: list[tuple[Head, Any, str]] = [
        (tagger, [(["red"], ["O"]), (["red", "one"], ["O"])], r"data:2: expected a tag for each of 2 words"),
        (tagger, [(["red"], [None])], r"data:1: expected a tag for each of 1 words"),
        (tagger, [(["red", None], ["O", "O"])], r"data:1: expected a list of words"),
        (tagger, [("red", ["O"])], r"data:1: expected a list of words"),
        (
            qa,
            [("q", "a b", {"text": ["b"], "answer_start": [1]})],
            r"data:1: answers\[0\]: the context does not have 'b'",
        ),
        (
            pairs,
            [{"premise": "a", "hypothesis": "b", "label": 0}, {"premise": "a", "label": 0}],
            "data:2: .*no key 'hypo",
        ),
        (pairs, [("a", None, 0)], r"data:1: hypothesis is None, not a text"),
        (pairs, [("a", "b", 0), ("a", "\ud83d", 1)], r"data:2: character 0 of .* is a lone surrogate"),
        (pairs, [("a", "b", "Neutral")], r"data:1: unknown label 'Neutral'; expected one of entailment"),
    ]
    for head, data, message in cases:
        with pytest.raises(ValueError, match=message):
            to_examples(data, head)
    spellings: list[Any] = [None, [], {"text": [], "answer_start": []}]
    spelled = [("q", "a b", answers) for answers in spellings]
    assert to_examples(spelled, qa).answers == [[], [], []]  # type: ignore[union-attr]


def test_paths_are_read_as_the_command_reads_them(tmp_path: Path) -> None:
    (reading, name, *_) = task_jobs(tmp_path)["classification"]
    model = tiny("classification", "a", "b")
    columns: dict[str, Any] = dict(text_columns=["text"], label_column="kind")
    assert reading == ["--text-columns", "text", "--label-column", "kind"]
    encoded = bertnli.load_encoded(tmp_path / name, model.head, model.tokenizer, **columns)
    assert model.evaluate(tmp_path / name, **columns) == bertnli.evaluate(model.head, encoded)
    assert model.evaluate(str(tmp_path / name), **columns) == model.evaluate(encoded)
    history = model.fit(tmp_path / name, epochs=1, progress=False, max_len=20, **columns)
    assert len(history.epochs) == 1
    assert model.head.settings == {"max_len": 20, "texts": 1}
    with pytest.raises(TypeError, match="epoch"):
        model.fit(tmp_path / name, epoch=1, **columns)


def test_saving_and_loading(tmp_path: Path) -> None:
    model = tiny("classification", *LABELS)
    model.save_pretrained(tmp_path / "model")
    again = Model.from_pretrained(tmp_path / "model", device="cpu")
    assert again.predict(PAIRS) == model.predict(PAIRS)
    assert "BERTClassifier, classes entailment, contradiction, neutral" in repr(again)
    assert again.to("cpu") is again
    bertnli.save_pretrained(BERTModel(model.head.config), tmp_path / "bert", model.tokenizer)
    with pytest.raises(ValueError, match="has no output layer of a task; put one on it"):
        Model.from_pretrained(tmp_path / "bert")


def test_a_model_of_words_sets_punctuation_apart() -> None:
    torch.manual_seed(0)
    tokenizer = WordTokenizer.from_texts(["a man is n't sleeping ."], 1)
    bert = BERTModel(BERTConfig(len(tokenizer), num_hiddens=16, ffn_num_hiddens=16, num_heads=1, num_layers=1))
    model = Model(bertnli.BERTClassifier(bert, label_names=LABELS), tokenizer.vocab)
    apart, together = ("a man .", "a man is n't sleeping ."), ("A man.", "A man isn't sleeping.")
    assert model.predict([together]) == model.predict([apart])
    assert model.score([together]).tolist() == model.score([apart]).tolist()
    assert model.evaluate([(*together, 0)]) == model.evaluate([(*apart, "entailment")])
