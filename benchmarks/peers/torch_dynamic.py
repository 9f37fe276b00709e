"""transformers' model with its linear layers in PyTorch's dynamic int8."""

from __future__ import annotations

from problem import Padded, Peer, Problem

from peers.transformers import logits_of

NAME = "torch dynamic"
PRECISIONS = ("int8",)
REQUIRES = ("transformers", "torch")


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import torch

    quantized = torch.ao.quantization.quantize_dynamic(problem.torch_model(), {torch.nn.Linear}, torch.qint8)
    return Peer(Padded.tensors, logits_of(quantized, precision))
