"""Where the Triton kernels run in tests: on a GPU, or interpreted on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers.operators import (
    with_gradients,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = [torch.bfloat16, torch.float16]
# Units of rounding that are no error. The interpreter cuts bfloat16 off where the hardware rounds it.
FLOOR = {torch.float32: 4, torch.bfloat16: 0.5 if DEVICE.type == "cuda" else 1.5, torch.float16: 0.5}


def on_device(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.to(DEVICE) for x in tensors]


def assert_as_exact_as_pytorch(
    actual: list[Tensor], plain: Callable[..., Any], inputs: list[Tensor], dout: Tensor
) -> None:
    """Our error against float64 is at most twice that of PyTorch in the same dtype."""
    exact = with_gradients(plain, [x.double() for x in inputs], dout.double())
    theirs = with_gradients(plain, [x.to(DEVICE) for x in inputs], dout.to(DEVICE))
    for i, (a, b, reference) in enumerate(zip(actual, theirs, exact, strict=True)):
        assert a.shape == reference.shape
        assert a.dtype == b.dtype
        floor = FLOOR[a.dtype] * torch.finfo(a.dtype).eps * float(reference.abs().max())
        error, their_error = (float((x.cpu().double() - reference).abs().max()) for x in (a, b))
        assert error <= 2 * their_error + floor, f"result {i}: {error} against {their_error} of PyTorch"
