"""Whole calls of accelerated models of sentence-transformers, with the plain models as the reference."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.huggingface_models import TEXTS as SENTENCES
from helpers.huggingface_models import make_model, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import normalizers
from torch import nn
from transformers import BertForSequenceClassification, BertModel

import bertnli

TEXTS = [*SENTENCES, "", "a", " ".join(SENTENCES * 3), "A MAN éats\x1c 中a [SEP] dog [CLS]a", " the dog\n "]
PAIRS = [(a, b) for a in TEXTS[:4] for b in TEXTS]
LEFT = "is left to sentence-transformers"

pytestmark = pytest.mark.filterwarnings("ignore")  # of sentence-transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and a tokenizer: "encoder", "1" and "3" are their folders."""
    parent = tmp_path_factory.mktemp("models")
    for name, kind in (
        ("encoder", BertModel),
        ("1", BertForSequenceClassification),
        ("3", BertForSequenceClassification),
    ):
        more = {} if name == "encoder" else {"num_labels": int(name)}
        make_model(kind, initializer_range=0.2, **more).save_pretrained(parent / name)
        make_tokenizer(parent / name)
    return parent


def sentences(folder: Path, pooling: Any = "mean", *more: nn.Module, **options: Any) -> Any:
    modules = [Transformer(str(folder / "encoder")), Pooling(32, pooling_mode=pooling), *more]
    return SentenceTransformer(modules=modules, device="cpu", **options)


def accelerated(plain: Any, precision: str = "fp32") -> Any:
    return bertnli.accelerate(copy.deepcopy(plain), precision)


class Left:
    """Which calls were left to the library: `with left(n)` expects n."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog, self.expected, self.before = caplog, 0, 0
        caplog.set_level("DEBUG", "bertnli")

    @property
    def count(self) -> int:
        return sum(LEFT in record.getMessage() for record in self.caplog.records)

    def __call__(self, expected: int) -> Left:
        self.expected, self.before = expected, self.count
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, *error: object) -> None:
        if kind is None:
            messages = [r.getMessage() for r in self.caplog.records if LEFT in r.getMessage()][self.before :]
            assert len(messages) == self.expected, messages


@pytest.fixture
def left(caplog: pytest.LogCaptureFixture) -> Left:
    return Left(caplog)


def assert_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_equal(a, b)
        return
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-4, atol=1e-5)


def error_of(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("no error")


def test_encode_takes_all_plain_arguments(folder: Path, left: Left) -> None:
    plain = sentences(folder)
    model = accelerated(plain)
    options: list[dict[str, Any]] = [
        {},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"normalize_embeddings": True, "convert_to_tensor": True},
        {"batch_size": 2, "show_progress_bar": True},
        {"prompt": "the man ", "device": "cpu"},
    ]
    with left(0):
        for inputs in (TEXTS, TEXTS[:1], TEXTS[2], np.array(TEXTS[:3]), TEXTS[5] * 4):
            for chosen in options:
                assert_equal(model.encode(inputs, **chosen), plain.encode(inputs, **chosen))
        assert_equal(model.encode(inputs=TEXTS, batch_size=32), plain.encode(TEXTS))
        assert_equal(model.encode_query(TEXTS), plain.encode_query(TEXTS))
        assert_equal(model.encode_document(TEXTS), plain.encode_document(TEXTS))
        assert model.encode(TEXTS, convert_to_tensor=True).is_inference()
    assert model.encode._tokenizer.of(model.tokenizer) is model.encode._tokenizer.of(model.tokenizer)
    assert inspect.signature(model.encode) == inspect.signature(plain.encode)


@pytest.mark.parametrize("pooling", ["max", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
def test_poolings_with_prompts(pooling: str, folder: Path, left: Left) -> None:
    prompts = {"query": "the small ", "short": ""}
    plain = sentences(folder, pooling, Normalize(), prompts=prompts, default_prompt_name="short")
    model = accelerated(plain)
    with left(0):
        assert_equal(model.encode(TEXTS), plain.encode(TEXTS))
        assert_equal(model.encode_query(TEXTS), plain.encode_query(TEXTS))
        assert_equal(model.encode(TEXTS[0], prompt_name="query"), plain.encode(TEXTS[0], prompt_name="query"))
    model.default_prompt_name = plain.default_prompt_name = "query"
    assert_equal(model.encode(TEXTS), plain.encode(TEXTS))


@pytest.mark.parametrize("labels", [1, 3])
def test_predict_takes_all_plain_arguments(labels: int, folder: Path, left: Left) -> None:
    plain = CrossEncoder(str(folder / str(labels)), device="cpu")
    model = accelerated(plain)
    options: list[dict[str, Any]] = [
        {},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False, "activation_fn": nn.Tanh()},
        {"apply_softmax": labels > 1, "batch_size": 5, "show_progress_bar": True},
    ]
    with left(0):
        for inputs in (PAIRS, PAIRS[:1], PAIRS[2], list(PAIRS[3]), [list(pair) for pair in PAIRS[:3]], np.array(PAIRS)):
            for chosen in options:
                assert_equal(model.predict(inputs, **chosen), plain.predict(inputs, **chosen))
        if labels == 1:
            found, wanted = model.rank(TEXTS[0], TEXTS, top_k=3), plain.rank(TEXTS[0], TEXTS, top_k=3)
            assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in wanted]
        model.activation_fn = plain.activation_fn = nn.Tanh()
        model.max_seq_length = plain.max_seq_length = 9
        assert_equal(model.predict(PAIRS), plain.predict(PAIRS))
    with left(labels == 1):
        assert_equal(model.predict(PAIRS, apply_softmax=True), plain.predict(PAIRS, apply_softmax=True))


CHARACTERS = st.sampled_from(
    [*"aeimnst. '-é中İς", "man", "dog", " ", "\t", "\x1c", "[SEP]", "[mask]", "\u0301", "\U0001f600"]
)
RANDOM_TEXT = st.one_of(st.lists(CHARACTERS, max_size=70).map("".join), st.text(max_size=20))


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(RANDOM_TEXT, min_size=1, max_size=8), longest=st.integers(5, 40))
def test_random_texts(texts: list[str], longest: int, models: tuple[Any, Any, Any, Any]) -> None:
    plain, model, plain_pairs, pair_model = models
    for some in models:
        some.max_seq_length = longest
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    pairs = list(zip(texts, reversed(texts), strict=True))
    assert_equal(model.encode(texts), plain.encode(texts))
    assert_equal(pair_model.predict(pairs), plain_pairs.predict(pairs))


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[Any, Any, Any, Any]:
    plain, pairs = sentences(folder), CrossEncoder(str(folder / "3"), device="cpu")
    return plain, accelerated(plain), pairs, accelerated(pairs)


OTHER_ARGUMENTS: list[dict[str, Any]] = [
    {"truncate_dim": 5},
    {"output_value": "token_embeddings"},
    {"output_value": None},
    {"precision": "binary"},
    {"processing_kwargs": {"text": {"max_length": 4}}},
    {"prompt": "the man ", "prompt_name": "query"},
]


def test_other_calls_are_left_to_the_library(folder: Path, left: Left) -> None:
    plain = sentences(folder, prompts={"query": "a"})
    model = accelerated(plain)
    for chosen in OTHER_ARGUMENTS:
        with left(1):
            found, wanted = model.encode(TEXTS[:3], **chosen), plain.encode(TEXTS[:3], **chosen)
            assert type(found) is type(wanted)
            assert len(found) == len(wanted)
            if isinstance(found, np.ndarray):
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    for inputs in ([], np.array([], dtype=str), tuple(TEXTS), [("a man", "a dog")]):
        with left(1):
            assert_equal(model.encode(inputs), plain.encode(inputs))
    bad: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((TEXTS,), {"batch_size": 0}),
        ((TEXTS,), {"precision": "int4"}),
        ((TEXTS,), {"prompt_name": "none"}),
        ((TEXTS,), {"odd": 1}),
        (([None],), {}),
        ((["\ud800"],), {}),
        ((), {}),
    ]
    for args, kwargs in bad:
        with left(1):
            found_error = error_of(partial(model.encode, *args, **kwargs))
        assert found_error == error_of(partial(plain.encode, *args, **kwargs))


def added_tokens(model: Any) -> None:
    model.tokenizer.add_tokens(["man"])  # of the vocabulary: their number stays


def special_token(model: Any) -> None:
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["man"]})


def normalizer(model: Any) -> None:
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def left_padding(model: Any) -> None:
    model.tokenizer.padding_side = "left"


def left_truncation(model: Any) -> None:
    model.tokenizer.truncation_side = "left"


def no_segments(model: Any) -> None:
    model.tokenizer.model_input_names = ["input_ids", "attention_mask"]


def dense(model: Any) -> None:
    torch.manual_seed(0)
    model.append(Dense(32, 6))


def two_poolings(model: Any) -> None:
    model[1].pooling_mode = ("mean", "max")
    model[1].pooling_output_dimension = 64


def truncated(model: Any) -> None:
    model.truncate_dim = 7


def hook_on_the_model(model: Any) -> None:
    model[1].register_forward_hook(
        lambda _, inputs, outputs: {**outputs, "sentence_embedding": -inputs[0]["sentence_embedding"]}
    )


def hook_on_a_layer(model: Any) -> None:
    model[0].auto_model.encoder.layer[1].register_forward_hook(lambda *_: None)


def other_forward(model: Any) -> None:
    forward = model[1].forward
    model[1].forward = lambda features, **more: {
        **forward(features),
        "sentence_embedding": features["sentence_embedding"] * 2,
    }


def subclass(model: Any) -> None:
    class Doubled(Pooling):
        def forward(self, features: Any, **more: Any) -> Any:
            features = super().forward(features)
            return {**features, "sentence_embedding": features["sentence_embedding"] * 2}

    model[1] = Doubled(32)


def lowercase_of_the_library(model: Any) -> None:
    model[0].do_lower_case = True


def too_long(model: Any) -> None:
    model.max_seq_length = 1000


CHANGES = [
    added_tokens, special_token, normalizer, left_padding, left_truncation, no_segments, dense, two_poolings, truncated,
    hook_on_the_model, hook_on_a_layer, other_forward, subclass, lowercase_of_the_library, too_long,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_are_left_to_the_library(change: Any, folder: Path, left: Left) -> None:
    plain = sentences(folder)
    model = accelerated(plain)
    texts = [TEXTS[0], *TEXTS[4:]] if change is not too_long else TEXTS[:4]
    with left(0):
        before = model.encode(texts)
    for some in (plain, model):
        change(some)
    with left(1):
        found, wanted = model.encode(texts), plain.encode(texts)
    assert_equal(found, wanted)
    if change not in (left_padding, no_segments, hook_on_a_layer, lowercase_of_the_library, too_long):
        assert found.shape != before.shape or not np.allclose(found, before, atol=1e-4)


def test_changes_that_are_followed(folder: Path, left: Left) -> None:
    plain = sentences(folder)
    model = accelerated(plain)
    other = accelerated(sentences(folder))

    def weights(some: Any) -> None:
        with torch.no_grad():
            some[0].auto_model.encoder.layer[0].output.dense.weight.mul_(1.5)

    def data(some: Any) -> None:
        some[0].auto_model.embeddings.word_embeddings.weight.data *= 2

    def train(some: Any) -> None:
        some.train()[0].auto_model.embeddings.dropout.p = 0.5

    def one_module(some: Any) -> None:
        some[0].auto_model.encoder.layer[1].train()

    def shorter(some: Any) -> None:
        some.max_seq_length = 7

    def pooling(some: Any) -> None:
        some[1] = Pooling(32, pooling_mode="cls")

    def mode(some: Any) -> None:
        some[1].pooling_mode = "max"

    def tokenizer(some: Any) -> None:
        some[0].processor = copy.deepcopy(some.tokenizer)
        some.tokenizer.backend_tokenizer.normalizer.lowercase = False

    def normalized(some: Any) -> None:
        some.append(Normalize())

    with left(0):
        for change in (weights, data, train, one_module, shorter, pooling, mode, tokenizer, normalized):
            assert_equal(model.encode(TEXTS), plain.encode(TEXTS))
            for some in (plain, model):
                change(some)
            assert_equal(model.encode(TEXTS), plain.encode(TEXTS))
            assert not any(module.training for module in model.modules())
        assert_equal(other.encode(TEXTS), sentences(folder).encode(TEXTS))


def test_a_changed_cross_encoder(folder: Path, left: Left) -> None:
    plain = CrossEncoder(str(folder / "3"), device="cpu")
    model = accelerated(plain)
    for path in ("classifier.weight", "bert.pooler.dense.bias"):
        for some in (plain, model):
            with torch.no_grad():
                some[0].model.get_parameter(path).mul_(-1.5)
        with left(0):
            assert_equal(model.predict(PAIRS), plain.predict(PAIRS))
    for some in (plain, model):
        torch.manual_seed(0)
        some[0].model.classifier = nn.Linear(32, 3)
    with left(0):
        assert_equal(model.predict(PAIRS), plain.predict(PAIRS))
    for some in (plain, model):
        torch.manual_seed(0)
        some[0].model.classifier = nn.Sequential(nn.Linear(32, 3), nn.Tanh())
    with left(1):
        assert_equal(model.predict(PAIRS), plain.predict(PAIRS))
    for some in (plain, model):
        some[0].model.classifier = some[0].model.classifier[0]
        some[0].model.bert.pooler.activation = nn.Sigmoid()
    with left(1):
        assert_equal(model.predict(PAIRS), plain.predict(PAIRS))


def test_bad_pairs_and_prompts_of_a_cross_encoder(folder: Path, left: Left) -> None:
    plain = CrossEncoder(str(folder / "1"), device="cpu")
    model = accelerated(plain)
    others: list[Any] = [[], np.array([], dtype=str), tuple(PAIRS), np.array(PAIRS[0])]
    for inputs in others:
        with left(1):
            assert_equal(model.predict(inputs), plain.predict(inputs))
    with left(1):
        assert_equal(model.predict(PAIRS, prompt="the man"), plain.predict(PAIRS, prompt="the man"))
    with left(1), torch.autocast("cpu", torch.bfloat16):
        assert model.predict(PAIRS).shape == (len(PAIRS),)
    for bad in ([("a", None)], [("a",), ("b", "c")]):
        with left(1):
            assert error_of(partial(model.predict, bad)) == error_of(partial(plain.predict, bad))


def test_copies_pickles_threads_and_restore(folder: Path, left: Left) -> None:
    plain = sentences(folder)
    model = accelerated(plain)
    wanted = plain.encode(TEXTS)
    for some in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert some.encode.module is some
        with left(0):
            assert_equal(some.encode(TEXTS), wanted)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.encode(TEXTS))) for _ in range(4)]
    with left(0):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_equal(found, [wanted] * 4)
    methods = accelerated(plain).encode, accelerated(CrossEncoder(str(folder / "1"), device="cpu")).predict
    gc.collect()
    data: list[list[Any]] = [TEXTS, PAIRS]
    for method, inputs in zip(methods, data, strict=True):  # each keeps its model alive
        with left(0):
            assert len(method(inputs)) == len(inputs)
    reference = weakref.ref(methods[0].module)
    del method, methods
    gc.collect()
    assert reference() is None
    bertnli.restore(model)
    assert "encode" not in vars(model)
    with left(0):
        assert np.array_equal(model.encode(TEXTS), wanted)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions(precision: str, folder: Path, left: Left) -> None:
    plain, pairs = sentences(folder, "mean", Normalize()), CrossEncoder(str(folder / "1"), device="cpu")
    with left(0):
        assert 0 < np.abs(accelerated(plain, precision).encode(TEXTS) - plain.encode(TEXTS)).max() < 0.1
        assert 0 < np.abs(accelerated(pairs, precision).predict(PAIRS) - pairs.predict(PAIRS)).max() < 0.1
