"""`accelerate` on sentence-transformers' CrossEncoder and SentenceTransformer."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.huggingface_models import TEXTS as SENTENCES
from helpers.huggingface_models import make_model, make_tokenizer
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    InputExample,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
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


def test_a_model_loaded_in_bfloat16(tmp_path: Path) -> None:
    folder = saved(tmp_path, BertForSequenceClassification, num_labels=1, initializer_range=0.05)
    plain = CrossEncoder(folder, device="cpu")
    half = bertnli.accelerate(CrossEncoder(folder, device="cpu", model_kwargs={"dtype": torch.bfloat16}))
    np.testing.assert_allclose(half.predict(PAIRS), plain.predict(PAIRS), atol=3e-2)


def test_token_embeddings_and_a_saved_model(tmp_path: Path) -> None:
    module = Transformer(saved(tmp_path, BertModel))
    plain = SentenceTransformer(modules=[module, Pooling(32), Normalize()], device="cpu")
    model = bertnli.accelerate(copy.deepcopy(plain))
    found, wanted = (some.encode(TEXTS, output_value="token_embeddings") for some in (model, plain))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-5)
    folder = tmp_path / "saved"
    model.save(str(folder))
    np.testing.assert_allclose(SentenceTransformer(str(folder)).encode(TEXTS), plain.encode(TEXTS), atol=1e-6)


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


def losses_of_trainer(model: Any, folder: Path) -> list[float]:
    """The losses that the library's trainer logs in four steps, and that of its evaluation."""
    labels = [1.0, 0.0] * 8
    columns = {"one": TEXTS[:4] * 4, "two": TEXTS[1:5] * 4, "label": labels}
    of_pairs = isinstance(model, CrossEncoder)
    kinds: Any = (CrossEncoderTrainer, CrossEncoderTrainingArguments, BinaryCrossEntropyLoss)
    if not of_pairs:
        kinds = (SentenceTransformerTrainer, SentenceTransformerTrainingArguments, CosineSimilarityLoss)
    trainer_kind, arguments_kind, loss_kind = kinds
    arguments = arguments_kind(
        str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, use_cpu=True,
        gradient_accumulation_steps=2, report_to=[], disable_tqdm=True, save_strategy="no", seed=1,
    )  # fmt: skip
    data = Dataset.from_dict(columns)
    trainer = trainer_kind(model, arguments, train_dataset=data, eval_dataset=data, loss=loss_kind(model))
    trainer.train()
    figure: float = trainer.evaluate()["eval_loss"]
    return [*(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), figure]


@pytest.mark.parametrize("kind", [CrossEncoder, SentenceTransformer])
def test_trainers(kind: Any, tmp_path: Path) -> None:
    base = BertForSequenceClassification if kind is CrossEncoder else BertModel
    more = dict(num_labels=1) if kind is CrossEncoder else {}
    plain = kind(saved(tmp_path / "model", base, initializer_range=0.1, **more), device="cpu")
    model = bertnli.accelerate(copy.deepcopy(plain))
    found, wanted = (losses_of_trainer(some, tmp_path) for some in (model, plain))
    assert len(found) == 5
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found[0] != found[3]
