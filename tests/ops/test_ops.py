"""The operators that go row by row against PyTorch's expressions in float64, and the Philox mask of test_attention."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.dropout import row_mask
from helpers.isa import ISAS
from helpers.operators import (
    add_norm_inputs,
    embed_inputs,
    plain_add_norm,
    plain_bias_act,
    plain_embed,
    random,
    with_gradients,
)
from torch import Tensor

from bertnli import ops
from bertnli.training import adam as optim  # noqa: F401  (registers Adam's operators)

WIDTHS = [1, 3, 16, 37, 64, 384]
DTYPES = [
    *((isa, dtype) for isa in ISAS for dtype in (torch.float32, torch.bfloat16)),
    ("plain", torch.float64),
]


def assert_as_exact_as_pytorch(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], dout: Tensor
) -> None:
    """Our error against float64 is at most twice that of PyTorch in the same dtype, outputs and gradients."""
    exact = with_gradients(theirs, [x.double() for x in inputs], dout.double())
    results = zip(with_gradients(ours, inputs, dout), with_gradients(theirs, inputs, dout), exact, strict=True)
    for i, (a, b, reference) in enumerate(results):
        assert a.shape == reference.shape
        assert a.dtype == b.dtype
        # PyTorch's float64 is the reference itself; one unit of bfloat16 is more than a difference of rounding
        units = {torch.float32: 4, torch.bfloat16: 0.5, torch.float64: 1000}[a.dtype]
        floor = torch.finfo(a.dtype).eps * units * float(reference.abs().max())
        if a.dtype == torch.float64:
            floor = max(floor, 1e-12)  # where the true value is 0, as the gradient of a row of one column
        error, their_error = (float((x.double() - reference).abs().max()) for x in (a, b))
        assert error <= 2 * their_error + floor, f"result {i}: {error} against {their_error} of PyTorch"


# ---- dropout + residual + LayerNorm ----


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("isa", "dtype"), DTYPES, indirect=["isa"], ids=str)
def test_add_norm_is_as_exact_as_pytorch(isa: str, dtype: torch.dtype, width: int) -> None:
    inputs, dout = add_norm_inputs(131, width, dtype)
    assert_as_exact_as_pytorch(
        lambda x, y, w, b, y_bias: ops.add_norm(x, y, w, b, 1e-5, y_bias=y_bias), plain_add_norm, inputs, dout
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_add_norm_drops_what_it_documents(isa: str, width: int, p: float) -> None:
    inputs, dout = add_norm_inputs(70, width, torch.float32)
    seed = torch.tensor([2**40 + 5, -3])
    mask = row_mask(70, width, p, seed)
    expected = with_gradients(
        lambda *leaves: plain_add_norm(*leaves, mask), [x.double() for x in inputs], dout.double()
    )
    actual = with_gradients(
        lambda x, y, w, b, y_bias: ops.add_norm(x, y, w, b, 1e-5, p, y_bias=y_bias, seed=seed), inputs, dout
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5 * max(1, float(b.abs().max())), rtol=0)
    assert torch.equal(actual[2] != 0, (mask != 0) & (actual[1] != 0))  # dy's zeros are the mask


def test_add_norm_of_bfloat16_into_float32(isa: str) -> None:
    """As under autocast: the gradient of y is bfloat16, the rest float32."""
    (x, y, *vectors), dout = add_norm_inputs(40, 37, torch.float32)
    y = y.bfloat16()
    seed = torch.tensor([1, 2])

    def run(x: Tensor, y: Tensor, w: Tensor, b: Tensor, y_bias: Tensor) -> Tensor:
        return ops.add_norm(x, y, w, b, 1e-5, 0.2, y_bias=y_bias, seed=seed)

    mixed, single = (with_gradients(run, [x, v, *vectors], dout) for v in (y, y.float()))
    assert [t.dtype for t in mixed] == [torch.float32] * 2 + [torch.bfloat16] + [torch.float32] * 3
    for a, b in zip(mixed, single, strict=True):
        assert torch.equal(a, b.to(a.dtype))


def test_add_norm_statistics() -> None:
    """Which elements stay: binomial, over rows and over columns."""
    x, y = torch.zeros(400, 256), torch.ones(400, 256, requires_grad=True)
    torch.manual_seed(0)
    out = ops.add_norm(x, y, torch.ones(256), torch.zeros(256), 1e-5, 0.1)
    out.backward(torch.randn(400, 256))
    assert y.grad is not None
    kept = (y.grad != 0).double()
    assert abs(float(kept.mean()) - 0.9) < 0.004  # standard deviation 0.0009
    for axis, n in ((0, 400), (1, 256)):
        spread = float(kept.mean(axis).std())
        assert 0.85 < spread / (0.09 / n) ** 0.5 < 1.15


def test_add_norm_draws_its_seed_from_the_default_generator() -> None:
    (x, y, weight, bias, _), _ = add_norm_inputs(20, 8, torch.float32)

    def run() -> Tensor:
        return ops.add_norm(x, y, weight, bias, dropout_p=0.5)

    torch.manual_seed(11)
    first, second = run(), run()
    torch.manual_seed(11)
    assert torch.equal(first, run())
    assert not torch.equal(first, second)


def test_add_norm_of_large_means_and_constant_rows(isa: str) -> None:
    """The variance is taken about the mean: no cancellation; a constant row gives the bias."""
    x, y = random(9, 64) + 1e4, torch.zeros(9, 64)
    x[3] = 7.5
    weight, bias = random(64, seed=1), random(64, seed=2)
    out = ops.add_norm(x, y, weight, bias)
    expected = F.layer_norm(x.double(), (64,), weight.double(), bias.double())
    torch.testing.assert_close(out.double(), expected, atol=5e-3, rtol=0)
    assert torch.equal(out[3], bias)


# ---- bias + activation ----


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("isa", "dtype"), DTYPES, indirect=["isa"], ids=str)
def test_bias_act_is_as_exact_as_pytorch(isa: str, dtype: torch.dtype, kind: str, width: int) -> None:
    inputs, dout = [random(101, width, dtype=dtype), random(width, dtype=dtype, seed=1)], random(101, width, seed=2)
    assert_as_exact_as_pytorch(
        lambda x, bias: ops.bias_act(x, bias, kind), plain_bias_act(kind), inputs, dout.to(dtype)
    )


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_gelu_over_the_whole_range(isa: str, kind: str) -> None:
    x = torch.cat([torch.linspace(-15, 15, 60_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e18])])
    x = x[:, None]
    bias = torch.zeros(1)
    out, dx, _ = with_gradients(lambda x, b: ops.bias_act(x, b, kind), [x, bias], torch.ones_like(x))
    expected, slope, _ = with_gradients(plain_bias_act(kind), [x.double(), bias.double()], torch.ones_like(x).double())
    error = (out.double() - expected).abs() / x.abs().clamp(min=1)  # of the integral
    assert float(error.max()) < 2e-7
    # the tanh form's slope has the factor 1 - tanh, a difference of nearly equal numbers
    assert float((dx.double() - slope).abs().max()) < (3e-6 if kind == "gelu_tanh" else 1e-6)


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh"])
def test_activation_of_nan_and_infinity(isa: str, kind: str) -> None:
    x = torch.tensor([[float("nan"), float("inf"), 1.0]])
    out = ops.bias_act(x, torch.zeros(3), kind)
    assert out.isnan().tolist() == [[True, False, False]]
    assert float(out[0, 1]) == float("inf")


# ---- embedding ----


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("isa", "dtype"), DTYPES, indirect=["isa"], ids=str)
def test_embed_is_as_exact_as_pytorch(isa: str, dtype: torch.dtype, width: int) -> None:
    tables, ids, dout = embed_inputs(width, dtype)
    assert_as_exact_as_pytorch(lambda *t: ops.embed(*t, *ids), plain_embed(ids), tables, dout)


def test_large_table_gets_a_whole_gradient() -> None:
    """Above 32 MiB the gradient lies in memory of its own; it is zero where no token is, and lives on its own."""
    tables = [random(90_000, 96).requires_grad_(), random(2, 96), random(9, 96)]
    ids = [torch.tensor([0, 89_999, 5, 0]).int(), torch.tensor([0, 1, 1, 1]).int(), torch.tensor([0, 1, 2, 8]).int()]
    dout = random(4, 96, seed=3)
    expected = torch.zeros(90_000, 96).index_add(0, ids[0].long(), dout)
    for _ in range(2):
        tables[0].grad = None
        ops.embed(*tables, *ids).backward(dout)
        assert tables[0].grad is not None
        assert torch.equal(tables[0].grad, expected)
        assert tables[0].grad.is_contiguous()
    ops.embed(*tables, *ids).backward(dout)  # accumulates
    assert torch.equal(tables[0].grad, 2 * expected)


@pytest.mark.parametrize("wanted", range(3))
def test_only_the_wanted_table_gets_a_gradient(wanted: int) -> None:
    tables, ids, dout = embed_inputs(24, torch.float32)
    everything = with_gradients(lambda *t: ops.embed(*t, *ids), tables, dout)
    tables[wanted].requires_grad_()
    ops.embed(*tables, *ids).backward(dout)
    assert [t.grad is not None for t in tables] == [i == wanted for i in range(3)]
    assert torch.equal(tables[wanted].grad, everything[1 + wanted])


def test_a_sparse_gradient_has_the_dense_ones_rows() -> None:
    tables, ids, dout = embed_inputs(24, torch.float32)
    dense = with_gradients(lambda *t: ops.embed(*t, *ids), tables, dout)[1:]
    leaves = [t.requires_grad_() for t in tables]
    sparse = torch.autograd.grad(ops.embed(*leaves, *ids, sparse=True), leaves, dout)
    assert sparse[0].is_sparse
    assert torch.equal(sparse[0]._indices()[0], ids[0].unique().long())
    assert torch.equal(sparse[0].to_dense(), dense[0])
    assert all(torch.equal(a, b) for a, b in zip(sparse[1:], dense[1:], strict=True))


def embed_norm_inputs(width: int, dtype: torch.dtype, tokens: int = 130) -> tuple[list[Tensor], list[Tensor], Tensor]:
    tables, ids, dout = embed_inputs(width, dtype, tokens)
    return [*tables, random(width, dtype=dtype, seed=4), random(width, dtype=dtype, seed=5)], ids, dout


def plain_embed_norm(ids: list[Tensor], mask: Tensor | None = None) -> Callable[..., Tensor]:
    def run(token: Tensor, segment: Tensor, position: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = plain_embed(ids)(token, segment, position)
        normal = F.layer_norm(x, (x.size(1),), weight, bias, 1e-5)
        return normal if mask is None else normal * mask.to(x.dtype)

    return run


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("isa", "dtype"), DTYPES, indirect=["isa"], ids=str)
def test_embed_norm_is_as_exact_as_pytorch(isa: str, dtype: torch.dtype, width: int) -> None:
    inputs, ids, dout = embed_norm_inputs(width, dtype)
    tables, vectors = inputs[:3], inputs[3:]
    assert_as_exact_as_pytorch(
        lambda *t: ops.embed_norm(*t[:3], *ids, *t[3:], 1e-5), plain_embed_norm(ids), [*tables, *vectors], dout
    )


@pytest.mark.parametrize("width", [3, 64])
def test_embed_norm_drops_what_it_documents(isa: str, width: int) -> None:
    inputs, ids, dout = embed_norm_inputs(width, torch.float32)
    seed = torch.tensor([2**40 + 5, -3])
    mask = row_mask(130, width, 0.3, seed)

    def run(*t: Tensor, **options: Any) -> Tensor:
        return ops.embed_norm(*t[:3], *ids, *t[3:], 1e-5, 0.3, seed=seed, **options)

    assert_as_exact_as_pytorch(run, plain_embed_norm(ids, mask), inputs, dout)
    actual = with_gradients(run, inputs, dout)
    low = with_gradients(lambda *t: run(*t, dtype=torch.bfloat16), inputs, dout.bfloat16())
    assert torch.equal(low[0], actual[0].bfloat16())
    exact = with_gradients(run, inputs, dout.bfloat16().float())
    assert all(torch.equal(a, b) for a, b in zip(low[1:], exact[1:], strict=True))


# ---- all of them ----


def cases(dtype: torch.dtype, rows: int, width: int) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    inputs, _ = add_norm_inputs(rows, width, dtype)
    tables, ids, _ = embed_inputs(width, dtype, rows)
    seed = torch.tensor([5, 6])
    return {
        "add_norm": (lambda x, y, w, b, v: ops.add_norm(x, y, w, b, 1e-5, 0.3, y_bias=v, seed=seed), inputs),
        "no_dropout": (lambda x, y, w, b: ops.add_norm(x, y, w, b), inputs[:4]),
        "linear": (torch.ops.bertnli.linear, [inputs[0], random(width, width, dtype=dtype), inputs[3]]),
        "relu": (lambda x, b: ops.bias_act(x, b, "relu"), [inputs[0], inputs[3]]),
        "gelu": (lambda x, b: ops.bias_act(x, b, "gelu"), [inputs[0], inputs[3]]),
        "gelu_tanh": (lambda x, b: ops.bias_act(x, b, "gelu_tanh"), [inputs[0], inputs[3]]),
        "embed": (lambda *t: ops.embed(*t, *ids), tables),
        "take": (lambda table: ops.take(table, ids[0]), tables[:1]),
        "embed_norm": (lambda *t: ops.embed_norm(*t[:3], *ids, *t[3:], 1e-5, 0.3, seed=seed), [*tables, *inputs[2:4]]),
    }


# ---- products ----


@pytest.mark.parametrize(
    ("rows", "inner", "outer"),
    [
        *((rows, 37, 41) for rows in (0, 1, 2, 13, 14, 15, 31, 130)),
        *((70, inner, 33) for inner in (1, 2, 15, 16, 17, 32, 255, 256, 1030, 2100)),
        *((70, 33, outer) for outer in (1, 2, 15, 16, 17, 31, 32, 100, 400)),
        *((rows, 48, 24) for rows in (511, 513, 1025, 2051)),  # more than one block of a weight's gradient
    ],
)
@pytest.mark.parametrize(("isa", "dtype"), DTYPES, indirect=["isa"], ids=str)
def test_linear_is_as_exact_as_pytorch(isa: str, dtype: torch.dtype, rows: int, inner: int, outer: int) -> None:
    inputs = [random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(((rows, inner), (outer, inner), (outer,)))]
    dout = random(rows, outer, dtype=dtype, seed=3)
    if not rows:
        for x, gradient in zip(inputs, with_gradients(torch.ops.bertnli.linear, inputs, dout)[1:], strict=True):
            assert torch.equal(gradient, torch.zeros_like(x))
        return
    assert_as_exact_as_pytorch(torch.ops.bertnli.linear, F.linear, inputs, dout)
    assert_as_exact_as_pytorch(lambda x, w: torch.ops.bertnli.linear(x, w, None), F.linear, inputs[:2], dout)


@pytest.mark.parametrize(("isa", "dtype"), DTYPES, indirect=["isa"], ids=str)
def test_linear_of_integers_is_exact_whatever_the_strides(isa: str, dtype: torch.dtype) -> None:
    """Columns of wider matrices, transposed ones and expanded gradients; small integers are summed without rounding."""

    def product(x: Tensor, w: Tensor) -> Tensor:
        found: Tensor = torch.ops.bertnli.linear(x, w, None)
        return found

    generator = torch.Generator().manual_seed(0)
    for rows, inner, outer in ((5, 7, 9), (40, 64, 34), (33, 18, 96)):
        x, w, dout = (
            torch.randint(-2, 3, shape, generator=generator).to(dtype)
            for shape in ((rows, inner), (outer, inner), (rows, outer))
        )
        wanted = [x.double() @ w.double().t(), dout.double() @ w.double(), dout.double().t() @ x.double()]
        wide = [torch.cat([m, m + 1], 1)[:, : m.size(1)] for m in (x, w, dout)]
        turned = [m.t().contiguous().t() for m in (x, w, dout)]
        odd = [torch.cat([m[:, :1], m], 1)[:, 1:] for m in (x, w, dout)]
        for a, b, c in ((x, w, dout), wide, turned, odd):
            results = with_gradients(product, [a, b], c)
            for found, true in zip(results, wanted, strict=True):
                assert torch.equal(found.double(), true)
        total = with_gradients(product, [x, w], x.new_ones(1).expand(rows, outer))
        assert torch.equal(total[2].double(), x.double().sum(0).expand(outer, inner))


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)])
def test_linear_leaves_out_the_gradients_that_nobody_wants(wanted: tuple[int, ...]) -> None:
    inputs, dout = [random(9, 8), random(4, 8), random(4)], random(9, 4, seed=1)
    exact = with_gradients(F.linear, inputs, dout)[1:]
    leaves = [x.requires_grad_(bool(want)) for x, want in zip(inputs, wanted, strict=True)]
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        out = torch.ops.bertnli.linear(*leaves)
    assert kept == [shape for shape, want in zip(((9, 8), (4, 8)), (wanted[1], wanted[0]), strict=True) if want]
    out.backward(dout)
    for x, want, gradient in zip(leaves, wanted, exact, strict=True):
        assert (x.grad is not None) == bool(want)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, gradient)
    dx, dweight = torch.ops.bertnli.linear_backward(dout, inputs[0], None)
    assert (dx.numel(), dweight.shape) == (0, (4, 8))
    dx, dweight = torch.ops.bertnli.linear_backward(dout, None, inputs[1])
    assert (dx.shape, dweight.numel()) == ((9, 8), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_linear_takes_a_bias_of_any_dtype(dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    x, w, b, dout = random(20, 8, dtype=dtype), random(4, 8, dtype=dtype), random(4, dtype=bias_dtype), random(20, 4)
    exact = x.double() @ w.double().t() + b.double()
    eps = max(torch.finfo(dtype).eps, torch.finfo(bias_dtype).eps)
    tolerance = dict(rtol=2 * eps, atol=10 * eps)
    for linear in (torch.ops.bertnli.linear, ops.linear):
        leaf = b.clone().requires_grad_()
        found = linear(x, w, leaf)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, **tolerance)
        found.backward(dout.to(dtype))
        torch.testing.assert_close(leaf.grad.double(), dout.to(dtype).double().sum(0), **tolerance)


def test_linear_has_second_derivatives() -> None:
    x, w, b = (t.requires_grad_() for t in (random(5, 4).double(), random(3, 4).double(), random(3).double()))
    torch.autograd.gradgradcheck(lambda *t: torch.ops.bertnli.linear(*t).sin(), (x, w, b))
    x, w = (t.detach().float().requires_grad_() for t in (x, w))
    for linear in (F.linear, torch.ops.bertnli.linear):
        (gradient,) = torch.autograd.grad(linear(x, w, None).square().sum(), x, create_graph=True)
        found = torch.autograd.grad(gradient.square().sum(), (x, w))
        if linear is F.linear:
            wanted = found
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_of_few_rows_does_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    """Nor where threads share the outputs instead of the rows."""
    before = torch.get_num_threads()
    inputs, dout = [random(40, 300, dtype=dtype), random(520, 300, dtype=dtype)], random(40, 520, dtype=dtype, seed=4)
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(with_gradients(lambda x, w: torch.ops.bertnli.linear(x, w, None), inputs, dout))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_linear_in_two_threads_at_once() -> None:
    inputs, dout = [random(300, 200), random(100, 200)], random(300, 100, seed=4)
    wanted = with_gradients(lambda x, w: torch.ops.bertnli.linear(x, w, None), inputs, dout)

    def run(_: int) -> bool:
        found = with_gradients(lambda x, w: torch.ops.bertnli.linear(x, w, None), inputs, dout)
        return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(40)))


def test_linear_keeps_what_is_no_number(isa: str) -> None:
    x, w = random(40, 20), random(10, 20)
    x[3, 5], x[7, 1] = float("nan"), float("inf")
    found = torch.ops.bertnli.linear(x, w, None)
    assert found[3].isnan().all()
    assert found[7].isinf().all()
    assert found.isfinite().all(1).sum() == 38


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((random(4, 3), random(5, 2), None), r"weight must have shape \[outputs, 3\]; found \[5, 2\]"),
        ((random(4, 3), random(5, 3), random(4)), r"bias must have shape \[5\]; found \[4\]"),
        ((random(4, 3), random(5, 3).bfloat16(), None), "weight must have x's dtype float; found c10::BFloat16"),
        ((random(4), random(5, 3), None), r"x must be a matrix; found \[4\]"),
        ((random(4, 3).half(), random(5, 3).half(), None), "x must be float32, bfloat16 or float64; found c10::Half"),
    ],
)
def test_linear_says_what_does_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bertnli.linear(*arguments)


def test_linear_is_ours_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    own = ops._lib.linear
    monkeypatch.setattr(ops._lib, "linear", lambda x, w, b: calls.append(x) or own(x, w, b))
    monkeypatch.setattr(ops, "own_products", lambda dtype: dtype == torch.float32)
    x, w, b = random(6, 8), random(4, 8), random(4)
    torch.testing.assert_close(ops.linear(x, w, b), F.linear(x, w, b))
    assert torch.equal(ops.linear(x[:1], w, b), F.linear(x[:1], w, b))
    assert len(calls) == 2
    assert torch.equal(ops.linear(x.view(2, 3, 8), w, b), F.linear(x.view(2, 3, 8), w, b))
    assert torch.equal(ops.linear(x.double(), w.double(), b.double()), F.linear(x.double(), w.double(), b.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x, w, b).dtype == torch.bfloat16

    class Halved(Tensor):
        """A weight that says itself what a linear layer does."""

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
            if function is F.linear:
                return F.linear(args[0], args[1].as_subclass(Tensor) / 2)
            return super().__torch_function__(function, types, args, kwargs or {})

    assert torch.equal(ops.linear(x, w.as_subclass(Halved)), F.linear(x, w / 2))
    assert len(calls) == 2


def test_own_products_follow_the_instruction_set(isa: str) -> None:
    assert not ops.own_products(torch.float64)
    assert ops.own_products(torch.bfloat16) <= (isa == "avx512_bf16")
    assert ops.own_products(torch.float32) <= isa.startswith("avx512")
    info = Path("/proc/cpuinfo")
    if info.exists() and "AuthenticAMD" in info.read_text() and torch._C.has_mkl and ops.cpu_threads() > 1:
        assert ops.own_products(torch.float32) == isa.startswith("avx512")
        assert ops.own_products(torch.bfloat16) == (isa == "avx512_bf16")


CASES = list(cases(torch.float32, 1, 1))


@pytest.mark.parametrize("name", CASES)
def test_result_does_not_depend_on_the_number_of_threads(name: str) -> None:
    function, inputs = cases(torch.float32, 900, 200)[name]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(with_gradients(function, inputs, random(900, 200, seed=4)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    function, inputs = cases(torch.float64, 5, 7)[name]
    torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at the first dual
@pytest.mark.parametrize("name", CASES)
def test_a_node_only_where_a_gradient_is_wanted(name: str) -> None:
    """Constants go through functorch's transforms, which refuse such nodes; compiled autograd takes them."""
    function, inputs = cases(torch.float32, 5, 8)[name]
    inputs = [x.detach() for x in inputs]
    value = function(*inputs)
    assert not value.requires_grad
    gradient = torch.func.grad(lambda factor: (function(*inputs) * factor).sum())(torch.ones(8))
    torch.testing.assert_close(gradient, value.sum(0))
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)) for x in inputs]
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            function(*duals)
    wanted = with_gradients(function, inputs, torch.ones_like(value))[1:]
    leaves = [x.requires_grad_() for x in inputs]
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        function(*leaves).sum().backward()
    for x, w in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(x.grad, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    (x, y, w, b, v), _ = add_norm_inputs(6, 8, dtype)
    tables, ids, _ = embed_inputs(8, dtype, 6)
    leaves = [t.requires_grad_() for t in (x, y, v, w, b)]
    lib = torch.ops.bertnli
    torch.library.opcheck(lib.add_norm, (*leaves, 1e-5, 0.1, torch.tensor([1, 2])))
    torch.library.opcheck(lib.add_norm, (x, y, None, w, b, 1e-5, 0.0, None))
    for kind in ("relu", "gelu", "gelu_tanh"):
        torch.library.opcheck(lib.bias_act, (x, b, kind))
    torch.library.opcheck(lib.linear, (x, random(5, 8, dtype=dtype).requires_grad_(), random(5, dtype=dtype)))
    torch.library.opcheck(lib.linear, (x.detach(), random(5, 8, dtype=dtype).requires_grad_(), None))
    torch.library.opcheck(lib.linear_backward, (random(6, 5, dtype=dtype), x.detach(), random(5, 8, dtype=dtype)))
    torch.library.opcheck(lib.embed, (*(t.requires_grad_() for t in tables), *ids, False))
    torch.library.opcheck(lib.embed, (tables[0], tables[1].detach(), tables[2].detach(), *ids, False))
    torch.library.opcheck(lib.embed_norm, (*tables, *ids, w, b, 1e-5, 0.1, torch.tensor([1, 2]), dtype, False))
    torch.library.opcheck(lib.embed_norm, (*tables, *ids, w, b, 1e-5, 0.0, None, dtype, False))
    gradients = [random(6, 8), random(5, dtype=dtype)]
    torch.library.opcheck(lib.gradient_norm, (gradients,))
    states = [[random(6, 8), random(5)] for _ in range(2)] + [[random(6, 8).abs(), random(5).abs()]]
    copies = [torch.empty(6, 8, dtype=torch.bfloat16), torch.empty(0)]
    numbers = (0.1, 1.5, 0.99), (0.9, 0.999, 1e-8, 0.0)
    torch.library.opcheck(lib.adam_step, (states[0], gradients, *states[1:], copies, *numbers[0], *numbers[1], 0.5))
    rows, table = torch.tensor([4, 1], dtype=torch.int32), [random(6, 8), random(6, 8), random(6, 8).abs()]
    torch.library.opcheck(lib.adam_rows, (table[0], rows, random(2, 8), *table[1:], *numbers[0], *numbers[1], 0.5))
    last, steps = torch.zeros(6, dtype=torch.int32), torch.rand(5, 3, dtype=torch.float64)
    torch.library.opcheck(lib.adam_catch_up, (table[0], rows, *table[1:], last, steps, 3, *numbers[1]))


def test_compile_without_graph_breaks() -> None:
    def run(token: Tensor, segment: Tensor, position: Tensor, ids: list[Tensor]) -> Tensor:
        x = ops.embed(token, segment, position, *ids)
        y = ops.bias_act(torch.ops.bertnli.linear(x, token, None)[:, :16], segment[0], "gelu")
        return ops.add_norm(x, y, segment[0], segment[1], y_bias=segment[1]).square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for tokens in (5, 9, 30):
        tables, ids, _ = embed_inputs(16, torch.float32, tokens)
        leaves = [t.requires_grad_() for t in tables]
        expected = torch.autograd.grad(run(*leaves, ids), leaves)
        for a, b in zip(torch.autograd.grad(compiled(*leaves, ids), leaves), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", CASES)
def test_no_tokens(isa: str, name: str) -> None:
    function, inputs = cases(torch.float32, 0, 12)[name]
    out, *gradients = with_gradients(function, inputs, torch.zeros(0, 12))
    assert out.shape == (0, 12)
    for x, gradient in zip(inputs, gradients, strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["add_norm", "gelu"])
def test_any_strides_give_the_same(isa: str, name: str) -> None:
    function, inputs = cases(torch.float32, 30, 12)[name]
    dout = torch.randn(12).expand(30, 12)  # what .sum().backward() sends
    plain = with_gradients(function, inputs, dout.contiguous())
    odd = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    leaves = [x.detach().requires_grad_() for x in odd]
    out = function(*leaves)
    for a, b in zip([out, *torch.autograd.grad(out, leaves, dout)], plain, strict=True):
        assert torch.equal(a, b)


# ---- bad input ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x must have shape \[tokens, width\]"),
        ({"x": torch.zeros(3, 8, dtype=torch.float16)}, "x must be float32, bfloat16 or float64"),
        ({"y": torch.zeros(3, 7)}, r"y must have x's shape \[3, 8\]; found \[3, 7\]"),
        ({"y": torch.zeros(3, 8, dtype=torch.float64)}, "y must have x's dtype"),
        ({"x": torch.zeros(3, 8).bfloat16()}, "y must have x's dtype"),
        ({"weight": torch.zeros(7)}, r"weight must have shape \[8\]; found \[7\]"),
        ({"bias": torch.zeros(8, dtype=torch.int64)}, "bias must have a floating-point dtype"),
        ({"y_bias": torch.zeros(1, 8)}, r"y_bias must have shape \[8\]"),
        ({"dropout_p": 1.0}, "dropout_p must be at least 0 and below 1; found 1"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1])}, r"seed must be an int64 tensor of shape \[2\]"),
    ],
)
def test_bad_add_norm(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(3, 8), "y": torch.zeros(3, 8), "weight": torch.ones(8), "bias": torch.ones(8)}
    with pytest.raises(RuntimeError, match=message):
        ops.add_norm(**{**arguments, **change})


def test_bad_bias_act() -> None:
    with pytest.raises(RuntimeError, match="kind must be 'relu', 'gelu' or 'gelu_tanh'; found 'tanh'"):
        ops.bias_act(torch.zeros(3, 8), torch.zeros(8), "tanh")
    with pytest.raises(RuntimeError, match=r"bias must have shape \[8\]; found \[9\]"):
        ops.bias_act(torch.zeros(3, 8), torch.zeros(9), "gelu")


@pytest.mark.parametrize(
    ("at", "value", "error", "message"),
    [
        (3, torch.tensor([0, 50]), IndexError, "token id 50 lies outside the model's vocabulary of 50"),
        (3, torch.tensor([-1, 0]), IndexError, "token id -1 lies outside"),
        (4, torch.tensor([0, 2]), IndexError, "segment id 2 lies outside the model's 2 segment embeddings"),
        (5, torch.tensor([0, 40]), IndexError, "position 40 lies outside the model's 40 position embeddings"),
        (4, torch.tensor([0]), RuntimeError, r"segment_ids must have shape \[2\]; found \[1\]"),
        (5, torch.tensor([0.0, 1.0]), RuntimeError, "positions must be int32"),
        (1, torch.zeros(2, 9), RuntimeError, r"segment_table must have shape \[rows, 8\]; found \[2, 9\]"),
        (2, torch.zeros(40, 8).double(), RuntimeError, "position_table must have token_table's dtype"),
    ],
)
def test_bad_embed(at: int, value: Tensor, error: type[Exception], message: str) -> None:
    tables, ids, _ = embed_inputs(8, torch.float32, 2)
    arguments = [*tables, *ids]
    arguments[at] = value if value.is_floating_point() else value.int()
    with pytest.raises(error, match=message):
        ops.embed(*arguments)


def test_kernels_share_their_work_among_threads() -> None:
    """A build without OpenMP would leave ATen's parallel_for, and so every operator, on one thread."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert ops.cpu_threads() == threads
    finally:
        torch.set_num_threads(before)
