"""The best checkpoints of a run, and the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluations import accuracies, pretend
from helpers.tiny_tasks import PIECES, teacher, texts

from bertnli import WordPieceTokenizer, evaluate, fit, from_pretrained, keep_checkpoints


def test_the_best_and_the_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run is continued; folders that the callback did not write stay."""
    pretend(monkeypatch, accuracies([0.5, 0.9, 0.7, 0.9, 0.1, 0.2]))
    (tmp_path / "kept" / "step-3").mkdir(parents=True)
    tokenizer, model = WordPieceTokenizer(PIECES), teacher()
    data = model.encode(tokenizer, texts(20))
    options: dict[str, Any] = dict(batch_size=10, state_file=tmp_path / "state.pt", progress=False)
    options["callbacks"] = [keep_checkpoints(model, tokenizer, tmp_path / "kept", keep=2)]
    fit(model, data, data, epochs=3, **options)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"step-3", "step-4", "step-6"}
    fit(model, data, data, epochs=6, **options)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"step-3", "step-4", "step-8", "step-12"}
    assert json.loads((tmp_path / "kept" / "step-8" / "evaluation.json").read_text())["score"] == 0.9


def test_a_kept_checkpoint_has_the_evaluated_weights(tmp_path: Path) -> None:
    tokenizer, model = WordPieceTokenizer(PIECES), teacher()
    data = model.encode(tokenizer, texts(40))
    callbacks = [keep_checkpoints(model, tokenizer, tmp_path, keep=9)]
    options: dict[str, Any] = dict(epochs=2, batch_size=10, eval_steps=3, lr=1e-3, progress=False)
    history = fit(model, data, data, callbacks=callbacks, **options)
    for evaluation in history.evaluations:
        loaded, _ = from_pretrained(tmp_path / f"step-{evaluation.step}")
        assert evaluate(loaded, data)["loss"] == pytest.approx(evaluation.loss, rel=1e-6)  # type: ignore[arg-type]
    assert len({evaluation.loss for evaluation in history.evaluations}) == len(history.evaluations) == 4


def test_keep_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        keep_checkpoints(teacher(), WordPieceTokenizer(PIECES), tmp_path, keep=0)
