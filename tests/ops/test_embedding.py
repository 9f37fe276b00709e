"""embed and embed_norm against PyTorch's expressions in float64 and the documented mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.dropout import row_mask
from helpers.operators import (
    DTYPES,
    WIDTHS,
    assert_as_exact_as_pytorch,
    embed_inputs,
    plain_embed,
    random,
    with_gradients,
)
from torch import Tensor

from bertnli import ops


def gradient_of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


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
        assert torch.equal(gradient_of(tables[0]), expected)
        assert gradient_of(tables[0]).is_contiguous()
    ops.embed(*tables, *ids).backward(dout)  # accumulates
    assert torch.equal(gradient_of(tables[0]), 2 * expected)


@pytest.mark.parametrize("wanted", range(3))
def test_only_the_wanted_table_gets_a_gradient(wanted: int) -> None:
    tables, ids, dout = embed_inputs(24, torch.float32)
    everything = with_gradients(lambda *t: ops.embed(*t, *ids), tables, dout)
    tables[wanted].requires_grad_()
    ops.embed(*tables, *ids).backward(dout)
    assert [t.grad is not None for t in tables] == [i == wanted for i in range(3)]
    assert torch.equal(gradient_of(tables[wanted]), everything[1 + wanted])


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

    def run(token: Tensor, segment: Tensor, position: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.embed_norm(token, segment, position, ids[0], ids[1], ids[2], weight, bias, 1e-5)

    assert_as_exact_as_pytorch(run, plain_embed_norm(ids), inputs, dout)


@pytest.mark.parametrize("width", [3, 64])
def test_embed_norm_drops_what_it_documents(isa: str, width: int) -> None:
    inputs, ids, dout = embed_norm_inputs(width, torch.float32)
    seed = torch.tensor([2**40 + 5, -3])
    mask = row_mask(130, width, 0.3, seed)

    def run(token: Tensor, segment: Tensor, position: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        inputs = token, segment, position, ids[0], ids[1], ids[2], weight, bias
        return ops.embed_norm(*inputs, 1e-5, 0.3, seed=seed, **options)

    assert_as_exact_as_pytorch(run, plain_embed_norm(ids, mask), inputs, dout)
    actual = with_gradients(run, inputs, dout)
    low = with_gradients(lambda *t: run(*t, dtype=torch.bfloat16), inputs, dout.bfloat16())
    assert torch.equal(low[0], actual[0].bfloat16())
    exact = with_gradients(run, inputs, dout.bfloat16().float())
    assert all(torch.equal(a, b) for a, b in zip(low[1:], exact[1:], strict=True))


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


@pytest.mark.parametrize("saved", [("mean", torch.zeros(2)), ("rstd", torch.zeros(3).double())])
def test_embed_norm_backward_checks_what_it_was_given(saved: tuple[str, Tensor]) -> None:
    x, w, rows, ids = torch.zeros(3, 8), torch.ones(8), torch.zeros(3), torch.zeros(3, dtype=torch.int32)
    mean, rstd = (saved[1] if name == saved[0] else rows for name in ("mean", "rstd"))
    with pytest.raises(RuntimeError, match=rf"{saved[0]} must be on the CPU, of shape \[3\] and Float; found"):
        torch.ops.bertnli.embed_norm_backward(x, x, x, x, ids, ids, ids, w, w, mean, rstd, 0.0, None)


def test_too_many_pairs_of_segment_and_position() -> None:
    one = torch.ones(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="segment rows times positions must be below 2"):
        torch.ops.bertnli.embed_backward(torch.zeros(1, 2), one, one, one, 2, 2**30, 2, False, True, True)
    # A table of many rows without columns takes no memory, not even for counts of its rows.
    found, *_ = torch.ops.bertnli.embed_backward(torch.zeros(1, 0), one, one, one, 2**40, 2, 2, True, False, False)
    assert found.shape == (2**40, 0)
