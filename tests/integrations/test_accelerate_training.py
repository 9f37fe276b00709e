"""Training and pipelines of transformers, and PEFT, on accelerated models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.huggingface_models import TEXTS, make_inputs, make_model, make_tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

import bertnli
from bertnli.encoder.layers import EncoderBlock

FALLBACK = "runs its original modules"
INPUTS = make_inputs((20, 3, 7, 1, 20, 12, 9, 15))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


@pytest.fixture(autouse=True)
def no_fallback(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert FALLBACK not in caplog.text


def pair_of_models(**settings: Any) -> tuple[Any, Any]:
    """An accelerated classifier of three classes and an equal one that is not."""
    plain = make_model(BertForSequenceClassification, num_labels=3, initializer_range=0.1, **settings).train()
    return bertnli.accelerate(copy.deepcopy(plain)), plain


def train(model: Any, steps: int = 4, accumulate: int = 1) -> list[float]:
    """The loss of each batch of a plain loop."""
    optimizer, losses = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3), []
    for _ in range(steps):
        for i in range(accumulate):
            part = slice(i, None, accumulate)
            loss = model(**{name: value[part] for name, value in INPUTS.items()}, labels=LABELS[part]).loss
            losses.append(loss.item())
            (loss / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_every_gradient_is_equal() -> None:
    model, plain = pair_of_models()
    for some in (model, plain):
        some(**INPUTS, labels=LABELS).loss.backward()
    for (name, parameter), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None and not name.endswith("key.bias"):  # whose gradient is rounding
            torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_padding_token_gets_no_gradient() -> None:
    model, plain = pair_of_models()
    for some in (model, plain):
        some(input_ids=INPUTS["input_ids"], labels=LABELS).loss.backward()  # without a mask it is computed
    found, wanted = (some.get_input_embeddings().weight.grad for some in (model, plain))
    assert not found[0].any()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plain_loop_trains_alike(accumulate: int) -> None:
    model, plain = pair_of_models()
    assert train(model, accumulate=accumulate) == pytest.approx(train(plain, accumulate=accumulate), rel=2e-3)


def test_dropout_is_active_in_training_mode_only() -> None:
    model = bertnli.accelerate(make_model(BertForSequenceClassification, hidden_dropout_prob=0.5)).train()
    with torch.no_grad():
        assert not torch.equal(model(**INPUTS).logits, model(**INPUTS).logits)
        model.eval()
        assert torch.equal(model(**INPUTS).logits, model(**INPUTS).logits)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_call_in_training_mode_is_repeated_bit_for_bit(p: float) -> None:
    """With gradients or without, and be it the first one: losses with cached gradients rely on it."""
    model = bertnli.accelerate(make_model(BertForSequenceClassification, hidden_dropout_prob=p)).train()
    found = []
    for gradients in (False, True, False):
        torch.manual_seed(3)
        with torch.set_grad_enabled(gradients):
            found.append((model(**INPUTS).logits.detach(), torch.rand(1)))
    assert all(torch.equal(a, b) for call in found for a, b in zip(call, found[0], strict=True))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, plain = pair_of_models()
    recomputed: list[str] = []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    plain_forward = EncoderBlock.forward
    with pytest.MonkeyPatch.context() as patch:

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            recomputed.append("block")
            return plain_forward(*args, **kwargs)

        patch.setattr(EncoderBlock, "forward", forward)
        losses = train(model)
    assert len(recomputed) == 2 * 3 * 4
    assert losses == pytest.approx(train(plain), rel=2e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_compiled_models_train_alike() -> None:
    model, plain = pair_of_models()
    compiled: Any = torch.compile(model, backend="eager")
    assert train(compiled) == pytest.approx(train(plain), rel=2e-3)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(**INPUTS).logits, model(**INPUTS).logits, rtol=1e-4, atol=1e-5)


class Examples(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {**{name: value[i] for name, value in INPUTS.items()}, "labels": LABELS[i]}


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


@pytest.mark.filterwarnings("ignore")  # of Trainer
def test_trainer(tmp_path: Path) -> None:
    def losses(model: Any) -> list[float]:
        arguments = TrainingArguments(
            str(tmp_path), max_steps=6, per_device_train_batch_size=4, logging_steps=1, learning_rate=1e-3,
            gradient_accumulation_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, seed=1, save_steps=6,
        )  # fmt: skip
        callback = Losses()
        trainer = Trainer(model, arguments, train_dataset=Examples(), eval_dataset=Examples(), callbacks=[callback])
        trainer.train()
        return [*callback.losses, trainer.evaluate()["eval_loss"]]

    model, plain = pair_of_models()
    found, wanted = losses(model), losses(plain)
    assert len(found) == 7
    assert found == pytest.approx(wanted, rel=5e-3)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-6")
    assert loaded.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT uses it
@pytest.mark.parametrize("order", ["accelerate first", "adapters first"])
@pytest.mark.parametrize("layers", [["query", "value"], ["query", "key", "value", "dense", "word_embeddings"]])
def test_lora(layers: list[str], order: str) -> None:
    model, plain = pair_of_models()
    config = peft.LoraConfig(r=4, target_modules=layers, modules_to_save=["classifier"], init_lora_weights=False)
    adapted: list[Any] = []
    for some in (bertnli.restore(model), plain):
        torch.manual_seed(3)
        if order == "accelerate first" and some is model:
            bertnli.accelerate(some)
        adapted.append(peft.get_peft_model(some, config))
        if order == "adapters first" and some is model:
            bertnli.accelerate(adapted[0])
    losses = [train(some.train()) for some in adapted]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    for name, parameter in adapted[0].named_parameters():
        assert parameter.requires_grad == ("lora_" in name or "modules_to_save" in name)
    with torch.no_grad():
        found, wanted = (some.eval()(**INPUTS).logits for some in adapted)
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)
        merged = adapted[0].merge_and_unload()
        torch.testing.assert_close(merged(**INPUTS).logits, found, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_of_several_adapters_in_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    """PEFT's hooks divide the batch by its first dimension, the sequences."""
    model, plain = pair_of_models()
    names = ["default", "other", "__base__", "other", "default", "default", "__base__", "other"]
    found = []
    for some in (model, plain):
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=["query", "dense"], init_lora_weights=False)
        adapted: Any = peft.get_peft_model(some, config)
        adapted.add_adapter("other", config)
        with torch.no_grad():
            found.append(adapted.eval()(**INPUTS, adapter_names=names).logits)
    torch.testing.assert_close(*found)
    assert "has hooks" in caplog.text
    caplog.clear()


@pytest.mark.filterwarnings("ignore")  # of gradient checkpointing
def test_lora_with_gradient_checkpointing_stays_packed() -> None:
    """transformers puts a hook on the embeddings then, so that their output requires a gradient."""
    model, plain = pair_of_models()
    losses = []
    for some in (model, plain):
        torch.manual_seed(3)
        some.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        some.enable_input_require_grads()
        config = peft.LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"])
        losses.append(train(peft.get_peft_model(some, config)))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize(
    ("task", "kind", "inputs"),
    [
        ("text-classification", BertForSequenceClassification, TEXTS),
        ("token-classification", BertForTokenClassification, TEXTS),
        ("fill-mask", BertForMaskedLM, [text + " [MASK]" for text in TEXTS]),
        ("feature-extraction", BertForMaskedLM, TEXTS),
        ("zero-shot-classification", BertForSequenceClassification, TEXTS),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.filterwarnings("ignore")  # of pipelines
def test_pipelines(task: str, kind: Any, inputs: list[str], batch_size: int, tmp_path: Path) -> None:
    names: dict[str, Any] = dict(label2id={"entailment": 0, "neutral": 1}, id2label={0: "entailment", 1: "neutral"})
    make_pipeline: Any = pipeline  # whose overloads know no variable tasks
    made = make_pipeline(task, model=make_model(kind, **names), tokenizer=make_tokenizer(tmp_path), device=-1)
    more = dict(candidate_labels=["red", "blue dog"]) if task.startswith("zero") else {}
    batch_size = 1 if task == "feature-extraction" else batch_size  # its results include the padding
    wanted = made(inputs, batch_size=batch_size, **more)
    assert bertnli.accelerate(made) is made
    assert_close(made(inputs, batch_size=batch_size, **more), wanted)
    bertnli.restore(made)
    assert "forward" not in vars(made.model)


def assert_close(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_close(found[name], wanted[name])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b)
    elif wanted is None or isinstance(wanted, str):
        assert found == wanted
    else:
        assert float(found) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4)
