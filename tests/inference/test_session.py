"""InferenceSession: which models are fused, what a session sees of changes, and which sessions are kept."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from helpers.isa import set_cpu_isa
from helpers.models import TOLERANCE, block, difference, make_batch, make_encoded, make_head
from torch import Tensor, nn

from bertnli import BERTClassifier, BERTTagger, Head, InferenceSession, PackedBatch, _ops, score

ENCODED = make_encoded([9, 4, 30])
BATCH = ENCODED.batch(range(3))


class Doubled(BERTClassifier):
    def head(self, features: Tensor) -> Tensor:
        return 2 * super().head(features)


class Halved(BERTClassifier):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) / 2


class Averaged(BERTClassifier):
    def features(self, batch: PackedBatch) -> Tensor:
        return torch.stack([x.mean(0) for x in self.encoder(batch).split(batch.cu_seqlens.diff().tolist())])


class OtherLinear(nn.Linear):
    pass


@pytest.fixture
def prepacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of each encoder that is prepacked."""
    precisions: list[str] = []
    make = _ops.FusedEncoder

    def prepack(*args: Any) -> _ops.FusedEncoder:
        precisions.append(args[-1])
        return make(*args)

    monkeypatch.setattr(_ops, "FusedEncoder", prepack)
    return precisions


# ---- what is fused ----


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("kind", [BERTClassifier, BERTTagger])
@torch.no_grad()
def test_standard_heads_are_fused(kind: type[Head], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = make_head(kind), make_encoded([1, 27, 60, 14, 80, 3, *[29] * 20])
    session, batch = InferenceSession(model, precision), encoded.batch(range(len(encoded)))
    wanted = model.head(session.features(batch))
    assert difference(wanted, model(batch)) < 2 * TOLERANCE[precision]
    monkeypatch.setattr(model.output, "_call_impl", None)  # no module is called
    assert torch.equal(session(batch), wanted)
    assert torch.equal(score(model, encoded, precision=precision), wanted)
    assert session(encoded[:0].batch([])).shape == (0, 3)


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_other_heads_keep_the_fused_encoder(precision: str) -> None:
    def check(model: Head) -> None:
        session = InferenceSession(model, precision)
        assert not session.fused
        assert session.is_current()
        wanted = model.head(session.features(BATCH))
        assert torch.equal(session(BATCH), wanted)
        assert not torch.equal(wanted, InferenceSession(make_head())(BATCH))
        assert difference(wanted, model(BATCH)) < 2 * TOLERANCE[precision]

    check(make_head(Doubled))
    model = make_head()
    model.head = lambda features: 3 * Head.head(model, features)  # type: ignore[method-assign]
    check(model)
    model = make_head()
    model.hidden.append(nn.Sigmoid())  # type: ignore[operator]
    check(model)
    model = make_head()
    model.output = OtherLinear(32, 3)
    check(model)
    model.output = nn.Linear(32, 3, bias=False)
    check(model)
    for name in ("hidden", "hidden.0", "hidden.1", "dropout", "output"):
        model = make_head()
        model.get_submodule(name).register_forward_hook(lambda *call: 2 * call[-1])
        check(model)


@torch.no_grad()
def test_heads_of_any_size_are_fused() -> None:
    model = make_head()
    model.hidden, model.output = nn.Sequential(nn.Linear(32, 48), nn.Tanh()), nn.Linear(48, 5)
    session = InferenceSession(model)
    assert session.fused
    assert difference(session(BATCH), model(BATCH)) < TOLERANCE["fp32"]
    model.output = nn.Linear(7, 5)
    with pytest.raises(ValueError, match="a head's layer must take vectors of 48"):
        InferenceSession(model)(BATCH)


def hooked(model: Head) -> None:
    model.encoder.blks[0].register_forward_hook(lambda *_: None)


def replaced(model: Head) -> None:
    block(model, 1).ffn.dense1 = OtherLinear(32, 64)


def with_forward(model: Head) -> None:
    block = model.encoder.blks[0]
    block.forward = block.forward


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "encoder.blks.0 has hooks"),
        (replaced, "encoder.blks.1.ffn.dense1 is a OtherLinear, not a Linear"),
        (with_forward, "encoder.blks.0 has a `forward` of its own"),
        (lambda m: m.register_forward_pre_hook(lambda *_: None), "the model has hooks"),
        (lambda m: setattr(m.encoder.blks[0].ffn, "activation", "relu"), "blks.0.ffn.activation is 'relu'"),
        (lambda m: setattr(m.encoder.blks[0].attention, "num_heads", 4), "blks.0.attention.num_heads is 4"),
        (lambda m: setattr(m.encoder.blks[1].addnorm2.ln, "eps", 0.1), "blks.1.addnorm2.ln.eps is 0.1"),
        (lambda m: setattr(m.encoder.embedding_norm, "eps", 0.1), "encoder.embedding_norm.eps is 0.1"),
        (lambda m: setattr(m.encoder.blks[0].attention.W_o, "bias", None), "W_o has no bias"),
        (lambda m: setattr(m.encoder, "_compiled_call_impl", m.encoder._call_impl), "encoder is compiled"),
        (lambda m: m.double(), "token_embedding.weight is torch.float64 on cpu"),
    ],
)
@torch.no_grad()
def test_other_encoders_run_their_modules(change: Callable[[Head], Any], reason: str) -> None:
    model = make_head()
    score(model, ENCODED)
    change(model)
    session = InferenceSession(model)
    assert torch.equal(session(BATCH), model(BATCH))
    assert torch.equal(session.features(BATCH), model.features(BATCH))
    with pytest.raises(ValueError, match=r"precision='int8' needs an unmodified .*" + reason):
        InferenceSession(model, "int8")


@pytest.mark.parametrize("kind", [Halved, Averaged])
@torch.no_grad()
def test_heads_that_override_more_run_their_modules(kind: type[Head]) -> None:
    model = make_head(kind)
    assert torch.equal(score(model, ENCODED), model(BATCH))
    with pytest.raises(ValueError, match=f"{kind.__name__} overrides"):
        score(model, ENCODED, precision="int8")


def test_hooks_of_all_modules_are_called() -> None:
    model, seen = make_head(), []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        outputs = InferenceSession(model)(BATCH)
    finally:
        handle.remove()
    assert seen
    assert not outputs.requires_grad
    assert difference(InferenceSession(model)(BATCH), outputs) < TOLERANCE["fp32"]


@torch.no_grad()
def test_a_token_index_of_its_own_is_used() -> None:
    model = make_head()
    model.token_index = lambda batch: batch.cu_seqlens[1:].long() - 1  # type: ignore[method-assign]
    assert difference(InferenceSession(model)(BATCH), model(BATCH)) < TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_widths_that_do_not_fit_are_refused(precision: str) -> None:
    linears = {"attention.W_v": nn.Linear(32, 16), "ffn.dense2": nn.Linear(63, 32), "ffn.dense1": nn.Linear(31, 64)}
    norms = {"addnorm1.ln": nn.LayerNorm(16, 1e-12)}
    for name, module in (linears | norms).items():
        model = make_head()
        model.encoder.blks[1].set_submodule(name, module)
        with pytest.raises(ValueError, match=rf"blks\.1\.{name}\.weight must have shape"):
            InferenceSession(model, precision)
    model = make_head()
    model.encoder.segment_embedding = nn.Embedding(2, 31)
    with pytest.raises(ValueError, match="segment_embedding must have shape"):
        InferenceSession(model, precision)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        InferenceSession(make_head(), "fp16")
    with pytest.raises(ValueError, match="precision='int8' was given with a session of precision 'bf16'"):
        score(InferenceSession(make_head(), "bf16"), ENCODED, precision="int8")


@pytest.mark.parametrize("count", [2, 26])
@pytest.mark.parametrize("kind", [BERTClassifier, Doubled])
def test_autocast_around_does_not_count(kind: type[Head], count: int) -> None:
    session, batch = InferenceSession(make_head(kind)), make_batch([9] * count)
    wanted = session(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(session(batch), wanted)
    assert not wanted.requires_grad


# ---- what is kept, and until when ----


def ema(p: Tensor) -> None:
    p.data.mul_(0.5).add_(0.01)


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_changed_weights_are_seen(precision: str) -> None:
    model = make_head()

    def check() -> None:
        assert difference(score(model, ENCODED, precision=precision), model(BATCH)) < 2 * TOLERANCE[precision]

    check()
    for name, parameter in model.named_parameters():
        session = InferenceSession(model, precision)
        ema(parameter)
        assert session.is_current() == (not name.startswith("encoder")), name  # heads are used as they are
        check()
    session = InferenceSession(model, precision)
    block(model, 0).ffn.dense1.weight.mul_(1.5)
    assert not session.is_current()
    check()
    model.encoder.token_embedding.weight.data = torch.randn(500, 32)
    check()
    weight = block(model, 0).attention.W_q.weight
    weight.data = weight.data.t()  # the same memory
    check()
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()})
    check()
    model.load_state_dict({k: 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()}, assign=True)
    check()
    nn.Sequential(model.encoder).load_state_dict(
        {f"0.{k}": 0.1 * torch.randn_like(v) for k, v in model.encoder.state_dict().items()}, assign=True
    )
    check()
    model.double().float()
    check()
    for name in ("encoder.blks.0.ffn.dense1", "encoder.token_embedding", "hidden.0", "output"):  # other parameters
        session, layer = InferenceSession(model, precision), cast(Any, model.get_submodule(name))
        layer.weight = nn.Parameter(-layer.weight)
        assert not session.is_current()
        check()


@pytest.mark.parametrize("of", ["model", "encoder"])
@torch.no_grad()
def test_replaced_modules_are_seen_after_train(of: str) -> None:
    model = make_head()
    score(model, ENCODED)
    block(model, 1).attention.W_q = nn.Linear(32, 32)
    model.encoder.blks.append(copy.deepcopy(model.encoder.blks[0]))
    model.output = nn.Linear(32, 5)
    (model if of == "model" else model.encoder).train()
    model.eval()
    assert difference(score(model, ENCODED), model(BATCH)) < TOLERANCE["fp32"]


def test_each_precision_is_prepacked_once(prepacked: list[str]) -> None:
    model = make_head()
    for _ in range(3):
        for precision in TOLERANCE:
            score(model, ENCODED, precision=precision)
    assert sorted(prepacked) == sorted(TOLERANCE)
    prepacked.clear()
    ema(model.encoder.pos_embedding)
    for precision in ("fp32", "int8", "fp32"):
        score(model, ENCODED, precision=precision)
    assert prepacked == ["fp32", "int8"]
    assert list(model.encoder.sessions[model]) == prepacked  # that of bf16, stale, is gone


def test_sessions_of_models_in_training_are_not_kept(prepacked: list[str]) -> None:
    model = make_head().train()
    for _ in range(2):
        score(model, ENCODED)
    assert len(prepacked) == 2
    assert not model.encoder.sessions


def test_a_session_of_ones_own_is_used_as_it_is(prepacked: list[str]) -> None:
    model = make_head()
    session = InferenceSession(model, "int8")
    wanted = session(BATCH)
    ema(block(model, 0).ffn.dense1.weight)
    assert torch.equal(score(session, ENCODED), wanted)
    assert prepacked == ["int8"]
    assert session.model is model
    assert not model.encoder.sessions


def test_another_instruction_set_is_seen(prepacked: list[str]) -> None:
    model = make_head()
    try:
        for isa in ("plain", ""):
            set_cpu_isa(isa)
            score(model, ENCODED)
    finally:
        set_cpu_isa("")
    assert len(prepacked) == 2


@torch.no_grad()
def test_copies_and_pickles_have_no_sessions() -> None:
    model = make_head()
    wanted = score(model, ENCODED)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert model.encoder.sessions
        assert not other.encoder.sessions
        assert torch.equal(score(other, ENCODED), wanted)


@pytest.mark.parametrize("kind", [BERTClassifier, Doubled])
def test_a_kept_session_keeps_no_model_alive(kind: type[Head]) -> None:
    model = make_head(kind)
    score(model, ENCODED)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_models_of_inference_mode_are_prepacked_at_each_call(prepacked: list[str]) -> None:
    with torch.inference_mode():
        model = make_head()
        for factor in (1, 2):
            block(model, 0).ffn.dense1.weight.mul_(factor)
            assert difference(score(model, ENCODED), model(BATCH)) < TOLERANCE["fp32"]
    assert len(prepacked) == 2


def test_heads_that_share_an_encoder_have_sessions_of_their_own() -> None:
    model = make_head()
    tagger = BERTTagger(model, 5).eval()
    for _ in range(2):
        assert score(model, ENCODED).shape == (3, 3)
        assert score(tagger, ENCODED).shape == (43, 5)


def test_threads_share_a_model() -> None:
    """Each call's precision is its own."""
    model, encoded = make_head(), make_encoded([20] * 30)
    work = [*TOLERANCE] * 20
    wanted = {precision: score(model, encoded, precision=precision, batch_size=3) for precision in TOLERANCE}
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda precision: score(model, encoded, precision=precision, batch_size=3), work)
        for precision, found in zip(work, results, strict=True):
            assert torch.equal(found, wanted[precision]), precision
