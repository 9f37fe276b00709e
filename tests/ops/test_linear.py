"""linear against PyTorch's expressions in float64."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.operators import (
    DTYPES,
    assert_as_exact_as_pytorch,
    random,
    with_gradients,
)
from torch import Tensor

from bertnli import ops


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

    def pack(t: Tensor) -> Tensor:
        kept.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
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
    tolerance: dict[str, Any] = dict(rtol=2 * eps, atol=10 * eps)
    for linear in (torch.ops.bertnli.linear, ops.linear):
        leaf = b.clone().requires_grad_()
        found = linear(x, w, leaf)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, **tolerance)
        found.backward(dout.to(dtype))
        assert leaf.grad is not None
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
    own = torch.ops.bertnli.linear

    def counted(x: Tensor, w: Tensor, b: Tensor | None) -> Any:
        calls.append(x)
        return own(x, w, b)

    monkeypatch.setattr(torch.ops.bertnli, "linear", counted)
    module = importlib.import_module("bertnli.ops.linear")  # the package's attribute is the function
    monkeypatch.setattr(module, "own_products", lambda dtype: dtype == torch.float32)
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
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.linear:
                return F.linear(args[0], args[1].as_subclass(Tensor) / 2)
            return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]

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
