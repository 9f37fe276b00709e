"""Operators on packed tokens: for each a wrapper, and beside it what the operator does to fake tensors.

The CPU implementations and the gradients, for every device, are in csrc/ops; those for CUDA, in Triton, are in
bertnli/kernels. On other devices, for float64 on CUDA and without Triton, PyTorch's own operations run.
"""

from importlib import import_module

import bertnli.ops.adam  # noqa: F401  (registers what its operators do to fake tensors)
from bertnli.ops.activation import ACTIVATIONS, bias_act
from bertnli.ops.attention import varlen_attention, varlen_attention_packed, varlen_attention_with_sum
from bertnli.ops.devices import (
    HAS_TRITON,
    cpu_isa,
    cpu_multiplies_bf16,
    cpu_threads,
    drawing_from,
    generator_for,
    has_kernel,
)
from bertnli.ops.embedding import embed, embed_norm, take
from bertnli.ops.linear import linear, own_products
from bertnli.ops.norm import add_norm

if HAS_TRITON:
    import_module("bertnli.kernels")  # registers the operators for CUDA

__all__ = [
    "ACTIVATIONS",
    "add_norm",
    "bias_act",
    "cpu_isa",
    "cpu_multiplies_bf16",
    "cpu_threads",
    "drawing_from",
    "embed",
    "embed_norm",
    "generator_for",
    "has_kernel",
    "linear",
    "own_products",
    "take",
    "varlen_attention",
    "varlen_attention_packed",
    "varlen_attention_with_sum",
]
