"""The precisions of matrix products in training and inference."""

from __future__ import annotations

import torch

from bertnli import ops
from bertnli.data.arguments import choice
from bertnli.runtime import TRAINING_PRECISIONS


def uses_bf16(device: torch.device, precision: str) -> bool:
    """True if PyTorch's matrix products run in bfloat16: for "bf16", except on a CPU without fast bfloat16.

    Raises ValueError unless `precision` is one of TRAINING_PRECISIONS.
    """
    choice(precision, "precision", TRAINING_PRECISIONS)
    return precision == "bf16" and (device.type != "cpu" or ops.cpu_multiplies_bf16())


def unused_precision(device: torch.device, precision: str, fused: bool = False) -> str | None:
    """What is computed in place of `precision`, as a sentence; None if the precision is used.

    fused  True for the fused operator of inference, which has a use for "bf16" on x86 since AVX2
    """
    if fused:
        used = precision != "bf16" or ops.cpu_isa() != "plain"
        return None if used else "this CPU has no bfloat16 instructions: bf16 rounds the weights, products run in fp32"
    used = precision != "bf16" or uses_bf16(device, precision)
    return None if used else "this CPU has no fast bfloat16 products: bf16 runs in fp32"


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """PyTorch's autocast to bfloat16 if `bf16`, else none, even inside another autocast. Weights and statistics stay
    float32; on a GPU the activations between the encoder's products are bfloat16 too."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
