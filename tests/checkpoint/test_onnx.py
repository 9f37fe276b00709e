"""ONNX models in ONNX Runtime against bertnli's modules and transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from helpers.checkpoints import PIECES, SIZES, batch, make, outputs, save, valid
from torch import Tensor, nn

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTQuestionAnswering,
    BERTRegressor,
    BERTTagger,
    Head,
    Model,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    export_onnx,
    from_pretrained,
)

HEADS: dict[str, Any] = {
    "classification": lambda bert: BERTClassifier(bert, 3),
    "regression": BERTRegressor,
    "tagging": lambda bert: BERTTagger(bert, 4),
    "qa": BERTQuestionAnswering,
}


def new_head(task: str = "classification", **changes: Any) -> Head:
    torch.manual_seed(1)
    config = BERTConfig.original(len(PIECES), **{**SIZES["Bert"], "max_len": 16, **changes}, pretraining_heads=False)
    head: Head = HEADS[task](BERTModel(config)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head


def run(folder: Path, inputs: dict[str, Tensor], file: str = "model.onnx") -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    feed = {value.name: inputs[value.name].long().numpy() for value in session.get_inputs()}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def padded(rows: int, length: int) -> tuple[dict[str, Tensor], Any]:
    b = batch(rows, length)
    names = ("input_ids", "token_type_ids", "attention_mask")
    values = (b.pad(b.input_ids), b.pad(b.segment_ids), b.pad(torch.ones_like(b.input_ids)))
    return dict(zip(names, values, strict=True)), b


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu_tanh", "norm_eps": 1e-3, "num_segments": 3},
        {"embedding_norm": False, "activation": "relu"},
        {"num_hidden_layers": 0},
        {"embedding_size": 8, "pooler_activation": "gelu"},
        {"pooler_activation": "relu", "train_segments": False},
    ],
)
def test_every_head_and_variant(tmp_path: Path, task: str, changes: dict[str, Any]) -> None:
    head = new_head(task, **changes)
    (check,) = export_onnx(head, tmp_path, WordPieceTokenizer(PIECES), num_samples=20)
    assert check.examples == 20
    assert check.difference < 1e-5 * max(1, float(head.output.weight.detach().abs().sum(1).max()))
    assert math.isnan(check.agreement) if task == "regression" else check.agreement == 1
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert {domain.domain for domain in onnx.load(str(tmp_path / "model.onnx")).opset_import} == {""}
    for rows, length in ((1, 1), (5, 9), (3, 16)):  # batch and length are free
        inputs, b = padded(rows, length)
        found = torch.stack(run(tmp_path, inputs), -1)
        found = found if task == "qa" else found[..., 0]
        wanted = head(b)
        torch.testing.assert_close(found if head.pooled else found[valid(b)], wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "DistilBertForTokenClassification",
                                  "ElectraForQuestionAnswering"])  # fmt: skip
def test_it_equals_transformers(tmp_path: Path, kind: str) -> None:
    theirs = make(kind)
    model, tokenizer = from_pretrained(save(theirs, tmp_path / "in"))
    assert isinstance(model, Head)
    export_onnx(model, tmp_path / "out", tokenizer, num_samples=5)
    inputs, b = padded(5, 9)
    for ours, wanted in zip(run(tmp_path / "out", inputs), outputs(theirs, b).to_tuple(), strict=True):
        ours, wanted = (ours, wanted) if model.pooled else (ours[valid(b)], wanted[valid(b)])
        torch.testing.assert_close(ours, wanted, rtol=2e-5, atol=2e-5)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == [kind]
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the dog")["input_ids"]
    assert ids[1:-1] == tokenizer.encode("the dog")


def test_int8(tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    head = new_head(**sizes)
    exact, rounded = export_onnx(head, tmp_path, WordPieceTokenizer(PIECES), num_samples=300, int8=True)
    assert (exact.file, rounded.file) == (tmp_path / "model.onnx", tmp_path / "model_quantized.onnx")
    assert exact.difference < 1e-4 < rounded.difference
    assert rounded.agreement > 0.8
    assert rounded.file.stat().st_size < 0.5 * exact.file.stat().st_size
    export_onnx(head, tmp_path, WordPieceTokenizer(PIECES), num_samples=5)
    assert not rounded.file.exists()  # it was another model's


def test_words_and_a_sample(tmp_path: Path) -> None:
    """D2L's variant and vocabulary: configuration and vocabulary are bertnli's."""
    tokenizer = WordTokenizer(Vocab([["the", "dog", "runs"]], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))
    torch.manual_seed(0)
    head = BERTClassifier(BERTModel(BERTConfig(len(tokenizer), num_hiddens=8, ffn_num_hiddens=8, num_heads=2))).eval()
    sample = tokenizer.encode_pairs(["the dog"] * 7, ["runs"] * 7, 9, labels=[0] * 7)
    (check,) = export_onnx(head, tmp_path, tokenizer, sample, num_samples=4)
    assert check.examples == 4
    assert json.loads((tmp_path / "config.json").read_text())["format"] == "bertnli"
    assert Vocab.from_json(tmp_path / "vocab.json").idx_to_token == tokenizer.vocab.idx_to_token
    encoded = sample.to_padded(9)
    inputs = dict(zip(("input_ids", "token_type_ids"), encoded[:2], strict=True))
    inputs["attention_mask"] = (torch.arange(9) < encoded[2][:, None]).long()
    torch.testing.assert_close(run(tmp_path, inputs)[0], head(sample.batch(range(7))), rtol=2e-5, atol=2e-5)


def test_a_model_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = new_head()
    attention = head.encoder.get_submodule("blks.0.attention")
    attention.W_q = nn.Sequential(attention.get_submodule("W_q"))
    with pytest.raises(ValueError, match=r"'encoder\.blks\.0\.attention\.W_q\.weight' is missing: a layer was"):
        export_onnx(head, tmp_path, WordPieceTokenizer(PIECES))

    class Doubled(BERTClassifier):
        def head(self, features: Tensor) -> Tensor:
            return 2 * super().head(features)

    with pytest.raises(ValueError, match="a Doubled computes in its own way"):
        export_onnx(Doubled(new_head()), tmp_path, WordPieceTokenizer(PIECES))
    monkeypatch.setattr("bertnli.checkpoint.onnx._MASKED", -1.0)  # padding is attended to
    with pytest.raises(ValueError, match=r"model\.onnx: outputs differ from the model's by up to "):
        export_onnx(new_head(), tmp_path, WordPieceTokenizer(PIECES))


def test_cross_encoder_on_onnx_runtime(tmp_path: Path) -> None:
    """The files are where optimum and sentence-transformers look for them."""
    head = new_head("regression")
    head.settings["activation"] = "sigmoid"
    export_onnx(head, tmp_path, WordPieceTokenizer(PIECES), num_samples=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    pairs = [("the dog runs", "a cat"), ("b", "c d e")]
    inputs = tokenizer(pairs, padding=True, return_tensors="pt")
    scores = torch.sigmoid(run(tmp_path, inputs)[0][:, 0]).numpy()
    np.testing.assert_allclose(Model(head, WordPieceTokenizer(PIECES)).score(pairs), scores, rtol=1e-5)
