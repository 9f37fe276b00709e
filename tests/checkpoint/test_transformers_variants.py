"""Folders whose files say unusual things: outputs equal to those of what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.checkpoints import batch, make, outputs, save
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertnli import BERTModel, Model, from_pretrained
from bertnli.inference.predict import NotFiniteError

PAIRS = [("the dog", "a cat"), ("the cat runs a b", "b"), ("a", "dog")]
LONG = ["the", "dog", "run", "a", "b", "c", "d", "e", "the", "cat", "sleep", "a", "b", "c", "d", "e"]  # one piece each


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(path)).items()}, path)


@torch.no_grad()
def logits(folder: Path, kind: str, *texts: Any, **options: Any) -> Tensor:
    """What transformers gives for one text or pair."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()
    found: Tensor = model(**tokenizer(*texts, return_tensors="pt", truncation=True, **options)).logits[0]
    return found


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Electra"])
@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "DistilBertTokenizerFast"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"tokenizer_class": "DistilBertTokenizer", "model_input_names": ["input_ids", "token_type_ids"]},
    ],
)
def test_segments_that_the_tokenizer_does_not_give(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    if family == "DistilBert" and "token_type_ids" in changes.get("model_input_names", ()):
        return  # whose model does not take them
    save(make(f"{family}ForSequenceClassification", num_labels=3), tmp_path)
    edit(tmp_path / "tokenizer_config.json", **changes)
    model = Model.from_pretrained(tmp_path)
    wanted = [logits(tmp_path, "SequenceClassification", *pair).softmax(0).numpy() for pair in PAIRS]
    np.testing.assert_allclose(model.score(PAIRS), wanted, rtol=1e-4, atol=1e-5)


def test_the_length_of_taggers_and_of_question_answering(tmp_path: Path) -> None:
    save(make("BertForTokenClassification", num_labels=9, max_position_embeddings=300), tmp_path / "tags")
    save(make("BertForQuestionAnswering", max_position_embeddings=400), tmp_path / "qa")
    for longest, tokens, of_qa in ((6, 6, 6), (None, 300, 384), (10**30, 300, 384)):
        for kind in ("tags", "qa"):
            edit(tmp_path / kind / "tokenizer_config.json", model_max_length=longest)
        assert Model.from_pretrained(tmp_path / "qa").head.sequence_len() == of_qa
        tagger = Model.from_pretrained(tmp_path / "tags")
        assert tagger.head.sequence_len() == tokens
        words = LONG[:4] if longest == 6 else LONG * 9
        theirs = logits(tmp_path / "tags", "TokenClassification", words, is_split_into_words=True)
        tags = theirs.argmax(1).tolist()[1:-1]
        assert [int(tag) for tag in tagger.predict([words])[0]] == tags


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Electra"])
def test_the_output_layer_without_a_class(tmp_path: Path, family: str) -> None:
    for kind, task in (("QuestionAnswering", "qa"), ("SequenceClassification", "classification")):
        save(make(f"{family}For{kind}", num_labels=2), tmp_path)
        edit(tmp_path / "config.json", architectures=None)
        assert Model.from_pretrained(tmp_path).head.task == task


def test_the_output_layer_of_another_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = make("BertForSequenceClassification", num_labels=2)
    save(theirs, tmp_path)
    more = {f"qa_outputs.{name}": torch.ones(shape) for name, shape in (("weight", (2, 32)), ("bias", (2,)))}
    change_weights(tmp_path, lambda state: {**state, **more})
    model, _ = from_pretrained(tmp_path)
    torch.testing.assert_close(model(batch()), outputs(theirs, batch()).logits, rtol=2e-5, atol=2e-5)
    assert "has parameters that the model does not: qa_outputs.bias, qa_outputs.weight" in caplog.text
    change_weights(tmp_path, lambda state: {k: v for k, v in state.items() if "classifier" not in k})
    assert isinstance(from_pretrained(tmp_path)[0], BERTModel)  # for transformers too it has no head


def test_weights_that_are_nan(tmp_path: Path) -> None:
    save(make("BertForSequenceClassification", num_labels=2), tmp_path)
    change_weights(
        tmp_path, lambda state: {k: v * float("nan") if k == "classifier.bias" else v for k, v in state.items()}
    )
    with pytest.raises(NotFiniteError, match="the model's outputs are NaN"):
        Model.from_pretrained(tmp_path).score(PAIRS)


def test_a_prefix_that_is_not_known(tmp_path: Path) -> None:
    save(make("BertModel"), tmp_path)
    change_weights(tmp_path, lambda state: {f"net.{name}": value for name, value in state.items()})
    with pytest.raises(
        ValueError, match=r"has no encoder layers; its parameters are net\.embeddings\.LayerNorm\.bias, "
    ):
        from_pretrained(tmp_path)


def test_masked_words_of_a_table_of_their_own(tmp_path: Path) -> None:
    """Then the decoder has a bias of its own beside `cls.predictions.bias`."""
    theirs = make("BertForMaskedLM", tie_word_embeddings=False)
    save(theirs, tmp_path)
    biases = {name for name in load_file(tmp_path / "model.safetensors") if "predictions" in name and "bias" in name}
    assert {"cls.predictions.bias", "cls.predictions.decoder.bias"} <= biases
    model, b = from_pretrained(tmp_path)[0], batch()
    assert isinstance(model, BERTModel)
    first = torch.zeros(len(b), 1, dtype=torch.int64)
    scores = model(b.pad(b.input_ids), b.pad(b.segment_ids), b.cu_seqlens.diff(), first)[1]
    assert scores is not None
    torch.testing.assert_close(scores[:, 0], outputs(theirs, b).logits[:, 0], rtol=2e-5, atol=2e-5)
