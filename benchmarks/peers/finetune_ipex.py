"""Intel's fast_bert: transformers' model with fused layers that skip the padding, in an environment with torch 2.8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peers import finetune_transformers

NAME = "ipex fast_bert, unpadded"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("intel-extension-for-pytorch",)
FEATURES = ("avx512f",)
BUILT_FOR = {"bf16": ("avx512_bf16",)}
ENVIRONMENT = ("torch==2.8.0", "intel-extension-for-pytorch==2.8.0", "transformers==4.51.3", "numpy<2.3")
MODELS = ("small", "minilm")


def build() -> Callable[..., float]:
    import intel_extension_for_pytorch as ipex
    import torch

    def prepare(model: Any, optimizer: Any, task: Any) -> Any:
        dtype = torch.bfloat16 if task.precision == "bf16" else torch.float
        return ipex.fast_bert(model, dtype=dtype, optimizer=optimizer, unpad=True)

    return finetune_transformers.build(prepare=prepare)
