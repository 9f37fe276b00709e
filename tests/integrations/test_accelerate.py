"""`accelerate` on models of transformers against the same models without it."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.huggingface_models import VOCAB, make_inputs, make_model
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel

import bertnli
from bertnli.integrations.transformers import PackedForward

HEADS = [
    "BertModel",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
]
FALLBACK = "runs its original modules"
INPUTS = make_inputs()
MASK = INPUTS["attention_mask"].bool()


@pytest.fixture(params=HEADS)
def kind(request: pytest.FixtureRequest) -> Any:
    return getattr(transformers, request.param)


def valid(name: str, value: Tensor) -> Tensor:
    """The part of an output that does not belong to padding."""
    return value[MASK] if value.dim() > 1 and value.shape[1] == MASK.shape[1] else value


def assert_equal_outputs(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(valid(name, found[name]), valid(name, wanted[name]), rtol=1e-4, atol=3e-5)


@pytest.fixture
def no_fallback(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert FALLBACK not in caplog.text


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("gradients", [True, False])
def test_outputs_of_every_head_are_equal(kind: Any, gradients: bool) -> None:
    model = make_model(kind)
    with torch.no_grad():
        wanted = model(**INPUTS)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    assert bertnli.accelerate(model) is model
    with torch.set_grad_enabled(gradients):
        found = model(**INPUTS)
    assert_equal_outputs(found, wanted)
    if kind is BertModel:
        assert not found.last_hidden_state[~MASK].any()
    assert [value.requires_grad for value in found.values()] == [gradients] * len(found)
    assert list(model.state_dict()) == keys
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.usefixtures("no_fallback")
def test_other_ways_to_call(kind: Any) -> None:
    model = make_model(kind)
    plain = copy.deepcopy(model)
    bertnli.accelerate(model)
    ids = INPUTS["input_ids"]
    left = {name: value.flip(1) for name, value in INPUTS.items()}
    calls: list[dict[str, Any]] = [
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": MASK.float()},
        {**INPUTS, "position_ids": torch.arange(3, 23)[None]},
        {**INPUTS, "return_dict": False},
        {**INPUTS, "token_embeddings": torch.zeros(5, 20, 32)},  # of sentence-transformers, which no module reads
    ]
    if plain.base_model.pooler is None:
        calls += [left, {"input_ids": ids, "attention_mask": (ids % 3 > 0) | (torch.arange(20) == 0)}]
    for call in calls:
        with torch.no_grad():
            found, wanted = model(**call), plain(**call)
        assert type(found) is type(wanted)
        kept = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
        for a, b in zip(found[:], wanted[:], strict=True):
            per_token = a.dim() > 1 and a.shape[1] == 20
            torch.testing.assert_close(a[kept] if per_token else a, b[kept] if per_token else b, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    "name",
    ["output_hidden_states", "output_attentions", "inputs_embeds", "4-D mask", "left", "config"],
)
@torch.no_grad()
def test_what_only_the_modules_know_runs_them(name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = dict(output_hidden_states=True) if name == "config" else {}
    attention = "eager" if name == "output_attentions" else "sdpa"
    model = make_model(BertForSequenceClassification, attn_implementation=attention, **settings)
    call: dict[str, Any] = dict(INPUTS)
    if name == "inputs_embeds":
        call["inputs_embeds"] = model.get_input_embeddings()(call.pop("input_ids"))
    elif name == "4-D mask":
        call["attention_mask"] = (1.0 - MASK[:, None, None, :].float()) * torch.finfo(torch.float32).min
    elif name == "left":
        call = {key: value.flip(1) for key, value in INPUTS.items()}
    elif name != "config":
        call[name] = True
    wanted = model(**call)
    bertnli.accelerate(model)
    for _ in range(2):
        found = model(**call)
        assert torch.equal(found.logits, wanted.logits)
        assert len(found.hidden_states or ()) == len(wanted.hidden_states or ())
        assert len(found.attentions or ()) == len(wanted.attentions or ())
    assert caplog.text.count(FALLBACK) == 1
    if name != "config":
        assert not torch.equal(model(**INPUTS).logits, wanted.logits)  # packed again
        assert model.bert.forward.current().is_current(model.bert)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(is_decoder=True), "is a decoder"),
        (dict(hidden_act="silu"), "hidden_act is 'silu'"),
    ],
)
def test_models_that_bertnli_cannot_compute_are_refused(settings: dict[str, Any], reason: str) -> None:
    model = make_model(BertModel, **settings)
    with pytest.raises(ValueError, match=f"cannot be accelerated: .*{reason}"):
        bertnli.accelerate(model)
    assert "forward" not in vars(model)


def test_other_objects_are_refused() -> None:
    config = transformers.DistilBertConfig(vocab_size=VOCAB, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
    with pytest.raises(ValueError, match=r"DistilBertModel \(model_type distilbert\) has none"):
        bertnli.accelerate(transformers.DistilBertModel(config))
    with pytest.raises(TypeError, match="found int"):
        bertnli.accelerate(3)
    with pytest.raises(ValueError, match="precision must be one of"):
        bertnli.accelerate(make_model(BertModel), "fp16")

    model = make_model(BertModel)
    model.encoder.layer[1].attention = nn.Sequential()
    with pytest.raises(ValueError, match=r"encoder.layer.1.attention is a Sequential, not transformers' own"):
        bertnli.accelerate(model)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@torch.no_grad()
def test_precisions_of_inference(kind: Any, precision: str) -> None:
    model = make_model(kind, initializer_range=0.05)
    wanted = model(**INPUTS)
    found = bertnli.accelerate(model, precision)(**INPUTS)
    for name in wanted:
        a, b = valid(name, found[name]), valid(name, wanted[name])
        assert 0 < (a - b).abs().max() < 5e-2 * b.abs().max() + 1e-3, name


def test_int8_is_refused_where_modules_run() -> None:
    model = make_model(BertModel).double()
    with pytest.raises(ValueError, match="precision='int8' needs an unmodified"):
        bertnli.accelerate(model, "int8")


@torch.no_grad()
def test_dtypes_and_autocast(caplog: pytest.LogCaptureFixture) -> None:
    plain = make_model(BertForSequenceClassification)
    model = bertnli.accelerate(copy.deepcopy(plain))
    wanted = plain(**INPUTS).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**INPUTS).logits
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - wanted).abs().max() < 5e-2 * wanted.abs().max()
    torch.testing.assert_close(model.double()(**INPUTS).logits, plain.double()(**INPUTS).logits)
    assert FALLBACK not in caplog.text
    assert model.half()(**INPUTS).logits.dtype == torch.float16
    assert "torch.float16 on cpu" in caplog.text
    with pytest.raises(ValueError, match="input_ids are on meta, the model's parameters on cpu"):
        bertnli.accelerate(plain.float())(**{name: value.to("meta") for name, value in INPUTS.items()})


@torch.no_grad()
def test_changes_of_the_model_are_seen(kind: Any) -> None:
    model = bertnli.accelerate(make_model(kind))

    def check() -> None:
        plain = bertnli.restore(copy.deepcopy(model))
        assert_equal_outputs(model(**INPUTS), plain(**INPUTS))

    bert = model.base_model
    check()
    for parameter in bert.parameters():
        parameter.data.mul_(1.1)
    check()
    for parameter in bert.parameters():
        parameter.data = parameter.data * 0.9
    check()
    bert.encoder.layer[1].output.dense = nn.Linear(48, 32)
    check()
    bert.encoder.layer[2].output.dense.weight = nn.Parameter(torch.randn(32, 48))
    check()
    bert.encoder.layer[0].attention.output.LayerNorm = nn.LayerNorm(32)
    check()
    bert.encoder.layer[0], bert.encoder.layer[1] = bert.encoder.layer[1], bert.encoder.layer[0]
    check()
    bert.encoder.layer = bert.encoder.layer[:2]
    check()
    model.resize_token_embeddings(VOCAB + 7)
    check()
    nn.utils.parametrizations.weight_norm(bert.encoder.layer[0].attention.self.query)
    check()


HOOKED = ["", "embeddings", "embeddings.word_embeddings", "encoder.layer.1", "encoder.layer.1.intermediate.dense"]


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_hooks_see_what_they_see_in_the_original(name: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = make_model(BertForSequenceClassification)
    model = bertnli.accelerate(copy.deepcopy(plain))
    packed, seen = model(**INPUTS).logits, list[Any]()
    for some in (model, plain):
        hook = some.bert.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
        logits = some(**INPUTS).logits
        hook.remove()
        torch.testing.assert_close(logits, packed, rtol=1e-4, atol=1e-5)
    found, wanted = seen
    if name:
        assert torch.equal(found, wanted)
        assert f"{name} has hooks" in caplog.text
    else:  # one on the BertModel itself gets the vectors of all tokens
        assert_equal_outputs(found, wanted)
        assert FALLBACK not in caplog.text
    assert torch.equal(model(**INPUTS).logits, packed)


@torch.no_grad()
def test_hooks_of_all_modules_run_the_original_ones(caplog: pytest.LogCaptureFixture) -> None:
    model, seen = bertnli.accelerate(make_model(BertForSequenceClassification)), []
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__)):
        model(**INPUTS)
    assert seen.count("BertLayer") == 3
    assert "hooks are registered for all modules" in caplog.text


def test_copies_pickles_and_checkpoints(kind: Any, tmp_path: Path) -> None:
    model = make_model(kind)
    plain = copy.deepcopy(model)
    bertnli.accelerate(model)
    with torch.no_grad():
        wanted = model(**INPUTS)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            base = other.base_model
            assert isinstance(base.forward, PackedForward)
            assert base.forward.module is base
            assert_equal_outputs(other(**INPUTS), wanted)
            for parameter in base.parameters():
                parameter.mul_(0.5)
        assert_equal_outputs(model(**INPUTS), wanted)
    for name, saved in (("accelerated", model), ("plain", plain)):
        saved.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "accelerated" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_restore_undoes_all(kind: Any) -> None:
    model = make_model(kind)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    signature = inspect.signature(model.forward)
    wanted = model(**INPUTS)
    bertnli.accelerate(bertnli.accelerate(model), "bf16")
    assert inspect.signature(model.forward).parameters.keys() == signature.parameters.keys()
    assert bertnli.restore(model) is model
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    found = model(**INPUTS)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert bertnli.restore(model) is model
