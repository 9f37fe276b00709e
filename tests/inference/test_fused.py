"""The fused operator against the encoder's modules: every instruction set, precision, width and choice of tokens."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from helpers.isa import ISAS_WITH_AMX, set_cpu_isa
from helpers.models import TOLERANCE, block, difference, make_batch, make_encoded, make_head
from torch import Tensor, nn

from bertnli import Head, InferenceSession, PackedBatch

ALL_PRECISIONS = pytest.mark.parametrize("precision", TOLERANCE)


@pytest.fixture(params=ISAS_WITH_AMX)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    set_cpu_isa(request.param)
    yield request.param
    set_cpu_isa("")


def features(model: Head, batch: PackedBatch, precision: str, token_index: Tensor | None = None) -> Tensor:
    """The fused encoder's vectors of some tokens, else of all."""
    model.token_index = lambda batch: token_index  # type: ignore[method-assign]
    session = InferenceSession(model, precision)
    assert session.fused
    return session.features(batch)


@ALL_PRECISIONS
@pytest.mark.parametrize(
    ("original", "hidden", "inner", "heads"),
    [(True, 64, 160, 2), (False, 96, 64, 3), (True, 30, 54, 3), (False, 21, 33, 7), (True, 20, 1030, 1)],
)
@torch.no_grad()
def test_equals_the_modules(isa: str, original: bool, hidden: int, inner: int, heads: int, precision: str) -> None:
    model = make_head(original=original, hidden=hidden, inner=inner, heads=heads)
    lens = [1, 27, 60, 0, 14, 15, 80, 3, *[29] * 20]
    batch, tokens = make_batch(lens), sum(lens)
    first = batch.cu_seqlens[:-1][batch.cu_seqlens.diff() > 0].long()
    for index in (
        None,
        first,
        first[2:3],
        torch.arange(0, tokens, 2),
        torch.tensor([5, 5, 6]),
        torch.arange(tokens).repeat_interleave(5),
        torch.tensor([], dtype=torch.long),
    ):
        found = features(model, batch, precision, index)
        assert difference(found, model.encoder(batch, rows=index)) < TOLERANCE[precision]


@ALL_PRECISIONS
@torch.no_grad()
def test_layers_of_different_widths(precision: str) -> None:
    batch, index = make_batch([27, 9, 60]), torch.tensor([0, 27, 36])
    for layer, inner in ((0, 7), (1, 7), (0, 3000), (1, 3000)):
        model = make_head(layers=3)
        ffn = block(model, layer).ffn
        ffn.dense1, ffn.dense2 = nn.Linear(32, inner), nn.Linear(inner, 32)
        for some in (None, index):
            found = features(model, batch, precision, some)
            assert difference(found, model.encoder(batch, rows=some)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@torch.no_grad()
def test_the_largest_sums_of_integers_fit(isa: str, precision: str) -> None:
    """Inputs that are all as large as the largest, and weights too."""
    model, batch = make_head(hidden=64, inner=1030), make_batch([27, 9, 60])
    for p in model.encoder.blks.parameters():
        if p.dim() == 2:
            p.copy_(0.05 * torch.randn(len(p), 1).sign().expand_as(p))
    for i in range(2):
        block(model, i).ffn.dense1.weight.abs_()
        block(model, i).ffn.dense1.bias.fill_(5)
    assert difference(features(model, batch, precision), model.encoder(batch)) < TOLERANCE[precision]


@torch.no_grad()
def test_bf16_without_instructions_for_it(isa: str) -> None:
    """Plain kernels round only weights; those of x86 take integers that lose less."""
    if isa in ("avx512_bf16", "amx"):
        pytest.skip("rounds weights and inputs of products")
    model, batch = make_head(original=False, hidden=96, heads=3), make_batch([27, 60, 1, 14])
    rounded = copy.deepcopy(model)
    for module in rounded.encoder.blks.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(module.weight.bfloat16())
    for index in (None, batch.cu_seqlens[:-1].long()):
        expected, found = features(rounded, batch, "fp32", index), features(model, batch, "bf16", index)
        if isa == "plain":
            assert difference(found, expected) < 2e-6
        else:
            exact = features(model, batch, "fp32", index)
            assert (found - exact).norm() < (expected - exact).norm()


@ALL_PRECISIONS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@torch.no_grad()
def test_a_weight_that_is_not_finite_shows(isa: str, bad: float, precision: str) -> None:
    model = make_head(hidden=96, inner=160, heads=3)
    block(model, 1).ffn.dense2.weight[3, 5] = bad
    assert not features(model, make_batch([27, 60]), precision).isfinite().all(1).any()


@ALL_PRECISIONS
def test_results_do_not_depend_on_the_number_of_threads(precision: str) -> None:
    """One chunk whose steps all threads share, and chunks that each thread takes by itself, give the same bits."""
    session, encoded = InferenceSession(make_head(hidden=64, inner=160), precision), make_encoded([40] * 60)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([session(encoded.batch(range(n))) for n in (1, 60)])
    finally:
        torch.set_num_threads(before)
    for one, many in results[1:]:
        assert torch.equal(one, results[0][0])
        assert torch.equal(many, results[0][1])


@ALL_PRECISIONS
@pytest.mark.parametrize("read", ["first", "all"])
def test_results_do_not_depend_on_the_batch(isa: str, read: str, precision: str) -> None:
    """In tiles of any height, whatever the number of tokens that are read, and where the depth is cut too."""
    for lens, sizes in (
        ([1, 2, 3, 27, 60, 14, 31, *[20] * 9], dict(hidden=96, inner=160, heads=3)),
        ([1, 2, 3, 5, 1], dict(hidden=160, inner=4506, heads=5, layers=1)),
    ):
        model, encoded, parts = make_head(**sizes), make_encoded(lens), []  # type: ignore[arg-type]
        if read == "all":
            model.token_index = lambda batch: None  # type: ignore[method-assign]
        session = InferenceSession(model, precision)
        for size in (len(lens), 1, 2, 3):
            batches = [encoded.batch(range(i, min(len(lens), i + size))) for i in range(0, len(lens), size)]
            parts.append(torch.cat([session.features(batch) for batch in batches]))
        assert all(torch.equal(parts[0], part) for part in parts)


@ALL_PRECISIONS
@torch.no_grad()
def test_a_depth_that_is_summed_in_parts(isa: str, precision: str) -> None:
    """More than 1024 steps, of one to four elements."""
    model, batch = make_head(original=False, hidden=16, inner=4506, layers=1), make_batch([30] * 5)
    assert difference(features(model, batch, precision), model.encoder(batch)) < TOLERANCE[precision]


@pytest.mark.parametrize("layers", [0, 1])
@torch.no_grad()
def test_few_layers_and_no_tokens(layers: int) -> None:
    model, batch, index = make_head(hidden=16, layers=layers), make_batch([9, 4]), torch.tensor([0, 9])
    assert difference(features(model, batch, "fp32", index), model.encoder(batch, rows=index)) < 1e-5
    assert features(model, make_batch([]), "int8").shape == (0, 16)


def test_bad_input_is_refused() -> None:
    model = make_head()
    session = InferenceSession(model)
    with pytest.raises(IndexError, match="token id 500 lies outside"):
        session(PackedBatch.from_padded(torch.tensor([[500]]), torch.tensor([[0]])))
    with pytest.raises(ValueError, match="longer than the model's max_len"):
        session(make_batch([81]))
    with pytest.raises(ValueError, match="at least its <cls> token"):
        session(make_batch([9, 0, 4]))
    with pytest.raises(ValueError, match="rows must be ascending"):
        features(model, make_batch([9]), "fp32", torch.tensor([3, 2]))
    with pytest.raises(IndexError, match="rows must lie between"):
        features(model, make_batch([9]), "fp32", torch.tensor([9]))


def test_a_thread_that_writes_to_the_inputs_does_no_harm() -> None:
    """What is checked are copies, which are then used: a call gives outputs or an error."""
    model, batch = make_head(), make_encoded([20] * 100).batch(range(100))
    index = torch.arange(0, 2000, 7)
    model.token_index = lambda batch: index  # type: ignore[method-assign]
    session, done = InferenceSession(model), threading.Event()

    def write() -> None:
        while not done.is_set():
            for tensor in (batch.input_ids, batch.positions, batch.cu_seqlens, index):
                array = tensor.numpy()
                good, array[50] = array[50], 1 << 30
                array[50] = good

    thread = threading.Thread(target=write)
    thread.start()
    finished = 0
    for _ in range(200):
        with suppress(ValueError, IndexError, RuntimeError):
            finished += session(batch).shape == (len(index), 3)
    done.set()
    thread.join()
    assert finished
