"""Folders of sentence-transformers, with its own classes as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import make, save

from bertnli import BERTEmbedder, Model, from_pretrained

reference = pytest.importorskip("sentence_transformers")
PAIRS = [("the dog runs", "a cat"), ("b c d", "the cat sleeps"), ("e", "")]
ACTIVATIONS = {"identity": torch.nn.Identity, "sigmoid": torch.nn.Sigmoid}


def cross_encoder(folder: Path, num_labels: int = 1, **options: Any) -> Any:
    save(make("BertForSequenceClassification", num_labels=num_labels), folder / "plain")
    model = reference.CrossEncoder(str(folder / "plain"), device="cpu", **options)
    model.save_pretrained(str(folder / "saved"))
    return model


@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
@pytest.mark.parametrize("place", ["own file", "config.json", "old key"])
def test_the_activation_of_a_cross_encoder(tmp_path: Path, activation: str | None, place: str) -> None:
    chosen: dict[str, Any] = {} if activation is None else {"activation_fn": ACTIVATIONS[activation]()}
    theirs, folder = cross_encoder(tmp_path, **chosen), tmp_path / "saved"
    if place != "own file":  # as older versions saved it
        name = json.loads((folder / "config_sentence_transformers.json").read_text())["activation_fn"]
        (folder / "config_sentence_transformers.json").unlink()
        (folder / "modules.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        old = {"sbert_ce_default_activation_function": name}
        config |= {"sentence_transformers": {"activation_fn": name}} if place == "config.json" else old
        (folder / "config.json").write_text(json.dumps(config))
    model = Model.from_pretrained(folder)
    assert model.head.settings["activation"] == (activation or "sigmoid")
    wanted = theirs.predict(PAIRS)
    np.testing.assert_allclose(model.score(PAIRS), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(PAIRS), wanted, rtol=1e-5, atol=1e-6)
    ranks = theirs.rank("the dog", ["a cat", "b c d", "the"])
    assert [i for i, _ in model.rank("the dog", ["a cat", "b c d", "the"])] == [rank["corpus_id"] for rank in ranks]


def test_several_outputs_and_another_activation(tmp_path: Path) -> None:
    theirs = cross_encoder(tmp_path, num_labels=3)
    model = Model.from_pretrained(tmp_path / "saved")
    wanted = theirs.predict(PAIRS, apply_softmax=True)
    np.testing.assert_allclose(model.score(PAIRS), wanted, rtol=1e-5, atol=1e-6)
    cross_encoder(tmp_path / "tanh", activation_fn=torch.nn.Tanh())
    with pytest.raises(
        ValueError, match=r"activation_fn is 'torch\.nn\.modules\.activation\.Tanh'; only Identity and S"
    ):
        Model.from_pretrained(tmp_path / "tanh" / "saved")


def test_training_and_saving_keep_the_sigmoid(tmp_path: Path) -> None:
    cross_encoder(tmp_path, activation_fn=torch.nn.Sigmoid())
    model = Model.from_pretrained(tmp_path / "saved")
    data = [(*pair, label) for pair, label in zip(PAIRS, (0.9, 0.1, 0.5), strict=True)]
    model.fit(data * 8, epochs=30, lr=5e-3, progress=False)
    figures = model.evaluate(data)
    errors = np.square(model.score(PAIRS) - np.array([0.9, 0.1, 0.5]))
    assert figures["mse"] == pytest.approx(errors.mean(), rel=1e-4)
    assert figures["loss"] == pytest.approx(errors.mean(), rel=1e-4)
    assert errors.max() < 0.02
    with pytest.raises(ValueError, match=r"labels from 0 to 5; the model's outputs are sigmoids: scale them to 0 to 1"):
        model.fit([("a", "b", 0.0), ("b", "a", 5.0)], progress=False)
    for format in ("bertnli", "huggingface"):
        model.save_pretrained(tmp_path / format, format=format)
        np.testing.assert_allclose(Model.from_pretrained(tmp_path / format).score(PAIRS), model.score(PAIRS), rtol=1e-5)
    again = reference.CrossEncoder(str(tmp_path / "huggingface"), device="cpu")
    np.testing.assert_allclose(again.predict(PAIRS), model.score(PAIRS), rtol=1e-5)


@pytest.mark.parametrize("first", ["", "0_Transformer"])
def test_the_encoder_of_a_sentence_transformer(tmp_path: Path, first: str) -> None:
    modules = reference.sentence_transformer.modules
    save(make("BertModel"), tmp_path / "plain")
    transformer = modules.Transformer(str(tmp_path / "plain"))
    theirs = reference.SentenceTransformer(
        modules=[transformer, modules.Pooling(32, "mean"), modules.Dense(32, 8), modules.Normalize()], device="cpu"
    )
    theirs.save_pretrained(str(tmp_path / "saved"))
    if first:  # as older versions saved it
        (tmp_path / "saved" / first).mkdir()
        for path in (tmp_path / "saved").iterdir():
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
                path.rename(tmp_path / "saved" / first / path.name)
        entries = json.loads((tmp_path / "saved" / "modules.json").read_text())
        entries[0]["path"] = first
        (tmp_path / "saved" / "modules.json").write_text(json.dumps(entries))
    model, tokenizer = from_pretrained(tmp_path / "saved")
    assert isinstance(model, BERTEmbedder)
    encoded = tokenizer.encode_texts(["the dog runs", "a"], 16)
    vectors = model.encoder(encoded.batch(range(2)))
    wanted = theirs.encode(["the dog runs", "a"], output_value="token_embeddings")
    torch.testing.assert_close(vectors, torch.cat(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "a.b.WordEmbeddings", "path": ""}], "the first module is WordEmbeddings; expected a Transformer"),
        ([], "the first module is missing; expected a Transformer"),
        ([{"type": "a.b.Transformer", "path": "../x"}], r"path of Transformer is '\.\./x'; expected one within"),
        ({"type": "a.b.Transformer"}, "expected a list of objects with type and path"),
    ],
)
def test_broken_modules(tmp_path: Path, content: object, message: str) -> None:
    save(make("BertModel"), tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"modules\.json: .*{message}"):
        from_pretrained(tmp_path)
