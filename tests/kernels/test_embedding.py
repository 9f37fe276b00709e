"""The embedding sums in Triton against float64 PyTorch and the CPU operators: on a GPU, or interpreted.

Without a GPU conftest.py sets TRITON_INTERPRET before Triton is imported, and the launchers are called directly, since
CPU tensors dispatch to C++. The tests are the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.operators import (
    embed_inputs,
    plain_embed,
    random,
    with_gradients,
)
from helpers.triton_kernels import DEVICE, FLOOR, HALF, on_device
from torch import Tensor

pytest.importorskip("triton")

from bertnli.kernels import embedding


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_embed_is_as_exact_as_pytorch(dtype: torch.dtype) -> None:
    tables, ids, dout = embed_inputs(37, dtype)
    on_ids = on_device(*ids)
    results = [
        embedding.embed(*on_device(*tables), *on_ids),
        *embedding.embed_backward(dout.to(DEVICE), *on_ids, *(len(t) for t in tables), True, True, True),
    ]
    plain = plain_embed(ids)
    exact = with_gradients(plain, [t.double() for t in tables], dout.double())
    for a, b in zip(results, exact, strict=True):
        eps = torch.finfo(dtype).eps * max(1, FLOOR[dtype])
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=10 * eps * float(b.abs().max()))
    only = embedding.embed_backward(dout.to(DEVICE), *on_ids, *(len(t) for t in tables), False, True, False)
    assert [len(t) for t in only] == [0, 2, 0]


@pytest.mark.parametrize("kinds", [1, 3, 6])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_of_tables(kinds: int, deterministic: bool) -> None:
    """One row for all tokens, few or many of the segments', rows that no token reads; ids outside a table count not."""
    tokens, width, sizes = 700, 150, (40, kinds, 90)
    generator = torch.Generator().manual_seed(kinds)
    ids = [torch.randint(0, n, (tokens,), generator=generator, dtype=torch.int32) for n in (30, kinds, 70)]
    dout = random(tokens, width)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = embedding.embed_backward(*on_device(dout, *ids), *sizes, True, True, True)
    finally:
        torch.use_deterministic_algorithms(before)
    for a, i, n in zip(found, ids, sizes, strict=True):
        expected = torch.zeros(n, width, dtype=torch.float64).index_add_(0, i, dout.double())
        torch.testing.assert_close(a.cpu().double(), expected, rtol=0, atol=1e-7 * float(dout.abs().sum(0).max()))
    if not deterministic:
        ids[0][5], ids[2][6] = 40, -1
        outside = embedding.embed_backward(*on_device(dout, *ids), *sizes, True, False, True)
        assert [len(x) for x in outside] == [40, 0, 90]
        assert all(x.isfinite().all() for x in outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embed_norm_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    """Equal masks, bit for bit, and equal results."""
    tables, ids, _ = embed_inputs(37, torch.float32, 50)
    weight, bias, dout = random(37, seed=1), random(37, seed=2), random(50, 37, dtype=dtype, seed=3)
    inputs, rest = (*tables, *ids, weight, bias), (0.25, torch.tensor([2**40 + 5, -3]))
    library = torch.ops.bertnli
    expected = library.embed_norm(*inputs, 1e-12, *rest, dtype, False)
    expected = (*expected, *library.embed_norm_backward(dout, *inputs, *expected[1:], *rest))
    on, on_rest = on_device(*inputs), (0.25, rest[1].to(DEVICE))
    forward: Callable[..., tuple[Tensor, ...]] = embedding.embed_norm
    backward: Callable[..., tuple[Tensor, ...]] = embedding.embed_norm_backward
    results = forward(*on, 1e-12, *on_rest, dtype)
    results = (*results, *backward(dout.to(DEVICE), *on, *results[1:], *on_rest))
    for a, b in zip(results, expected, strict=True):
        eps = FLOOR[b.dtype] * torch.finfo(b.dtype).eps
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2 * eps * max(1, float(b.abs().max())))
    assert torch.equal(results[0].cpu() != 0, expected[0] != 0)


def test_an_id_outside_its_table_gives_nan() -> None:
    tables, ids, _ = embed_inputs(8, torch.float32, 4)
    for axis, bad in ((0, 50), (1, -1), (2, 40)):
        wrong = [i.clone() for i in ids]
        wrong[axis][1] = bad
        out = embedding.embed(*on_device(*tables, *wrong)).cpu()
        assert out.isnan().all(1).tolist() == [False, True, False, False]
        assert not out[[0, 2, 3]].isnan().any()
