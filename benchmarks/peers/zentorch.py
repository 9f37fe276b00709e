"""AMD's zentorch: transformers' model under torch.compile with its backend."""

from __future__ import annotations

from problem import Padded, Peer, Problem

from peers.transformers import logits_of

NAME = "zentorch"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("zentorch", "transformers")
FEATURES = ("avx512f",)
BUILT_FOR = {"bf16": ("avx512_bf16",)}
SLOW_TO_BUILD = True


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import torch
    import zentorch  # noqa: F401  (registers the backend)

    return Peer(Padded.tensors, logits_of(torch.compile(problem.torch_model(), backend="zentorch"), precision))
