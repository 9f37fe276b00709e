"""Checkpoints that transformers saves: every family, head, weight format; outputs equal to its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.checkpoints import batch, make, outputs, save, valid
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.activations import ACT2FN

from bertnli import BERTModel, Head, Model, from_pretrained, load_pretrained_model
from bertnli.checkpoint.families import FAMILIES, to_huggingface
from bertnli.checkpoint.huggingface import ACTIVATIONS

FAMILY_NAMES = ["Bert", "DistilBert", "Electra"]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def compare(theirs: Any, folder: Path) -> Head | BERTModel:
    """Load the folder, and compare the outputs with those of the model of transformers."""
    model, _ = from_pretrained(folder)
    b, found = batch(), outputs(theirs, batch())
    if isinstance(model, BERTModel):
        body = getattr(theirs, theirs.base_model_prefix, theirs)
        close(model.encoder(b), outputs(body, b).last_hidden_state[valid(b)])
    elif "start_logits" in found:
        close(model(b), torch.stack([found.start_logits, found.end_logits], -1)[valid(b)])
    else:
        close(model(b), found.logits if model.pooled else found.logits[valid(b)])
    return model


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    ("kind", "settings", "task"),
    [
        ("ForSequenceClassification", {"num_labels": 3}, "classification"),
        ("ForSequenceClassification", {"num_labels": 1}, "regression"),
        ("ForSequenceClassification", {"num_labels": 2, "problem_type": "regression"}, "regression"),
        ("ForTokenClassification", {"num_labels": 4}, "tagging"),
        ("ForQuestionAnswering", {}, "qa"),
        ("Model", {}, None),
        ("ForMaskedLM", {}, None),
        ("ForPreTraining", {}, None),
    ],
)
def test_every_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, kind: str, settings: dict[str, Any], task: str | None
) -> None:
    if (family, kind) == ("DistilBert", "ForPreTraining"):
        return  # there is no such class
    theirs = make(family + kind, **settings)
    model = compare(theirs, save(theirs, tmp_path))
    assert (model.task if isinstance(model, Head) else None) == task
    if isinstance(model, Head):
        assert not caplog.records  # nothing that the head computes with is new
    else:
        assert (model.mlm is not None) == (family != "Electra" and kind in ("ForMaskedLM", "ForPreTraining"))
        assert (model.nsp is not None) == (family == "Bert" and kind == "ForPreTraining")
        pooler = family == "Bert" and kind != "ForMaskedLM"
        assert ("lacks hidden.0.bias, hidden.0.weight: newly initialised" in caplog.text) == (not pooler)
        assert len(caplog.records) == (not pooler)
        load_pretrained_model(tmp_path)
    if kind == "ForMaskedLM" and family != "Electra":
        assert isinstance(model, BERTModel)
        b, positions = batch(), torch.zeros(5, 1, dtype=torch.int64)
        scores = model.eval()(b.pad(b.input_ids), b.pad(b.segment_ids), b.cu_seqlens.diff(), positions)[1]
        assert scores is not None
        close(scores[:, 0], outputs(theirs, b).logits[:, 0])


def test_embeddings_that_are_projected(tmp_path: Path) -> None:
    theirs = make("ElectraForSequenceClassification", embedding_size=16, num_labels=3)
    model = compare(theirs, save(theirs, tmp_path))
    assert model.config.embedding_size == 16
    edit(tmp_path / "config.json", embedding_size=8)
    with pytest.raises(ValueError, match=r"embedding_size is 8, but encoder.token_embedding.weight in .* \[17, 16\]"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_gradients(tmp_path: Path, family: str) -> None:
    """Of a loss, in float64; dropout is off."""
    off = dict(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    off |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)
    wide = {} if family != "Electra" else {"embedding_size": 16}
    theirs = make(f"{family}ForSequenceClassification", num_labels=3, **off, **wide).train().double()
    model, _ = from_pretrained(save(theirs, tmp_path))
    assert isinstance(model, Head)
    b, labels = batch(), torch.tensor([0, 2, 1, 1, 0])
    model.double().train()
    torch.nn.functional.cross_entropy(model(b), labels).backward()
    inputs = {"input_ids": b.pad(b.input_ids).long(), "attention_mask": valid(b), "labels": labels}
    theirs(
        **inputs, **({} if family == "DistilBert" else {"token_type_ids": b.pad(b.segment_ids).long()})
    ).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = to_huggingface(gradients, FAMILIES[family.lower()])
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def to_bin(folder: Path) -> None:
    """The shards of safetensors as files of torch."""
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    for path in folder.glob("model-*.safetensors"):
        name = path.name.replace("model", "pytorch_model").replace("safetensors", "bin")
        torch.save(load_file(path), folder / name)
        text = text.replace(path.name, name)
    for path in (*folder.glob("model-*.safetensors"), index):
        path.unlink()
    (folder / "pytorch_model.bin.index.json").write_text(text)


@pytest.mark.parametrize("format", ["float16", "bfloat16", "gamma", "shards", "shards.bin", "module"])
def test_every_weight_format(tmp_path: Path, format: str) -> None:
    theirs = make("BertForSequenceClassification", num_labels=3)
    if "float" in format:
        theirs = theirs.to(getattr(torch, format))
    save(theirs, tmp_path)
    if "shards" in format:
        (tmp_path / "model.safetensors").unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    if format == "shards.bin":
        to_bin(tmp_path)
    if format in ("gamma", "module"):
        state = {name: value.clone() for name, value in load_file(tmp_path / "model.safetensors").items()}
        state = {
            f"module.{k}"
            if format == "module"
            else k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
            for k, v in state.items()
        }
        save_file(state, tmp_path / "model.safetensors")
    model = compare(theirs.float(), tmp_path)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_broken_shards(tmp_path: Path) -> None:
    save(make("BertModel"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    make("BertModel").save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    name, shard = next(iter(whole["weight_map"].items()))
    for places, message in (
        ({**whole["weight_map"], name: "../x.safetensors"}, r"names the file '\.\./x\.safetensors'; expected one in"),
        ({**whole["weight_map"], "more": shard}, f"weight_map has more, which is not in {shard}"),
        ([], r"weight_map must be an object of each parameter's file; found \[\]"),
    ):
        index.write_text(json.dumps({**whole, "weight_map": places}))
        with pytest.raises(ValueError, match=rf"index\.json: .*{message}"):
            from_pretrained(tmp_path)
    index.write_text(json.dumps(whole))
    (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard} is missing"):
        from_pretrained(tmp_path)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model.bin"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", sorted(ACT2FN.keys()))
def test_every_activation(tmp_path: Path, kind: str) -> None:
    if kind in ACTIVATIONS:
        theirs = make("BertForSequenceClassification", num_labels=3, hidden_act=kind)
        compare(theirs, save(theirs, tmp_path))
        return
    save(make("BertModel"), tmp_path)
    edit(tmp_path / "config.json", hidden_act=kind)
    with pytest.raises(ValueError, match=rf"config\.json has hidden_act '{kind}'; known: relu, gelu, "):
        from_pretrained(tmp_path)


def test_activations_that_could_be_computed_are() -> None:
    """An activation of transformers that equals one of ours is not refused."""
    x = torch.linspace(-12, 12, 999)
    ours = {"relu": torch.relu(x), "gelu": torch.nn.functional.gelu(x)}
    ours["gelu_tanh"] = torch.nn.functional.gelu(x, approximate="tanh")
    for kind in ACT2FN:
        if kind in ("prelu", "xielu"):
            continue  # these have parameters
        same = {name for name, y in ours.items() if float((ACT2FN[kind](x) - y).abs().max()) < 2e-6}
        assert same == ({ACTIVATIONS[kind]} if kind in ACTIVATIONS else set())


@pytest.mark.parametrize(
    ("model_type", "title"), [("roberta", ", a RoBERTa"), ("modernbert", ", a ModernBERT"), ("no_such", ""), (3, "")]
)
def test_other_families_are_named(tmp_path: Path, model_type: object, title: str) -> None:
    save(make("BertModel"), tmp_path)
    edit(tmp_path / "config.json", model_type=model_type)
    with pytest.raises(
        ValueError, match=rf"config\.json has model_type '?{model_type}'?{title}; bertnli loads BERT, Dis"
    ):
        from_pretrained(tmp_path)


def test_what_is_no_encoder(tmp_path: Path) -> None:
    save(make("BertModel"), tmp_path)
    edit(tmp_path / "config.json", is_decoder=True)
    with pytest.raises(ValueError, match=r"config\.json has is_decoder True; only encoders can be loaded"):
        load_pretrained_model(tmp_path)


def test_the_trained_length_counts(tmp_path: Path) -> None:
    """Texts are truncated where AutoTokenizer truncates them."""
    theirs = make("BertForSequenceClassification", num_labels=3)
    save(theirs, tmp_path)
    edit(tmp_path / "tokenizer_config.json", model_max_length=7)
    model = Model.from_pretrained(tmp_path)
    assert model.head.sequence_len() == 7
    text = "the dog runs the cat sleeps a b c d e"
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)([text], truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**inputs).logits.softmax(1).numpy()
    np.testing.assert_allclose(model.score([text]), wanted, rtol=1e-4, atol=1e-5)
    for value, expected in ((10**30, 16), (512, 16), (None, 16)):
        edit(tmp_path / "tokenizer_config.json", model_max_length=value)
        assert Model.from_pretrained(tmp_path).head.sequence_len() == expected
    for wrong in ("7", 0, True):
        edit(tmp_path / "tokenizer_config.json", model_max_length=wrong)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: model_max_length must be a positive number"):
            from_pretrained(tmp_path)


@pytest.fixture(autouse=True)
def _warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "bertnli")
