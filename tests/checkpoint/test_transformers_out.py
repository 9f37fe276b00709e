"""Exports in Hugging Face's format: transformers and sentence-transformers load them in silence and agree."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as _transformers
from helpers.checkpoints import PIECES, SIZES, batch, make, outputs, save, valid
from helpers.texts import random_texts
from safetensors.torch import load_file

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTQuestionAnswering,
    BERTRegressor,
    BERTTagger,
    Head,
    Model,
    WordPieceTokenizer,
    from_pretrained,
    save_pretrained,
)

transformers: Any = _transformers  # whose overloads by task a variable task does not meet
NAMES = ("entailment", "neutral", "contradiction")
TEXTS = ["the dog runs", "A cat, sleeping!", "b c d e", "cat"]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
HEADS: dict[str, Any] = {
    "BertForSequenceClassification": lambda bert: BERTClassifier(bert, label_names=NAMES),
    "BertForSequenceClassification of one output": BERTRegressor,
    "BertForTokenClassification": lambda bert: BERTTagger(bert, 3, ("O", "B-x", "I-x")),
    "BertForQuestionAnswering": BERTQuestionAnswering,
}


@pytest.fixture
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither transformers nor bertnli warns."""
    transformers.utils.logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield
    transformers.utils.logging.disable_propagation()
    assert not [record.getMessage() for record in caplog.records]


def new_bert(pretraining_heads: bool = False) -> BERTModel:
    torch.manual_seed(1)
    config = BERTConfig.original(len(PIECES), **SIZES["Bert"], max_len=16, pretraining_heads=pretraining_heads)
    bert = BERTModel(config)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if bert.mlm is not None:
            bert.mlm.mlp.get_parameter("3.weight").copy_(bert.encoder.token_embedding.weight)
    return bert.eval()


def new_head(kind: str, folder: Path, pretraining_heads: bool = False) -> Head:
    """A head that is saved in the folder."""
    head: Head = HEADS[kind](new_bert(pretraining_heads)).eval()
    save_pretrained(head, folder, WordPieceTokenizer(PIECES), format="huggingface")
    return head


def load(folder: Path) -> Any:
    """The model of transformers that config.json names; every parameter is read, and none is missing."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, loading = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("pretraining_heads", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_every_head(tmp_path: Path, kind: str, pretraining_heads: bool) -> None:
    head = new_head(kind, tmp_path, pretraining_heads)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("cls.")]
    theirs, b = load(tmp_path), batch()
    assert type(theirs).__name__ == kind.split()[0]
    found = outputs(theirs, b)
    if head.task == "qa":
        close(head(b), torch.stack([found.start_logits, found.end_logits], -1)[valid(b)])
    else:
        close(head(b), found.logits if head.pooled else found.logits[valid(b)])


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "kind", ["BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction"]
)
def test_without_a_head(tmp_path: Path, kind: str, tied: bool) -> None:
    bert = new_bert(kind != "BertModel")
    bert.nsp = None if kind == "BertForMaskedLM" else bert.nsp
    bert.mlm = None if kind == "BertForNextSentencePrediction" else bert.mlm
    if bert.mlm is not None and not tied:
        torch.nn.init.normal_(bert.mlm.mlp.get_parameter("3.weight"))
    save_pretrained(bert, tmp_path, WordPieceTokenizer(PIECES), format="huggingface")
    theirs, b = load(tmp_path), batch()
    assert type(theirs).__name__ == kind
    positions = torch.zeros(5, 1, dtype=torch.int64) if bert.mlm is not None else None
    _, scores, following = bert(b.pad(b.input_ids), b.pad(b.segment_ids), b.cu_seqlens.diff(), positions)
    found = outputs(theirs, b)
    if kind == "BertModel":
        close(bert.encoder(b), found.last_hidden_state[valid(b)])
        close(bert.hidden(bert.encoder(b)[b.cu_seqlens[:-1]]), found.pooler_output)
    if scores is not None:
        close(scores[:, 0], (found.logits if kind == "BertForMaskedLM" else found.prediction_logits)[:, 0])
    if following is not None:
        close(following, found.seq_relationship_logits if kind == "BertForPreTraining" else found.logits)


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize(
    "kind", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]
)
@pytest.mark.parametrize("family", ["DistilBert", "Electra", "Electra projected"])
def test_relatives_return_as_they_came(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, kind: str
) -> None:
    sizes = {"embedding_size": 16} if "projected" in family else {}
    theirs = make(family.split()[0] + kind, **sizes, **({"num_labels": 2} if "For" in kind else {}))
    model, tokenizer = from_pretrained(save(theirs, tmp_path / "in"))
    caplog.clear()  # a bare model has no hidden layer
    for format in ("bertnli", "huggingface"):
        save_pretrained(model, tmp_path / format, tokenizer, format=format)
        again, _ = from_pretrained(tmp_path / format)
        caplog.clear()
        state, b = again.state_dict(), batch()
        assert all(
            torch.equal(state[name], value) for name, value in model.state_dict().items() if "hidden." not in name
        )
        assert again.config == model.config
    again = load(tmp_path / "huggingface")
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for ours, wanted in zip(outputs(again, b).to_tuple(), outputs(theirs, b).to_tuple(), strict=True):
        close(ours, wanted)


def test_what_no_family_can_hold(tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(PIECES)
    config = BERTConfig.original(len(PIECES), **SIZES["Bert"], max_len=16, pooler_activation="relu")
    with pytest.raises(ValueError, match="Hugging Face's DistilBERT has no place for train_segments=True"):
        save_pretrained(BERTModel(config), tmp_path, tokenizer, format="huggingface")
    bert, _ = from_pretrained(save(make("DistilBertForMaskedLM"), tmp_path / "in"))
    torch.nn.init.ones_(bert.encoder.segment_embedding.weight)
    with pytest.raises(ValueError, match="DistilBERT has no segment embeddings, and this model's are not zeros"):
        save_pretrained(bert, tmp_path, tokenizer, format="huggingface")
    twice = WordPieceTokenizer([*PIECES, "dog"])
    bert = BERTModel(BERTConfig.original(len(twice), **SIZES["Bert"], max_len=16))
    with pytest.raises(ValueError, match=r"a vocabulary with a repeated token cannot be saved in a tokenizer\.json"):
        save_pretrained(bert, tmp_path, twice, format="huggingface")


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("split_special_tokens", [True, False])
def test_auto_tokenizer(tmp_path: Path, lowercase: bool, split_special_tokens: bool) -> None:
    tokenizer = WordPieceTokenizer([*PIECES, "[", "]", "é", "A"], lowercase, split_special_tokens)
    bert = BERTModel(BERTConfig.original(len(tokenizer), **SIZES["Bert"], max_len=16))
    head = BERTClassifier(bert)
    head.settings["max_len"] = 9
    save_pretrained(head, tmp_path, tokenizer, format="huggingface")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 9
    assert (theirs.is_fast, theirs.vocab_size, theirs.pad_token_id) == (True, len(tokenizer), tokenizer.pad_id)
    texts = [*TEXTS, "CAFÉ [SEP] x[MASK]a", *random_texts(random.Random(0), 300)]
    for first, second in zip(texts, reversed(texts), strict=True):
        if not second:
            continue  # no second text, for transformers
        encoded = tokenizer.encode_pairs([first], [second], 9, "longest_first_hf")
        assert encoded.ids.tolist() == theirs(first, second, truncation=True)["input_ids"]
    encoded = tokenizer.encode_texts(texts, 9)
    assert encoded.ids.tolist() == [i for ids in theirs(texts, truncation=True)["input_ids"] for i in ids]
    (tmp_path / "vocab.txt").unlink()  # tokenizer.json is enough
    again = WordPieceTokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.tokens == tokenizer.tokens
    assert (again.lowercase, again.split_special_tokens) == (lowercase, split_special_tokens)


@pytest.mark.usefixtures("silence")
def test_pipelines(tmp_path: Path) -> None:
    def pipeline(task: str, kind: str) -> tuple[Any, Model]:
        head = new_head(kind, tmp_path / task)
        made = transformers.pipeline(task, str(tmp_path / task), device="cpu")
        return made, Model(head, WordPieceTokenizer(PIECES))

    pairs = [{"text": a, "text_pair": b} for a, b in PAIRS]
    theirs, model = pipeline("text-classification", "BertForSequenceClassification")
    for found, ours in zip(theirs(pairs, top_k=None), model.predict(PAIRS), strict=True):
        assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in found} == ours.probabilities
    theirs, model = pipeline("zero-shot-classification", "BertForSequenceClassification")
    found = theirs("the dog", ["cat", "a b"], hypothesis_template="the {}")
    ours = model.zero_shot("the dog", ["cat", "a b"], template="the {}")[0].probabilities
    assert dict(zip(found["labels"], found["scores"], strict=True)) == pytest.approx(ours, abs=1e-5)
    theirs, model = pipeline("token-classification", "BertForTokenClassification")
    words = ["the", "dog", "a", "cat"]
    found = theirs(" ".join(words), ignore_labels=[])
    assert [one["entity"] for one in found] == model.predict([words])[0]
    bert, tokenizer = new_bert(pretraining_heads=True), WordPieceTokenizer(PIECES)
    save_pretrained(bert, tmp_path / "mlm", tokenizer, format="huggingface")
    found = transformers.pipeline("fill-mask", str(tmp_path / "mlm"), device="cpu")("the [MASK] dog", top_k=1)
    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode("the [MASK] dog"), tokenizer.sep_id]])
    scores = bert(ids, torch.zeros_like(ids), None, torch.tensor([[2]]))[1]
    assert scores is not None
    best = scores.detach().flatten().softmax(0).max(0)
    assert found[0]["token"] == int(best.indices)
    assert found[0]["score"] == pytest.approx(float(best.values), abs=1e-5)


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_regressors_keep_their_activation(tmp_path: Path, activation: str) -> None:
    reference = pytest.importorskip("sentence_transformers")
    head = BERTRegressor(new_bert()).eval()
    head.settings["activation"] = activation
    model = Model(head, WordPieceTokenizer(PIECES))
    model.save_pretrained(tmp_path, format="huggingface")
    scores = model.score(PAIRS)
    theirs = reference.CrossEncoder(str(tmp_path), device="cpu")
    np.testing.assert_allclose(theirs.predict(PAIRS), scores, rtol=1e-5, atol=1e-6)
    theirs = transformers.pipeline("text-classification", str(tmp_path), device="cpu")
    found = theirs([{"text": a, "text_pair": b} for a, b in PAIRS])
    np.testing.assert_allclose([one["score"] for one in found], scores, rtol=1e-5, atol=1e-6)
    classifier = Model(BERTClassifier(new_bert(), label_names=NAMES).eval(), WordPieceTokenizer(PIECES))
    classifier.save_pretrained(tmp_path, format="huggingface")
    theirs = reference.CrossEncoder(str(tmp_path), device="cpu")
    np.testing.assert_allclose(theirs.predict(PAIRS, apply_softmax=True), classifier.score(PAIRS), rtol=1e-5, atol=1e-6)
