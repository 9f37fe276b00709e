"""The precisions of matrix products in training and inference."""

from __future__ import annotations

import torch

from bertnli import ops

TRAINING_PRECISIONS = ("fp32", "bf16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")  # of inference


def uses_bf16(device: torch.device, precision: str) -> bool:
    """True if PyTorch's matrix products run in bfloat16: for "bf16", except on a CPU without fast bfloat16.

    Raises ValueError unless `precision` is one of TRAINING_PRECISIONS.
    """
    if precision not in TRAINING_PRECISIONS:
        raise ValueError(f"precision must be one of {TRAINING_PRECISIONS}; found {precision!r}")
    return precision == "bf16" and (device.type != "cpu" or ops.cpu_multiplies_bf16())


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """PyTorch's autocast to bfloat16 if `bf16`, else none, even inside another autocast. Weights and statistics stay
    float32; on a GPU the activations between the encoder's products are bfloat16 too."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
