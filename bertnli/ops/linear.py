"""Linear layers: `bertnli::linear`, where it is faster than PyTorch's."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli import _ops


def own_products(dtype: torch.dtype) -> bool:
    """Whether `linear` multiplies such matrices by bertnli's kernels on this CPU, since they are faster.

    On AMD's CPUs with AVX-512 the library that PyTorch calls multiplies float32 by vectors of half their width, and
    compiles products of bfloat16 anew for every number of rows.
    """
    if dtype == torch.float32:
        return torch._C.has_mkl and _ops.cpu_multiplies_better(bf16=False)
    return dtype == torch.bfloat16 and _ops.cpu_multiplies_better(bf16=True)


# What torch.compiler.assume_constant_result does; but that imports torch.compile, which takes a second.
own_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: `torch.nn.functional.linear`, by bertnli's kernels where `own_products`.

    x [T, in], weight [out, in] of x's dtype, bias [out] of any floating-point dtype. Differentiable in all three. In
    these sums are in float32, and neither the product nor its gradients depend on the number of threads. Raises
    RuntimeError where a shape or dtype does not fit.
    """
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dim() == 2
        and own_products(x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not torch.overrides.has_torch_function((x, weight))
    ):
        return cast(Tensor, torch.ops.bertnli.linear(x, weight, bias))
    return F.linear(x, weight, bias if bias is None else bias.to(weight.dtype))


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.size(0), weight.size(0)))


torch.library.register_fake("bertnli::linear", _fake_linear)


def _fake_linear_backward(dout: Tensor, x: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    dx = dout.new_empty(0 if weight is None else (dout.size(0), weight.size(1)))
    return dx, dout.new_empty(0 if x is None else (dout.size(1), x.size(1)))


torch.library.register_fake("bertnli::linear_backward", _fake_linear_backward)
