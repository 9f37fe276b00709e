"""transformers' model under torch.compile, with its weights frozen into the compiled code."""

from __future__ import annotations

from problem import Padded, Peer, Problem

from peers.transformers import logits_of

NAME = "transformers, compiled"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("transformers", "torch")
BUILT_FOR = {"bf16": ("avx512_bf16",)}
SLOW_TO_BUILD = True


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return Peer(Padded.tensors, logits_of(torch.compile(problem.torch_model(), dynamic=True), precision))
