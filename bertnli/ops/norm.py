"""Dropout + residual + LayerNorm: `bertnli::add_norm`."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.ops.devices import check_no_seed, computed_dtype, has_kernel, seed_or_drawn


def add_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    *,
    y_bias: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """LayerNorm(x + dropout(y + y_bias)), one pass forward and one backward.

    x          [T, H]    float32, bfloat16 or float64 (slow)
    y          [T, H]    x's dtype; bfloat16 may meet a float32 x, as under autocast
    weight     [H]       LayerNorm's, any floating-point dtype
    bias       [H]
    y_bias     [H]       the bias of the linear layer that made y, left to be added here
    dropout_p  float     the probability, in [0, 1), with which each element of y is dropped
    seed       int64 [2]   fixes what is dropped; drawn from torch's default generator by default

    Returns [T, H] of x's dtype. Sums are in float32 for bfloat16. Differentiable, once, in every tensor but the seed;
    what is dropped is computed again in the backward pass, and no sum depends on the number of threads.

    Dropout keeps the element (t, c) and divides it by 1 - p if and only if

        Philox4x32-7(counter, key)[c % 4] >= max(1, floor(dropout_p * 2**32))
        counter = (t, 2**32 - 1, 0, c // 4)      key = (seed[0] mod 2**32, seed[1] mod 2**32)

    Raises RuntimeError that names the argument where a shape, dtype or dropout_p does not fit; ValueError for a seed
    where PyTorch's own operations run.
    """
    if not has_kernel(x):
        check_no_seed("add_norm", x, seed)
        return F.layer_norm(
            x + F.dropout(y if y_bias is None else y + y_bias, dropout_p), (x.size(-1),), weight, bias, eps
        )
    out = torch.ops.bertnli.add_norm(x, y, y_bias, weight, bias, eps, dropout_p, seed_or_drawn(x, dropout_p, seed))[0]
    return cast(Tensor, out)


def _fake_add_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[:1]
    return x.new_empty(x.shape), x.new_empty(rows, dtype=computed_dtype(x)), x.new_empty(rows, dtype=computed_dtype(x))


torch.library.register_fake("bertnli::add_norm", _fake_add_norm)


def _fake_add_norm_backward(
    dout: Tensor, x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    dy_bias = x.new_empty(0, dtype=computed_dtype(x)) if y_bias is None else torch.empty_like(y_bias)
    return x.new_empty(x.shape), y.new_empty(y.shape), dy_bias, torch.empty_like(weight), torch.empty_like(bias)


torch.library.register_fake("bertnli::add_norm_backward", _fake_add_norm_backward)
