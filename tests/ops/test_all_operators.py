"""What all operators that go row by row have in common."""

from __future__ import annotations

import pytest
import torch
from helpers.operators import (
    CASES,
    add_norm_inputs,
    cases,
    embed_inputs,
    random,
    with_gradients,
)
from torch import Tensor

from bertnli import ops


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
    def run(token: Tensor, segment: Tensor, position: Tensor, *, ids: list[Tensor]) -> Tensor:
        x = ops.embed(token, segment, position, *ids)
        y = ops.bias_act(torch.ops.bertnli.linear(x, token, None)[:, :16], segment[0], "gelu")
        return ops.add_norm(x, y, segment[0], segment[1], y_bias=segment[1]).square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for tokens in (5, 9, 30):
        tables, ids, _ = embed_inputs(16, torch.float32, tokens)
        leaves = [t.requires_grad_() for t in tables]
        expected = torch.autograd.grad(run(*leaves, ids=ids), leaves)
        for a, b in zip(torch.autograd.grad(compiled(*leaves, ids=ids), leaves), expected, strict=True):
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
