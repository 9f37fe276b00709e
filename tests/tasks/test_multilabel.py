"""Multi-label classification, with scikit-learn and transformers as references."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow
import pytest
import torch
import transformers
from helpers.checkpoints import make, save
from helpers.tiny_tasks import PIECES, WORDS, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sklearn import metrics

import bertnli
from bertnli import BERTConfig, BERTModel, BERTMultiLabelClassifier, EncodedTexts, Model, WordPieceTokenizer
from bertnli.data.labels import multi_hot
from bertnli.tasks.convert import to_examples
from bertnli.tasks.multilabel import best_threshold

NAMES = ("red", "green", "blue")
ROWS = [["red", "blue"], [], ["green"], ["blue", "green", "red"]]
HOT = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]


def tiny(names: tuple[str, ...] | None = NAMES) -> Model:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(num_hiddens=32, ffn_num_hiddens=48, num_heads=2, num_layers=2, max_len=32)
    bert = BERTModel(BERTConfig.original(len(PIECES), **sizes, dropout=0.0, pretraining_heads=False))
    return Model(BERTMultiLabelClassifier(bert, len(NAMES), names), WordPieceTokenizer(PIECES))


def examples(n: int) -> list[tuple[str, list[str]]]:
    """Texts, and the colours that occur in them."""
    data = texts(n)
    return [(text, [name for name in NAMES if name in text.split()]) for text in data.first]


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        ROWS,
        HOT,
        np.array(HOT, bool),
        [[float(x) for x in row] for row in HOT],
        ["red, blue", "[]", "green", '["blue", "green", "red"]'],
    ],
)
def test_labels_of_every_kind(labels: Any) -> None:
    found: Any = to_examples({"text": list("abcd"), "label": list(labels)}, tiny().head)
    assert (found.labels, found.label_names) == (HOT, NAMES)
    assert found.dropped == 0


def test_labels_of_files(tmp_path: Path) -> None:
    """A list in .jsonl and .parquet, names with a separator in .csv. An empty cell is no label."""
    data: dict[str, list[Any]] = {"text": list("abcd"), "kinds": ROWS}
    parquet.write_table(pyarrow.table(data), tmp_path / "a.parquet")
    lines = [json.dumps({"text": text, "kinds": row}) + "\n" for text, row in zip(*data.values(), strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    cells = [";".join(row) or "[]" for row in ROWS]
    rows = "".join(f"{text},{cell}\n" for text, cell in zip(data["text"], cells, strict=True))
    (tmp_path / "a.csv").write_text(f"text,kinds\n{rows}e,\n")
    options: dict[str, Any] = dict(text_columns=["text"], label_column="kinds", separator=";")
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        found: Any = bertnli.load_examples(tmp_path / name, "multilabel", **options)
        order = [NAMES.index(name) for name in found.label_names]
        assert np.array_equal(found.labels, np.array(HOT)[:, order])
        assert found.label_names == ("blue", "green", "red")
        named: Any = bertnli.load_examples(tmp_path / name, "multilabel", labels=NAMES, **options)
        assert named.labels == HOT
        assert named.dropped == (name == "a.csv")
    (tmp_path / "bad.csv").write_text("text,kinds\na,red\nb,pink\n")
    with pytest.raises(ValueError, match=r"bad\.csv:3: unknown label 'pink'; expected some of red, green, blue"):
        bertnli.load_examples(tmp_path / "bad.csv", "multilabel", labels=NAMES, **options)
    with pytest.raises(ValueError, match="multilabel needs text_columns and label_column"):
        bertnli.load_examples(tmp_path / "bad.csv", "multilabel")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("[0, 1]", r"x:1: \[0, 1\] is no row of 3 zeros and ones, one a class"),
        ("[0, 2, 1]", "x:1: .* is neither a list of names nor a row of zeros and ones"),
        ("[null]", r"x:1: \[null\] is neither a list of names"),
        ('[{"a": 1}]', "x:1: .* is neither a list of names"),
    ],
)
def test_rows_that_are_no_labels(label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_hot([label], ["x:1"], NAMES, ",")


# ---- loss, figures, predictions -------------------------------------------------------------------------------------


def encoded(labels: Any) -> EncodedTexts:
    model = tiny()
    return model.tokenizer.encode_texts(WORDS[: len(labels)], labels=labels)


def test_the_loss_is_that_of_transformers() -> None:
    outputs = torch.randn(4, 3, dtype=torch.float64)
    data, head = encoded(HOT), tiny().head
    batch = data.batch(range(4))
    loss = head.loss(outputs, batch) / head.num_targets(batch)
    assert loss == torch.nn.BCEWithLogitsLoss()(outputs, torch.tensor(HOT, dtype=torch.float64))
    padded = batch.padded(len(batch.input_ids) + 5, 6, head.ignored)
    assert head.loss(torch.cat([outputs, torch.randn(2, 3)]), padded) == head.loss(outputs, batch)
    two = head.logits(outputs, batch)
    assert two is not None
    torch.testing.assert_close(two.softmax(-1)[..., 1], outputs.sigmoid())
    for labels, message in (
        ([[0, 1]] * 4, r"labels of shape \[4, 2\]; expected a row of 3 zeros and ones"),
        ([[0, 1, 2]] * 4, "labels other than 0 and 1"),
        ([0, 1, 1, 0], r"labels of shape \[4\]"),
    ):
        assert re.match(message, str(head.label_error(torch.tensor(labels))))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_figures_and_thresholds(n: int, seed: int, few_values: bool) -> None:
    """Figures as of scikit-learn; no threshold has a better F1 than the chosen one."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (n, 3))
    scores = rng.random((n, 3)).round(1 if few_values else 6).clip(1e-3, 1 - 1e-3)
    head = tiny().head
    data: Any = type("Data", (), {"labels": torch.from_numpy(truth)})
    outputs = torch.logit(torch.from_numpy(scores)).float()
    for tuned in (False, True):
        if tuned:
            head.tune(outputs, data)
        chosen = outputs.sigmoid().numpy() >= np.float32(head.settings["thresholds"] or 0.5)
        figures = head.metrics(outputs, data)
        for name, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
            wanted = metrics.f1_score(truth, chosen, average=average, zero_division=0)
            assert figures[name] == pytest.approx(wanted)
        assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, chosen))
        p, r, f, s = metrics.precision_recall_fscore_support(truth, chosen, zero_division=0)
        for i, name in enumerate(NAMES):
            wanted = {"precision": p[i], "recall": r[i], "f1": f[i], "support": s[i]}
            assert figures["per_class"][name] == pytest.approx(wanted)
    for i, threshold in enumerate(head.settings["thresholds"]):
        column = outputs.sigmoid().numpy()[:, i]
        best = max(metrics.f1_score(truth[:, i], column >= cut, zero_division=0) for cut in [*column, 2.0])
        assert f[i] == pytest.approx(best)
        assert best_threshold(column, truth[:, i] > 0) == threshold


# ---- training, checkpoints ------------------------------------------------------------------------------------------


def test_training_tunes_thresholds_and_every_format_keeps_them(tmp_path: Path) -> None:
    model, train, dev = tiny(), examples(300), examples(60)
    model.fit(train, dev, epochs=8, batch_size=16, lr=3e-3, progress=False)
    assert len(model.head.settings["thresholds"]) == 3
    figures = model.evaluate(dev)
    assert figures["micro_f1"] > 0.95
    (prediction,) = model.predict(["red one two blue"])
    assert prediction.labels == ["red", "blue"]
    assert prediction.label_ids == [0, 2]
    assert json.dumps(asdict(prediction))
    assert model.score(["red one two blue"])[0].tolist() == list(prediction.probabilities.values())
    assert model.score(["red one"], label="red")[0] > 0.5
    for format in ("bertnli", "huggingface"):
        model.save_pretrained(tmp_path / format, format=format)
        again = Model.from_pretrained(tmp_path / format)
        assert again.head.settings["thresholds"] == model.head.settings["thresholds"]
        assert again.evaluate(dev) == figures
    config = json.loads((tmp_path / "huggingface" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    pipeline: Any = transformers.pipeline("text-classification", model=str(tmp_path / "huggingface"), device="cpu")
    found = {entry["label"]: entry["score"] for entry in pipeline("red one two blue", top_k=None)}
    assert found == pytest.approx(prediction.probabilities, rel=1e-4)
    model.head.settings["thresholds"] = [0.5, 2, 0.5]
    with pytest.raises(ValueError, match=r"must be 3 numbers from 0 to 1; found \[0.5, 2, 0.5\]"):
        model.predict(["red"])


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Electra"])
def test_checkpoints_of_transformers(kind: str, tmp_path: Path) -> None:
    labels: dict[str, Any] = dict(num_labels=3, problem_type="multi_label_classification")
    theirs = make(f"{kind}ForSequenceClassification", **labels)
    model = Model.from_pretrained(save(theirs, tmp_path))
    assert isinstance(model.head, BERTMultiLabelClassifier)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = theirs(**tokenizer(["the dog runs"], return_tensors="pt")).logits
    np.testing.assert_allclose(model.score(["the dog runs"]), logits.sigmoid(), rtol=1e-4, atol=1e-6)


def test_a_dataset_names_its_classes() -> None:
    class Dataset(dict[str, list[Any]]):
        features: ClassVar[Any] = {
            "label": type("Sequence", (), {"feature": type("ClassLabel", (), {"names": list(NAMES)})})
        }

    found: Any = to_examples(Dataset(text=["a", "b", "c"], label=[[0, 2], [], None]), tiny().head)
    assert found.labels == HOT[:2]
    assert found.dropped == 1
