"""`score` and `evaluate`: eval mode inside, every mode restored, compiled models."""

from __future__ import annotations

import pytest
import torch
from helpers.models import TOLERANCE, difference, make_encoded, make_head
from torch import Tensor

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    InferenceSession,
    PackedBatch,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    evaluate,
    predict,
    score,
)

ENCODED = make_encoded([15, 25, 9, 40])


class DropsOutInLoss(BERTClassifier):
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert not self.dropout.training
        return super().loss(self.dropout(outputs), batch)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_model_in_training_scores_in_eval_mode(precision: str) -> None:
    model = make_head().train()
    found = score(model, ENCODED, precision=precision, batch_size=3)
    assert model.training
    with torch.no_grad():
        wanted = model.eval()(ENCODED.batch(range(4)))
    assert difference(found, wanted) < 2 * TOLERANCE[precision]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        score(model, ENCODED, batch_size=0)


class ExcludesAClass(BERTClassifier):
    def head(self, features: Tensor) -> Tensor:
        return super().head(features).index_fill(1, torch.tensor([2]), -torch.inf)


def test_outputs_that_are_not_finite_give_no_figures() -> None:
    encoded = make_encoded([9, 4])
    encoded.labels = torch.tensor([1, 0])
    for bad, kind in ((torch.nan, "NaN"), (torch.inf, "infinite")):
        model = make_head()
        torch.nn.init.constant_(model.output.bias, bad)
        with pytest.raises(ValueError, match=f"the model's outputs are {kind}: its training diverged"):
            evaluate(model, encoded)
    assert evaluate(make_head(ExcludesAClass), encoded)["loss"] > 0  # minus infinity excludes a class


@pytest.mark.parametrize("fused", [True, False])
def test_every_mode_is_restored(fused: bool) -> None:
    model = make_head()
    model.dropout.p = 0.5
    if not fused:
        model.encoder.blks[0].register_forward_hook(lambda *_: None)
    wanted = score(model, ENCODED)
    for part in (model.dropout, model.encoder.blks[1], model):
        part.train()
        modes = [m.training for m in model.modules()]
        assert torch.equal(score(model, ENCODED), wanted)
        assert [m.training for m in model.modules()] == modes


def test_a_hook_of_the_head_sees_eval_mode() -> None:
    model = make_head().train()
    seen: list[bool] = []
    model.register_forward_hook(lambda module, *_: seen.extend(m.training for m in (module, module.dropout)))
    score(model, ENCODED)
    assert seen == [False, False]
    assert model.dropout.training


@pytest.mark.parametrize("session", [True, False])
def test_evaluate_computes_losses_in_eval_mode(session: bool) -> None:
    encoded, model = make_encoded([9, 4]), make_head(DropsOutInLoss).train()
    encoded.labels = torch.tensor([1, 2])
    found = evaluate(InferenceSession(model) if session else model, encoded)
    assert found["examples"] == 2
    assert model.dropout.training


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("inside", [True, False])
def test_compiled_models_run_in_eval_mode(inside: bool) -> None:
    model = make_head()
    wanted = score(model, ENCODED)
    model.train()
    if inside:
        model.compile(backend="eager")
    compiled = model if inside else torch.compile(model, backend="eager")
    assert difference(score(compiled, ENCODED), wanted) < TOLERANCE["fp32"]  # type: ignore[arg-type]
    assert all(m.training for m in model.modules())
    with pytest.raises(ValueError, match="precision='int8' needs an unmodified"):
        score(compiled, ENCODED, precision="int8")  # type: ignore[arg-type]


def test_unknown_words_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    words = WordTokenizer(Vocab(["a", "man", "."], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))
    model = BERTClassifier(BERTModel(BERTConfig(len(words), num_hiddens=8, num_heads=2)))
    predict(model, words, "A man.", "A man")
    assert not caplog.records
    for _ in range(2):
        predict(model, words, ["A man", "a zebra"], ["A sushi.", "a Zebra"])
    (record,) = caplog.records
    assert "lacks 3 of the words: 'zebra', 'sushi', 'Zebra'. It sees no difference" in record.getMessage()
    pieces = WordPieceTokenizer.of_words(["a man ."], 1)
    predict(BERTClassifier(BERTModel(BERTConfig(len(pieces), num_hiddens=8, num_heads=2))), pieces, "a zebra", "中")
    assert "lacks 1 of the words: '中'." in caplog.records[-1].getMessage()
