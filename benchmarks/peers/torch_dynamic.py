"""transformers' model with its linear layers in PyTorch's dynamic int8."""

from __future__ import annotations

import numpy as np
import torch
from inference_problem import Padded, Peer, Problem
from torch import Tensor

from peers.transformers import equal_model


def build(problem: Problem, precision: str, threads: int) -> Peer:
    model = equal_model(problem.model).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)

    def scores(inputs: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return quantized(**inputs).logits.numpy()  # type: ignore[no-any-return]

    return Peer(Padded.tensors, scores)
