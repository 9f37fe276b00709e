"""Training options: their checks, and how `fit` takes them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from helpers.tiny_models import classifier, pairs

from bertnli import TrainingOptions, fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 500}, "warmup must be at most 1"),
        ({"warmup": -0.1}, "warmup must be at least 0"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"precision": "int4"}, "precision must be one of"),
        ({"freeze": "half"}, "freeze must be None"),
        ({"freeze": 4}, "0 to 3 layers"),
        ({"epochs": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"batch_tokens": 0}, "must be at least 1"),
        ({"batch_size": 8, "batch_tokens": 100}, "either batch_size=8 examples or batch_tokens=100"),
        ({"freeze": True}, "freeze must be None"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1"),
        ({"class_weights": "equal"}, "class_weights must be None"),
        ({"class_weights": {"7": 1.0}}, "class_weights has a class '7' that the model does not have"),
        ({"class_weights": {0: -1.0}}, "class_weights must be finite and at least 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"patience": 2}, "patience=2 needs dev data"),
        ({"metric": "loss"}, "metric='loss' needs dev data"),
        ({"max_grad_norm": -0.5}, "max_grad_norm must be at least 0"),
        ({"seed": 2**60}, "seed must be at most"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(classifier(), pairs(), progress=False, **options)


def test_options_are_given_whole_or_by_name() -> None:
    options = TrainingOptions(epochs=2, batch_size=16, lr=1e-3)
    losses = fit(classifier(), pairs(), options=options, progress=False).losses
    assert losses == fit(classifier(), pairs(), epochs=2, batch_size=16, lr=1e-3, progress=False).losses
    assert losses != fit(classifier(), pairs(), options=options, lr=2e-3, progress=False).losses
    with pytest.raises(TypeError, match=r"no option 'epoch'; did you mean 'epochs'\?"):
        fit(classifier(), pairs(), epoch=2)
    with pytest.raises(TypeError, match=r"no option 'xyz'; the options are epochs, batch_size, "):
        fit(classifier(), pairs(), xyz=2)


def test_every_option_describes_itself() -> None:
    for field in fields(TrainingOptions):
        assert field.metadata["help"]
        assert field.metadata["type"] is not None
        assert (field.metadata["choices"] is None) == (field.name not in ("optimizer", "precision", "schedule"))
    parse = {field.name: field.metadata["type"] for field in fields(TrainingOptions)}["freeze"]
    assert [parse(text) for text in ("none", "encoder", "2")] == [None, "encoder", 2]
    parse = {field.name: field.metadata["type"] for field in fields(TrainingOptions)}["class_weights"]
    assert [parse(text) for text in ("none", "balanced", "a=b=2,c=0.5")] == [None, "balanced", {"a=b": 2, "c": 0.5}]
    with pytest.raises(ValueError, match="expected balanced or NAME=WEIGHT"):
        parse("a:2")


def test_the_key_holds_all_options_that_change_the_result() -> None:
    options = TrainingOptions()
    assert options.key() == TrainingOptions(batch_size=32, cuda_graphs=True).key()
    assert TrainingOptions(max_grad_norm=0).key() == TrainingOptions(max_grad_norm=None).key() != options.key()
    changes: list[dict[str, Any]] = [
        {"batch_tokens": 64},
        {"lr": 1e-3},
        {"seed": 1},
        {"schedule": "cosine"},
        {"layer_decay": 0.9},
        {"class_weights": {0: 2.0}},
        {"eval_steps": 7},
        {"freeze": "encoder"},
        {"precision": "bf16"},
    ]
    for change in changes:
        assert replace(options, **change).key() != options.key()
