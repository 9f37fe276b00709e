"""`accelerate` on sentence-transformers' CrossEncoder and SentenceTransformer."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.huggingface_models import TEXTS as SENTENCES
from helpers.huggingface_models import make_model, make_tokenizer
from sentence_transformers import CrossEncoder, InputExample, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertForSequenceClassification, BertModel

import bertnli

FALLBACK = "runs its original modules"
TEXTS = [*SENTENCES, "", "a"]
PAIRS = [(a, b) for a in TEXTS for b in TEXTS]

pytestmark = pytest.mark.filterwarnings("ignore")  # of sentence-transformers


@pytest.fixture(autouse=True)
def no_fallback(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert FALLBACK not in caplog.text


def saved(folder: Path, kind: Any, **settings: Any) -> str:
    """The folder of a random model with its tokenizer."""
    make_model(kind, **settings).save_pretrained(folder)
    make_tokenizer(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [1, 3])
def test_cross_encoder(labels: int, tmp_path: Path) -> None:
    plain = CrossEncoder(saved(tmp_path, BertForSequenceClassification, num_labels=labels), device="cpu")
    model = bertnli.accelerate(copy.deepcopy(plain))
    for pairs in (PAIRS[:1], PAIRS, PAIRS[3]):
        for options in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"apply_softmax": True}):
            found, wanted = model.predict(pairs, **options), plain.predict(pairs, **options)
            assert type(found) is type(wanted)
            np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-4, atol=1e-5)
    if labels == 1:
        found, wanted = model.rank("a man", TEXTS, return_documents=True), plain.rank("a man", TEXTS)
        assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in wanted]
    bertnli.restore(model)
    assert np.array_equal(model.predict(PAIRS), plain.predict(PAIRS))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sentence_transformer(pooling: str, tmp_path: Path) -> None:
    module = Transformer(saved(tmp_path, BertModel))
    plain = SentenceTransformer(modules=[module, Pooling(32, pooling_mode=pooling), Normalize()], device="cpu")
    model = bertnli.accelerate(copy.deepcopy(plain))
    for texts in (TEXTS[0], TEXTS[:1], TEXTS * 9):
        np.testing.assert_allclose(model.encode(texts), plain.encode(texts), rtol=1e-4, atol=1e-5)
    found, wanted = (some.encode(TEXTS, output_value="token_embeddings") for some in (model, plain))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-5)
    folder = tmp_path / "saved"
    model.save(str(folder))
    np.testing.assert_allclose(SentenceTransformer(str(folder)).encode(TEXTS), plain.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    plain = CrossEncoder(saved(tmp_path, BertForSequenceClassification, initializer_range=0.05), device="cpu")
    model = bertnli.accelerate(copy.deepcopy(plain), precision)
    difference = np.abs(model.predict(PAIRS) - plain.predict(PAIRS)).max()
    assert 0 < difference < 2e-2


def test_training_with_fit(tmp_path: Path) -> None:
    """Losses of sentence-transformers see the packed encoder's gradients."""
    module = Transformer(saved(tmp_path, BertModel))
    plain = SentenceTransformer(modules=[module, Pooling(32)], device="cpu")
    model = bertnli.accelerate(copy.deepcopy(plain))
    examples = [InputExample(texts=[a, b]) for a, b in pairwise(TEXTS[:4])]
    values = []
    for some in (model.train(), plain.train()):
        loss = MultipleNegativesRankingLoss(some)
        features, labels = some.smart_batching_collate(examples)
        value = loss(features, labels)
        value.backward()
        values.append(value.item())
        assert all(p.grad is not None for name, p in some.named_parameters() if "pooler" not in name)
    assert values[0] == pytest.approx(values[1], rel=1e-3)
