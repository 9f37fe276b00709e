"""bias_act against PyTorch's expressions in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.operators import (
    DTYPES,
    WIDTHS,
    assert_as_exact_as_pytorch,
    plain_bias_act,
    random,
    with_gradients,
)

from bertnli import ops


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


def test_bad_bias_act() -> None:
    with pytest.raises(RuntimeError, match="kind must be 'relu', 'gelu' or 'gelu_tanh'; found 'tanh'"):
        ops.bias_act(torch.zeros(3, 8), torch.zeros(8), "tanh")
    with pytest.raises(RuntimeError, match=r"bias must have shape \[8\]; found \[9\]"):
        ops.bias_act(torch.zeros(3, 8), torch.zeros(9), "gelu")
