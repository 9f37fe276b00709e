"""Sentence vectors, with SentenceTransformer as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import make, save
from torch import nn

from bertnli import BERTClassifier, BERTEmbedder, BERTModel, Model, from_pretrained, load_pretrained_model
from bertnli.distillation.student import make_student

reference = pytest.importorskip("sentence_transformers")
modules = reference.sentence_transformer.modules
TEXTS = ["the dog runs", "b c d", "", "a", "the cat sleeps a b c d e the dog runs and runs a b c", "dog the"]
MODES = ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"]


def sentence_transformer(folder: Path, *others: Any, kind: str = "BertModel", **options: Any) -> Any:
    save(make(kind), folder / "plain")
    transformer = modules.Transformer(str(folder / "plain"))
    model = reference.SentenceTransformer(modules=[transformer, *others], device="cpu", **options)
    model.save_pretrained(str(folder / "saved"))
    return model


def assert_close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["BertModel", "DistilBertModel"])
def test_pooling(mode: str, kind: str, tmp_path: Path) -> None:
    normalize = (MODES.index(mode) % 2 == 0) is (kind == "BertModel")
    others = [modules.Pooling(32, mode), *([modules.Normalize()] if normalize else [])]
    theirs = sentence_transformer(tmp_path, *others, kind=kind)
    model = Model.from_pretrained(tmp_path / "saved")
    vectors = model.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 32)
    assert_close(vectors, theirs.encode(TEXTS))
    assert_close(model.encode(TEXTS[0]), theirs.encode(TEXTS[0]))
    assert_close(model.encode(TEXTS, batch_size=2), vectors)
    assert_close(model.encode(TEXTS, normalize=True), theirs.encode(TEXTS, normalize_embeddings=True))
    assert model.encode([]).shape == (0, 32)
    model.save_pretrained(tmp_path / "own")
    assert np.array_equal(Model.from_pretrained(tmp_path / "own").encode(TEXTS), vectors)
    model.save_pretrained(tmp_path / "huggingface", format="huggingface")
    assert_close(reference.SentenceTransformer(str(tmp_path / "huggingface"), device="cpu").encode(TEXTS), vectors)
    assert_close(Model.from_pretrained(tmp_path / "huggingface").encode(TEXTS), vectors)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_padded_calls_and_precisions(precision: str, tmp_path: Path) -> None:
    """The fused operator and the modules pool alike."""
    theirs = sentence_transformer(tmp_path, modules.Pooling(32, "mean"))
    model = Model.from_pretrained(tmp_path / "saved", precision)
    wanted = theirs.encode(TEXTS)
    error = np.abs(model.encode(TEXTS) - wanted).max() / np.abs(wanted).max()
    assert error < {"fp32": 2e-6, "bf16": 2e-2, "int8": 6e-2}[precision]
    encoded = model.tokenizer.encode_texts(TEXTS, 16)
    with torch.no_grad():
        assert_close(model.head(encoded.to_padded()), wanted)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Identity(), nn.ReLU(), nn.GELU(), nn.Sigmoid()])
def test_a_dense_layer(activation: nn.Module, tmp_path: Path) -> None:
    dense = modules.Dense(32, 8, bias=not isinstance(activation, nn.ReLU), activation_function=activation)
    theirs = sentence_transformer(tmp_path, modules.Pooling(32, "mean"), dense, modules.Normalize())
    model = Model.from_pretrained(tmp_path / "saved")
    assert_close(model.encode(TEXTS), theirs.encode(TEXTS))
    model.save_pretrained(tmp_path / "own")
    assert_close(Model.from_pretrained(tmp_path / "own").encode(TEXTS), theirs.encode(TEXTS))
    with pytest.raises(ValueError, match="sentence vectors of a dense layer are saved in bertnli's format only"):
        model.save_pretrained(tmp_path / "huggingface", format="huggingface")


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_prompts_and_lengths(tmp_path: Path, kind: str) -> None:
    prompts = {"query": "the dog ", "document": "a "}
    options: dict[str, Any] = dict(prompts=prompts, default_prompt_name="document", truncate_dim=8)
    theirs = sentence_transformer(tmp_path, modules.Pooling(32, "mean"), **options)
    name = f"sentence_{kind}_config.json"
    (tmp_path / "saved" / "sentence_bert_config.json").unlink()
    (tmp_path / "saved" / name).write_text('{"max_seq_length": 6, "do_lower_case": true}')
    settings = tmp_path / "saved" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "truncate_dim": 8}))
    theirs.max_seq_length = 6
    model = Model.from_pretrained(tmp_path / "saved")
    assert model.head.sequence_len() == 6
    choices: list[dict[str, Any]] = [{}, {"prompt_name": "query"}, {"prompt": "b c "}, {"prompt": ""}]
    for prompt in choices:
        assert_close(model.encode(TEXTS, **prompt), theirs.encode(TEXTS, **prompt))
    model.save_pretrained(tmp_path / "huggingface", format="huggingface")
    again = reference.SentenceTransformer(str(tmp_path / "huggingface"), device="cpu")
    assert_close(again.encode(TEXTS), model.encode(TEXTS))
    with pytest.raises(ValueError, match="the model has no prompt 'other'; it has document, query"):
        model.encode(TEXTS, prompt_name="other")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, r"pooling is \['mean', 'cls'\]; expected one of"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "has include_prompt false"),
        ("2_Dense/config.json", {"activation_function": "x.Softmax"}, "activation_function is 'x.Softmax'; known"),
        ("2_Dense/config.json", {"use_residual": True}, "has use_residual true"),
        ("sentence_bert_config.json", {"max_seq_length": "9"}, "max_seq_length must be an integer of at least 2"),
        (
            "sentence_bert_config.json",
            {"processor_kwargs": {"a": 1}},
            r"has processor_kwargs \{'a': 1\}, which are not",
        ),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim must be a positive integer; found 0"),
        ("config_sentence_transformers.json", {"prompts": [1]}, "prompts must be an object of texts by name"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "q"},
            "default_prompt_name is 'q'; prompts has n",
        ),
        (
            "modules.json",
            [{"type": f"a.{kind}", "path": ""} for kind in ("Transformer", "Pooling", "LSTM")],
            "after the Transformer come Pooling, LSTM; only Pooling, then at most one Dense and Normalize can be",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(file: str, content: Any, message: str, tmp_path: Path) -> None:
    sentence_transformer(tmp_path, modules.Pooling(32, "mean"), modules.Dense(32, 8))
    (tmp_path / "saved" / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(tmp_path / "saved")
    assert file in str(error.value)
    assert isinstance(load_pretrained_model(tmp_path / "saved")[0], BERTModel)  # the encoder alone


def test_a_head_on_an_embedder_and_an_embedder_on_a_head(tmp_path: Path) -> None:
    theirs = sentence_transformer(tmp_path, modules.Pooling(32, "mean"))
    embedder, tokenizer = from_pretrained(tmp_path / "saved")
    classifier = BERTClassifier(embedder, label_names=["no", "yes"])
    data = [("the dog", "no"), ("a cat", "yes")]
    Model(classifier, tokenizer).fit(data, epochs=1, progress=False, lr=0.0)
    assert_close(Model(BERTEmbedder(classifier, pooling="mean"), tokenizer).encode(TEXTS), theirs.encode(TEXTS))
    with pytest.raises(ValueError, match=r"encode needs a BERTEmbedder; this is a BERTClassifier\. Put one on its enc"):
        Model(classifier, tokenizer).encode(TEXTS)
    model = Model.from_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="train has labels, and sentence vectors are not trained or evaluated"):
        model.fit([("the dog", 0), ("a cat", 1)])
    with pytest.raises(ValueError, match="the teacher, a BERTEmbedder, has no output layer to learn from"):
        make_student(model.head, torch.arange(5))
    assert model.predict(["a"]) == model.encode(["a"]).tolist()
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str; found None"):
        model.encode(["a", None])


def test_minilm(minilm_dir: Path) -> None:
    theirs = reference.SentenceTransformer(str(minilm_dir), device="cpu")
    texts = ["A man is eating food.", "Ein Mann isst.", "", "dog " * 300]
    vectors = Model.from_pretrained(minilm_dir).encode(texts)
    assert_close(vectors, theirs.encode(texts))
    int8 = Model.from_pretrained(minilm_dir, "int8").encode(texts)
    assert (int8 * vectors).sum(1).min() > 0.98
