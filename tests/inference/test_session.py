"""The encoder of inference against its own modules: every instruction set, precision, width and set of rows."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.isa import ISAS_WITH_AMX, set_cpu_isa
from torch import Tensor, nn

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTEncoder,
    BERTModel,
    BERTTagger,
    EncodedTexts,
    Head,
    PackedBatch,
    evaluate,
    score,
)
from bertnli.encoder.bert import operators
from bertnli.inference.session import prepared

# Of the largest element. fp32 is exact to rounding; bf16 has 8 bits and int8 7, both rounded once a product.
TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3, "int8": 3e-2}


@pytest.fixture(params=ISAS_WITH_AMX)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    set_cpu_isa(request.param)
    yield request.param
    set_cpu_isa("")


def encoder(original: bool, hidden: int, inner: int, heads: int, layers: int = 2) -> BERTEncoder:
    torch.manual_seed(hidden)
    make = BERTConfig.original if original else BERTConfig
    config = make(
        500, num_hiddens=hidden, ffn_num_hiddens=inner, num_heads=heads, num_layers=layers, dropout=0.1, max_len=80
    )
    made = BERTEncoder(config).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() == 1:
                p += 0.1 * torch.randn_like(p)
    return made


def batch_of(lens: list[int]) -> PackedBatch:
    g = torch.Generator().manual_seed(sum(lens))
    shape = (len(lens), max(lens, default=1))
    ids, segments = torch.randint(500, shape, generator=g), torch.randint(2, shape, generator=g)
    return PackedBatch.from_padded(ids, segments, torch.tensor(lens))


def run(encoder: BERTEncoder, batch: PackedBatch, precision: str, rows: Tensor | None = None) -> Tensor:
    with torch.no_grad(), prepared(encoder, precision):
        assert encoder in operators.of
        return encoder(batch, rows=rows)


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(
    ("original", "sizes"),
    [(True, (64, 160, 2)), (False, (96, 64, 3)), (True, (30, 54, 3)), (False, (21, 33, 7)), (True, (20, 1030, 1))],
)
@torch.no_grad()
def test_equals_the_modules(isa: str, original: bool, sizes: tuple[int, int, int], precision: str) -> None:
    made = encoder(original, *sizes)
    lens = [1, 27, 60, 0, 14, 15, 80, 3, *[29] * 20]
    batch = batch_of(lens)
    total = sum(lens)
    first = batch.cu_seqlens[:-1][batch.cu_seqlens.diff() > 0].long()
    some = [
        None,
        first,
        first[2:3],
        torch.arange(0, total, 2),
        torch.tensor([5, 5, 6]),
        torch.arange(total).repeat_interleave(5),  # each again and again
        torch.tensor([], dtype=torch.long),
    ]
    for rows in some:
        wanted, found = made(batch, rows=rows), run(made, batch, precision, rows)
        assert found.shape == wanted.shape
        if wanted.numel():
            assert difference(found, wanted) < TOLERANCE[precision]


@torch.no_grad()
def test_bf16_without_instructions_for_it_rounds_only_weights(isa: str) -> None:
    if isa in ("avx512_bf16", "amx"):
        pytest.skip("rounds the inputs of products too")
    made, batch = encoder(False, 96, 64, 3), batch_of([27, 60, 1, 14])
    rounded = copy.deepcopy(made)
    for m in rounded.blks.modules():
        if isinstance(m, torch.nn.Linear):
            m.weight.copy_(m.weight.bfloat16())
    for rows in (None, batch.cu_seqlens[:-1].long()):
        assert difference(run(made, batch, "bf16", rows), run(rounded, batch, "fp32", rows)) < 2e-6


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@torch.no_grad()
def test_a_weight_that_is_no_number_shows(isa: str, bad: float, precision: str) -> None:
    made, batch = encoder(True, 96, 64, 3), batch_of([27, 60])
    made.blks[1].ffn.dense2.weight[3, 5] = bad
    assert not run(made, batch, precision).isfinite().all(1).any()


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_does_not_depend_on_the_batch_or_the_threads(precision: str) -> None:
    """One chunk shared by all threads and chunks that each thread takes by itself give the same bits."""
    made = encoder(True, 64, 160, 2)
    lens = [20 + i % 31 for i in range(60)]
    whole = batch_of(lens)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(made, whole, precision))
            few = run(made, batch_of(lens[:1]), precision)
            assert torch.equal(few, run(made, batch_of(lens[:1]), precision))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_depth_that_is_cut(isa: str, precision: str) -> None:
    """More than 1024 steps, of one to four elements, are summed in parts."""
    made = encoder(False, 16, 4506, 2, layers=1)
    batch = batch_of([30] * 5)
    assert difference(run(made, batch, precision), made(batch)) < TOLERANCE[precision]


@pytest.mark.parametrize("layers", [0, 1])
@torch.no_grad()
def test_few_layers_and_no_tokens(layers: int) -> None:
    made = encoder(True, 16, 24, 2, layers)
    rows = torch.tensor([0, 9])
    assert difference(run(made, batch_of([9, 4]), "fp32", rows), made(batch_of([9, 4]), rows=rows)) < 1e-5
    empty = batch_of([])
    assert run(made, empty, "int8").shape == (0, 16)


@torch.no_grad()
def test_weights_are_packed_anew_when_they_change() -> None:
    made, batch = encoder(True, 16, 24, 2), batch_of([9, 4])

    def check() -> None:
        assert difference(run(made, batch, "fp32"), made(batch)) < TOLERANCE["fp32"]

    check()
    made.blks[0].ffn.dense1.weight.mul_(1.5)  # in place
    check()
    made.blks[1].attention.W_q = nn.Linear(16, 16)  # a module of its own kind
    check()
    made.token_embedding.weight.data = torch.randn(500, 16)  # other memory
    made.pos_embedding.data = torch.randn(1, 80, 16)
    check()
    made.blks.append(copy.deepcopy(made.blks[0]))
    check()
    del made.blks[0]
    check()
    made.load_state_dict({k: torch.randn_like(v) for k, v in made.state_dict().items()})
    check()
    made.train()
    made.blks[0].ffn.dense1.weight.data.mul_(2)  # in place, unseen
    made.eval()
    check()


@torch.no_grad()
def test_other_modules_run_as_they_are() -> None:
    made, batch = encoder(True, 16, 24, 2), batch_of([9, 4])
    calls = []
    with prepared(made, "fp32") as stands:  # packed now
        assert stands
    handle = made.blks[0].register_forward_hook(lambda *_: calls.append(1))
    with prepared(made, "fp32") as stands:
        assert not stands
        made(batch)
    assert calls
    with pytest.raises(ValueError, match="'int8' is for float32 encoders"), prepared(made, "int8"):
        pass
    handle.remove()
    block = made.blks[0]
    for part in (block, block.attention, block.attention.W_q, block.ffn, block.addnorm1, block.addnorm2.ln):
        part.forward = part.forward
        with prepared(made, "fp32") as stands:
            assert not stands
        del part.forward
    for part, name, value in (
        (block.ffn, "activation", "relu"),
        (block.attention, "num_heads", 4),
        (block.addnorm2.ln, "eps", 0.1),
        (made.embedding_norm, "eps", 0.1),
    ):
        before = getattr(part, name)
        setattr(part, name, value)
        wanted = made(batch)
        with prepared(made, "fp32") as stands:
            assert not stands
            assert torch.equal(made(batch), wanted)
        setattr(part, name, before)
    with prepared(made, "fp32") as stands:
        assert stands

    class Other(nn.Linear):
        pass

    made.blks[0].ffn.dense1 = Other(16, 24)
    with prepared(made, "fp32") as stands:
        assert not stands
    with prepared(copy.deepcopy(made).double(), "bf16"):
        pass
    with pytest.raises(ValueError, match="precision must be one of"), prepared(made, "fp16"):
        pass


@torch.no_grad()
def test_bad_input_is_refused() -> None:
    made = encoder(True, 16, 24, 2)
    with pytest.raises(IndexError, match="token id 500 lies outside"):
        run(made, PackedBatch.from_padded(torch.tensor([[500]]), torch.tensor([[0]])), "fp32")
    with pytest.raises(ValueError, match="rows must be ascending"):
        run(made, batch_of([9]), "fp32", torch.tensor([3, 2]))
    with pytest.raises(IndexError, match="rows must lie between"):
        run(made, batch_of([9]), "fp32", torch.tensor([9]))
    with pytest.raises(ValueError, match="longer than the model's max_len"):
        run(made, batch_of([81]), "fp32")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_score(precision: str) -> None:
    """Through a head, and a model in training stays as it is."""
    config = BERTConfig.original(500, num_hiddens=32, ffn_num_hiddens=64, num_heads=2, num_layers=2, max_len=80)
    model = BERTClassifier(BERTModel(config))
    lens = torch.tensor([10, 30, 2, 20])
    ids = torch.randint(500, (int(lens.sum()),), dtype=torch.int32)
    offsets = torch.tensor([0, *lens.cumsum(0)])
    pairs = EncodedTexts(ids, offsets, (lens // 2 + 1).to(torch.int32), None, pad_id=0, max_len=80)
    found = score(model, pairs, precision=precision, batch_size=3)
    assert model.training
    assert not operators.of
    with torch.no_grad():
        wanted = model.eval()(pairs.batch(range(4)))
    assert difference(found, wanted) < 2 * TOLERANCE[precision]


def encoded_of(lens: list[int]) -> EncodedTexts:
    g = torch.Generator().manual_seed(len(lens))
    ids, offsets = torch.randint(500, (sum(lens),), dtype=torch.int32, generator=g), torch.tensor([0, *lens]).cumsum(0)
    return EncodedTexts(ids, offsets, (torch.tensor(lens) // 2 + 1).int(), None, pad_id=0, max_len=80)


def head_of(kind: type[Head] = BERTClassifier, hidden: int = 32, labels: int = 3) -> Head:
    torch.manual_seed(hidden + labels)
    config = BERTConfig.original(500, num_hiddens=hidden, ffn_num_hiddens=64, num_heads=2, num_layers=2, max_len=80)
    return kind(BERTModel(config), labels).eval()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("kind", [BERTClassifier, BERTTagger])
@torch.no_grad()
def test_heads_are_part_of_the_operator(kind: type[Head], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = head_of(kind), encoded_of([1, 27, 60, 14, 80, 3, *[29] * 20])
    batch = pairs.batch(range(len(pairs)))
    with prepared(model.encoder, precision):
        wanted = model.head(model.features(batch))
    monkeypatch.setattr(model.output, "_call_impl", None)  # no module is called
    assert torch.equal(score(model, pairs, precision=precision), wanted)
    with prepared(model, precision):
        assert model(pairs[:0].batch([])).shape == (0, 3)
        with pytest.raises(ValueError, match="longer than the model's max_len"):
            model(batch_of([81]))


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_a_sequence_has_the_bits_that_it_has_in_a_batch(isa: str, precision: str) -> None:
    """In tiles of any height, whatever the number of rows that are read, and where the depth is cut too."""
    for sizes, lens in (((96, 160, 3), [1, 2, 3, 27, 60, 14, 31, *[20] * 9]), ((160, 4506, 5, 1), [1, 2, 3, 5, 1])):
        made, pairs = encoder(True, *sizes), encoded_of(lens)
        for read in (False, True):
            parts = []
            for size in (len(lens), 1, 2, 3):
                batches = [pairs.batch(range(i, min(len(lens), i + size))) for i in range(0, len(lens), size)]
                found = [run(made, b, precision, b.cu_seqlens[:-1].long() if read else None) for b in batches]
                parts.append(torch.cat(found))
            assert all(torch.equal(parts[0], part) for part in parts)


def test_what_a_call_of_the_head_does_beside() -> None:
    """A `__call__` or `token_index` of its own, and hooks on all modules."""
    pairs = encoded_of([9, 4, 30])

    class Cooler(BERTClassifier):
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args) / 2

    wanted = score(head_of(), pairs)
    torch.testing.assert_close(score(head_of(Cooler), pairs), wanted / 2)
    model, seen = head_of(), []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        found = score(model, pairs)
    finally:
        handle.remove()
    assert seen
    assert torch.equal(found, wanted)
    assert not found.requires_grad
    model.token_index = lambda batch: batch.cu_seqlens[1:].long() - 1  # type: ignore[method-assign]
    with torch.no_grad():
        batch = pairs.batch(range(3))
        last = model.head(model.features(batch))
        assert torch.equal(model.token_index(batch), torch.tensor([8, 12, 42]))
    torch.testing.assert_close(score(model, pairs), last)


@torch.no_grad()
def test_heads_of_other_kinds_run_as_they_are() -> None:
    pairs = encoded_of([9, 4, 30])
    calls: list[object] = []

    class Doubled(BERTClassifier):
        def head(self, features: Tensor) -> Tensor:
            return 2 * super().head(features)

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self)
            return super().forward(x)

    def check(model: Head, calls_wanted: int = 0) -> None:
        calls.clear()
        wanted = model(pairs.batch(range(3)))
        assert difference(score(model, pairs), wanted) < TOLERANCE["fp32"]
        assert len(calls) == 2 * calls_wanted

    check(head_of(Doubled))
    model = head_of()
    check(model)  # the encoder is packed now: what follows is seen all the same
    for part in (model.encoder, model.hidden, model.hidden[0], model.hidden[1], model.dropout, model.output, model):
        handle = part.register_forward_hook(lambda *_: calls.append(1))
        check(model, 1)
        handle.remove()
        if part is not model:
            forward = part.forward
            part.forward = lambda *args, forward=forward, **options: (calls.append(1), forward(*args, **options))[1]
            check(model, 1)
            del part.forward
    model.output.weight.data += 1  # which counts no version
    check(model)
    model.output = nn.Linear(32, 5)
    check(model)
    model.hidden.append(nn.ReLU())
    check(model)
    del model.hidden[2]
    check(model)
    model.hidden.add_module("more", nn.ReLU())
    check(model)
    model.hidden = nn.Sequential(nn.Linear(32, 48), nn.Tanh())
    model.output = nn.Linear(48, 2, bias=False)
    check(model)
    model.output = Linear(48, 4)
    check(model, 1)
    model.head = lambda features: 3 * Head.head(model, features)  # type: ignore[method-assign]
    check(model, 1)


@pytest.mark.parametrize("count", [2, 26])
def test_autocast_around_does_not_count(count: int) -> None:
    model, pairs = head_of(), encoded_of([9] * count)
    wanted = score(model, pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(model, pairs), wanted)
    with prepared(model, "fp32"):
        assert not model(pairs.batch(range(count))).requires_grad


def test_a_hook_of_the_head_sees_eval_mode() -> None:
    model, pairs = head_of().train(), encoded_of([9, 4])
    seen: list[bool] = []
    wanted = score(model, pairs)
    model.register_forward_hook(lambda module, *_: seen.extend(m.training for m in (module, module.dropout)))
    torch.testing.assert_close(score(model, pairs), wanted)
    assert seen == [False, False]
    assert model.training
    assert model.dropout.training


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least its <cls> token"), prepared(model := head_of(), "fp32"):
        model(batch_of([9, 0, 4]))


@pytest.mark.parametrize("hooked", [False, True])
def test_scored_models_are_let_go(hooked: bool) -> None:
    model = head_of()
    score(model, encoded_of([9, 4]))
    if hooked:
        model.encoder.blks[0].register_forward_hook(lambda *_, model=model: None)
        score(model, encoded_of([9, 4]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_losses_drop_nothing_out() -> None:
    class Noisy(BERTClassifier):
        def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
            assert not self.dropout.training
            return super().loss(self.dropout(outputs), batch)

    pairs = encoded_of([9, 4])
    pairs.labels = torch.tensor([1, 2])
    evaluate(head_of(Noisy).train(), pairs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does
@pytest.mark.parametrize("inside", [True, False])
def test_compiled_models_drop_nothing_out(inside: bool) -> None:
    """What is compiled are the modules, whose mode counts."""
    model, pairs = head_of(), encoded_of([9, 4])
    wanted = score(model, pairs)
    model.train()
    if inside:
        model.compile(backend="eager")
    compiled = model if inside else torch.compile(model, backend="eager")
    with torch.no_grad():
        assert difference(score(compiled, pairs), wanted) < TOLERANCE["fp32"]
    assert all(m.training for m in model.modules())


def test_models_of_inference_mode() -> None:
    with torch.inference_mode():
        model = head_of()
    pairs = encoded_of([9, 4])
    with torch.inference_mode():
        for factor in (1, 2):
            model.encoder.blks[0].ffn.dense1.weight.mul_(factor)
            assert difference(score(model, pairs), model(pairs.batch(range(2)))) < TOLERANCE["fp32"]


@pytest.mark.parametrize("stands", [True, False])
def test_modes_are_each_restored(stands: bool) -> None:
    """Nothing drops out whatever mode a part is in, and it stays in it."""
    config = BERTConfig.original(500, num_hiddens=32, ffn_num_hiddens=64, num_heads=2, num_layers=2, max_len=80)
    model = BERTClassifier(BERTModel(config), dropout=0.5).eval()
    if not stands:
        model.encoder.blks[0].register_forward_hook(lambda *_: None)
    ids, offsets = torch.randint(500, (40,), dtype=torch.int32), torch.tensor([0, 15, 40])
    pairs = EncodedTexts(ids, offsets, torch.tensor([7, 9], dtype=torch.int32), None, pad_id=0, max_len=80)
    wanted = score(model, pairs)
    for part in (model.dropout, model.encoder.blks[1], model):
        part.train()
        modes = [m.training for m in model.modules()]
        assert torch.equal(score(model, pairs), wanted)
        assert [m.training for m in model.modules()] == modes


def test_threads_do_not_meet() -> None:
    """Each thread's precision is its own, on one model."""
    config = BERTConfig.original(500, num_hiddens=32, ffn_num_hiddens=64, num_heads=2, num_layers=2, max_len=80)
    model = BERTClassifier(BERTModel(config)).eval()
    offsets, first_lens = torch.arange(0, 601, 20), torch.full((30,), 9, dtype=torch.int32)
    pairs = EncodedTexts(torch.randint(500, (600,), dtype=torch.int32), offsets, first_lens, None, pad_id=0, max_len=80)
    work = [*TOLERANCE] * 20
    wanted = {precision: score(model, pairs, precision=precision, batch_size=3) for precision in TOLERANCE}
    with ThreadPoolExecutor(4) as pool:
        for precision, found in zip(
            work, pool.map(lambda p: score(model, pairs, precision=p, batch_size=3), work), strict=True
        ):
            assert torch.equal(found, wanted[precision]), precision
