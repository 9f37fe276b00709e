"""bias_act in Triton against float64 PyTorch: on a GPU, or interpreted.

Without a GPU conftest.py sets TRITON_INTERPRET before Triton is imported, and the launchers are called directly, since
CPU tensors dispatch to C++. The tests are the same on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from helpers.operators import (
    plain_bias_act,
    random,
)
from helpers.triton_kernels import DEVICE, HALF, assert_as_exact_as_pytorch, on_device

pytest.importorskip("triton")

from bertnli.kernels import activation


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh"])
def test_bias_act_is_as_exact_as_pytorch(kind: str, dtype: torch.dtype) -> None:
    x, bias, dout = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(41, 150), (150,), (41, 150)]))
    on_x, on_bias, on_dout = on_device(x, bias, dout)
    results = [activation.bias_act(on_x, on_bias, kind), *activation.bias_act_backward(on_dout, on_x, on_bias, kind)]
    assert_as_exact_as_pytorch(results, plain_bias_act(kind), [x, bias], dout)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
def test_activation_of_nan_and_infinity() -> None:
    x = torch.tensor([[float("nan"), float("inf"), 1.0]], device=DEVICE)
    for kind in ("relu", "gelu", "gelu_tanh"):
        out = activation.bias_act(x, torch.zeros(3, device=DEVICE), kind).cpu()
        assert out.isnan().tolist() == [[True, False, False]]
        assert float(out[0, 1]) == float("inf")
