"""add_norm against PyTorch's expressions in float64 and the documented mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.dropout import row_mask
from helpers.operators import (
    DTYPES,
    WIDTHS,
    add_norm_inputs,
    assert_as_exact_as_pytorch,
    plain_add_norm,
    random,
    with_gradients,
)
from torch import Tensor

from bertnli import ops


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
        lambda *leaves: plain_add_norm(*leaves, mask=mask), [x.double() for x in inputs], dout.double()
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


@pytest.mark.parametrize("saved", [("mean", torch.zeros(2)), ("rstd", torch.zeros(3).double())])
def test_backward_checks_what_it_was_given(saved: tuple[str, Tensor]) -> None:
    x, w, rows = torch.zeros(3, 8), torch.ones(8), torch.zeros(3)
    mean, rstd = (saved[1] if name == saved[0] else rows for name in ("mean", "rstd"))
    with pytest.raises(RuntimeError, match=rf"{saved[0]} must be on the CPU, of shape \[3\] and Float; found"):
        torch.ops.bertnli.add_norm_backward(x, x, x, None, w, w, mean, rstd, 0.0, None)
