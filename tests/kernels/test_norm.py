"""add_norm in Triton against float64 PyTorch and the CPU operator: on a GPU, or interpreted.

Without a GPU conftest.py sets TRITON_INTERPRET before Triton is imported, and the launchers are called directly, since
CPU tensors dispatch to C++. The tests are the same on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from helpers.dropout import row_mask
from helpers.operators import (
    add_norm_inputs,
    plain_add_norm,
)
from helpers.triton_kernels import FLOOR, HALF, assert_as_exact_as_pytorch, on_device
from torch import Tensor

pytest.importorskip("triton")

from bertnli.kernels import norm


def run_add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, y_bias: Tensor | None, *, dout: Tensor, p: float = 0.0,
    seed: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """out, dx, dy, dweight, dbias, dy_bias of the launchers, on the CPU."""
    x, y, weight, bias, y_bias, dout, seed = on_device(x, y, weight, bias, y_bias, dout, seed)
    out, mean, rstd = norm.add_norm(x, y, y_bias, weight, bias, 1e-5, p, seed)
    dx, dy, dy_bias, dweight, dbias = norm.add_norm_backward(dout, x, y, y_bias, weight, bias, mean, rstd, p, seed)
    return [t.cpu() for t in (out, dx, dy, dweight, dbias, dy_bias)]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("width", [2, 37, 256, 768])
def test_add_norm_is_as_exact_as_pytorch(width: int, dtype: torch.dtype) -> None:
    inputs, dout = add_norm_inputs(19, width, dtype)
    assert_as_exact_as_pytorch(run_add_norm(*inputs, dout=dout), plain_add_norm, inputs, dout)


def test_add_norm_of_one_column() -> None:
    """Its norm is 0 whatever x and y are, but for roundings that the inverse deviation, 1 / sqrt(eps), multiplies."""
    inputs, dout = add_norm_inputs(19, 1, torch.float32)
    out, dx, dy, dweight, dbias, dy_bias = run_add_norm(*inputs, dout=dout)
    torch.testing.assert_close(out, inputs[3].expand_as(out), rtol=0, atol=1e-4)
    torch.testing.assert_close(dbias, dout.sum(0))
    for zero in (dx, dy, dweight, dy_bias):
        torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-3)


@pytest.mark.parametrize("width", [37, 256])
def test_add_norm_drops_what_the_cpu_does(width: int) -> None:
    """Equal masks, bit for bit, and equal results; y of half precision as under autocast."""
    (x, y, weight, bias, y_bias), dout = add_norm_inputs(70, width, torch.float32)
    seed, p = torch.tensor([2**40 + 5, -3]), 0.25
    library = torch.ops.bertnli
    for half in (y, y.bfloat16()):
        out, *statistics = library.add_norm(x, half, y_bias, weight, bias, 1e-5, p, seed)
        dx, dy, dy_bias, dweight, dbias = library.add_norm_backward(
            dout, x, half, y_bias, weight, bias, *statistics, p, seed
        )
        actual = run_add_norm(x, half, weight, bias, y_bias, dout=dout, p=p, seed=seed)
        for a, b in zip(actual, (out, dx, dy, dweight, dbias, dy_bias), strict=True):
            eps = FLOOR[b.dtype] * torch.finfo(b.dtype).eps
            torch.testing.assert_close(a, b, rtol=0, atol=2 * eps * max(1, float(b.abs().max())))
        assert torch.equal(actual[2] != 0, dy != 0)
        mask = row_mask(70, width, p, seed)
        assert torch.equal(dy != 0, (mask != 0) & (dx != 0))
