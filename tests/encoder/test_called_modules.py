"""Modules that are not exactly PyTorch's own are called: hooks, subclasses, parametrizations, adapters."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from helpers.models import TOLERANCE, block, difference, make_batch, make_encoded, make_head
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from bertnli import BERTClassifier, BERTTagger, Head, InferenceSession, fit, ops, score

ENCODED = make_encoded([9, 4, 30, 12])
BATCH = ENCODED.batch(range(4))
# These two are never called: the list of blocks, as in D2L, and what is part of the attention operator.
NEVER_CALLED = ("encoder.blks", "attention.dropout")


def gradients(model: Head) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = model(BATCH)
    outputs.square().sum().backward()
    return {"outputs": outputs.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("kind", [BERTClassifier, BERTTagger])
@pytest.mark.parametrize("original", [False, True])
def test_a_hook_on_any_module_is_called_once_and_changes_nothing(original: bool, kind: type[Head]) -> None:
    wanted = gradients(make_head(kind, original=original))
    names = [name for name, _ in make_head(kind, original=original).named_modules() if name]
    for name in [*names, "all"]:
        model, calls = make_head(kind, original=original), Counter[str]()
        for hooked, module in model.named_modules():
            if name in ("all", hooked):
                module.register_forward_hook(lambda *_, n=hooked, to=calls: to.update([n]))
        found = gradients(model)
        hooked_names = set(names) | {""} if name == "all" else {name}
        assert calls == Counter(n for n in hooked_names if not n.endswith(NEVER_CALLED)), name
        assert found.keys() == wanted.keys()
        for key, value in found.items():  # a key's bias has no influence: its gradient is rounding
            close = 1e-4 if key.endswith("W_k.bias") else 2e-5 * float(wanted[key].abs().max()) + 1e-6
            assert (value - wanted[key]).abs().max() <= close, (name, key)


@pytest.mark.parametrize("name", ["encoder.blks.0.attention.W_k", "encoder.blks.1.ffn", "encoder.embedding_norm"])
def test_backward_hooks_are_called(name: str) -> None:
    model, calls = make_head(), []
    model.get_submodule(name).register_full_backward_hook(lambda *_: calls.append(1))
    gradients(model)
    assert calls == [1]


def test_hooks_of_all_modules_are_called() -> None:
    model, calls = make_head(), Counter[str]()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.update([type(module).__name__]))
    try:
        model(BATCH)
    finally:
        handle.remove()
    assert calls["Linear"] == 2 * 6 + 2
    assert calls["LayerNorm"] == 2 * 2 + 1
    assert calls["Embedding"] == 2


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def double_by_class(layer: nn.Linear) -> None:
    layer.__class__ = Doubled


def double_by_forward(layer: nn.Linear) -> None:
    plain = layer.forward
    layer.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign, assignment]


def double_by_parametrization(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", Twice())
    parametrize.register_parametrization(layer, "bias", Twice())


@pytest.mark.parametrize("change", [double_by_class, double_by_forward, double_by_parametrization])
@pytest.mark.parametrize("name", ["attention.W_q", "attention.W_k", "attention.W_v", "attention.W_o", "ffn.dense1"])
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_other_linear_layers_compute_what_they_say(layer: int, name: str, change: Callable[[Any], None]) -> None:
    model, changed = make_head(), make_head()
    for some in (model, changed):
        for parameter in (
            *block(some, layer).attention.W_q.parameters(),
            *block(some, layer).attention.W_k.parameters(),
        ):
            parameter.mul_(20)  # so that the scores of the attention matter
    before = score(changed, ENCODED)
    for parameter in block(model, layer).get_submodule(name).parameters():
        parameter.mul_(2)
    change(block(changed, layer).get_submodule(name))
    changed.train().eval()  # a change in place is seen then
    assert difference(changed(BATCH), model(BATCH)) < TOLERANCE["fp32"]
    assert difference(score(changed, ENCODED), model(BATCH)) < TOLERANCE["fp32"]
    assert difference(before, model(BATCH)) > 1e-4


@torch.no_grad()
def test_layers_without_a_bias_and_pruned_ones() -> None:
    model, wanted = make_head(), make_head()
    for name in ("attention.W_q", "attention.W_o", "ffn.dense1", "ffn.dense2"):
        layer = block(model, 0).get_submodule(name)
        layer.register_parameter("bias", None)
        wanted.get_parameter(f"encoder.blks.0.{name}.bias").zero_()
    layer = block(model, 1).attention.W_v
    prune.l1_unstructured(layer, "weight", 0.5)
    block(wanted, 1).attention.W_v.weight.mul_(layer.get_buffer("weight_mask"))
    assert difference(model(BATCH), wanted(BATCH)) < TOLERANCE["fp32"]


class Rounded(Tensor):
    """Weights in int8, as a tensor subclass: what torchao's `quantize_` puts in the place of a layer's parameter."""

    int8: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor) -> Any:
        found: Any = Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)
        found.scale = weight.abs().amax(1, keepdim=True) / 127
        found.int8 = (weight / found.scale).round().to(torch.int8)
        return found

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["int8", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:  # by nn.Parameter
            return args[0]
        args = [x.int8 * x.scale if isinstance(x, cls) else x for x in args]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("name", ["attention.W_q", "attention.W_v", "attention.W_o", "ffn.dense2"])
def test_weights_that_are_a_tensor_subclass_compute_what_they_say(name: str) -> None:
    model, wanted = make_head(), make_head()
    plain = score(model, ENCODED)  # by a session, which sees that the parameter was replaced
    layer: Any = block(model, 0).get_submodule(name)
    layer.weight = nn.Parameter(Rounded(layer.weight), requires_grad=False)
    block(wanted, 0).get_parameter(f"{name}.weight").copy_(layer.weight.int8 * layer.weight.scale)
    for outputs in (score(model, ENCODED), model(BATCH)):
        assert difference(outputs, wanted(BATCH)) < TOLERANCE["fp32"] / 10
        assert difference(outputs, plain) > TOLERANCE["fp32"] / 10


def with_lora(model: Head, *layers: str, rank: int = 4) -> peft.PeftModel:
    """The model in PEFT's, with adapters that are not zero."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=list(layers), lora_dropout=0.0))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return adapted


ALL_LAYERS = ("W_q", "W_k", "W_v", "W_o", "dense1", "dense2", "token_embedding")


@pytest.mark.parametrize("layers", [("W_q", "W_v"), ALL_LAYERS])
@pytest.mark.parametrize("original", [False, True])
def test_lora_trains_and_equals_its_merged_weights(original: bool, layers: tuple[str, ...]) -> None:
    model = make_head(original=original)
    plain = score(model, ENCODED)
    adapted = with_lora(model, *layers).eval()
    outputs = adapted(BATCH)
    outputs.square().sum().backward()
    outputs = outputs.detach()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("lora_" in name), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name
    assert difference(outputs, plain) > 1e-3
    assert difference(score(model, ENCODED), outputs) < TOLERANCE["fp32"]  # the session before saw no adapters
    assert adapted.merge_and_unload() is model
    assert InferenceSession(model).fused
    assert difference(score(model, ENCODED), outputs) < 5e-6
    assert difference(model(BATCH), outputs) < 5e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_trains_adapters(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cpu_multiplies_bf16", lambda: True)  # every CPU does, some slowly
    model, train = make_head(original=False), make_encoded([9, 4, 30, 12])
    train.labels = torch.tensor([0, 1, 2, 0])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with_lora(model, *ALL_LAYERS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = copy.deepcopy(model)
    history = fit(model, train, epochs=3, lr=1e-2, precision=precision, batch_size=4, max_grad_norm=0, warmup=0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    optimizer, losses = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2), []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 3)
        loss = nn.functional.cross_entropy(plain(BATCH), train.labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close = 1e-4 if precision == "fp32" else 3e-2
    assert [epoch.train_loss for epoch in history.epochs] == pytest.approx(losses, rel=close)


@torch.no_grad()
def test_a_hook_or_layer_that_comes_after_a_score_is_seen_by_the_next() -> None:
    model = make_head()
    plain = score(model, ENCODED)
    handle = block(model, 0).ffn.dense1.register_forward_hook(lambda module, args, output: 2 * output)
    assert torch.equal(score(model, ENCODED), model(BATCH))
    assert not torch.equal(model(BATCH), plain)
    handle.remove()
    assert torch.equal(score(model, ENCODED), plain)
    model.output = Doubled(32, 3)
    assert difference(score(model, ENCODED), model(BATCH)) < TOLERANCE["fp32"]


def test_hooked_models_take_batches_without_tokens() -> None:
    model = make_head(BERTTagger)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    assert model(make_batch([])).shape == (0, 3)
