"""What notebooks show of objects: tables, in which texts are escaped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tiny_tasks import PIECES, TASKS, teacher

from bertnli import Model, MultiLabelPrediction, Prediction, WordPieceTokenizer, evaluate, fit, score
from bertnli.inference.predict import evaluate_outputs
from bertnli.training import loop

TOKENIZER = WordPieceTokenizer(PIECES)


def test_predictions_are_bars_of_their_probabilities() -> None:
    shown = Prediction("<b>", 1, {"a": 0.25, "<b>": 0.75})._repr_html_()
    assert "<td>0.2500</td>" in shown
    assert "<b>&lt;b&gt;</b>" in shown
    assert "<b>a</b>" not in shown
    shown = MultiLabelPrediction(["a", "b"], [0, 1], {"a": 0.9, "b": 0.8, "c": 0.1})._repr_html_()
    assert [f"<b>{name}</b>" in shown for name in "abc"] == [True, True, False]


def test_a_model_says_what_it_is_and_was_trained_on() -> None:
    head = teacher()
    head.label_names = ("<none>", "some")
    model = Model(head, TOKENIZER, "int8")
    shown = model._repr_html_()
    for text in ("BERTClassifier", "&lt;none&gt;, some", "3 layers, width 64, at most 32 tokens", "cpu, int8"):
        assert text in shown
    assert f"{sum(p.numel() for p in head.parameters()):,}" in shown
    assert "trained" not in shown
    history = model.fit([("red", "one", 0), ("two", "red", 1)] * 4, [("red", "one", 0)], epochs=1, progress=False)
    assert history.best is not None
    assert f"8 sequences, epoch 1, dev accuracy {history.best.score:.4f}" in model._repr_html_()


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("keep_best", [True, False])
def test_a_history_has_the_dev_figures_of_the_weights_at_the_end(
    task: str, keep_best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the loop's own evaluations: nothing is computed again."""
    model, data = teacher(task), TASKS[task][0](24)
    train, dev = (model.encode(TOKENIZER, part) for part in (data, TASKS[task][0](12, 1)))
    calls: list[Any] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return evaluate_outputs(*args, **options)

    monkeypatch.setattr(loop, "evaluate_outputs", counted)
    history = fit(model, train, dev, epochs=3, lr=3e-3, keep_best=keep_best, progress=False)
    assert len(calls) == 3
    assert history.dev is not None
    figures, outputs = history.dev
    assert figures == evaluate(model, dev)
    assert torch.equal(outputs, score(model, dev))
    assert "dev" not in history.as_dict()
    assert copy.deepcopy(history) == history
    assert fit(teacher(task), train, epochs=1, progress=False).dev is None
