"""transformers in float32 or under bfloat16 autocast, from padded ids or from texts by its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from problem import Array, Padded, Peer, Problem

NAME = "transformers"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("transformers", "torch")
BUILT_FOR = {"bf16": ("avx512_bf16",)}


def build(problem: Problem, precision: str, threads: int) -> Peer:
    return Peer(Padded.tensors, logits_of(problem.torch_model(), precision))


def logits_of(model: Any, precision: str) -> Callable[[dict[str, Any]], Array]:
    import torch

    def logits(inputs: dict[str, Any]) -> Array:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found: Array = model(**inputs).logits.float().numpy()
        return found

    return logits


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(problem.folder)
    logits = logits_of(problem.torch_model(), precision)

    def scores(texts: list[tuple[str, str]]) -> Array:
        """In batches of 32, the longest first, as sentence-transformers does."""
        order = np.argsort([-len(a) - len(b) for a, b in texts], kind="stable")
        found = np.empty(len(texts), np.float32)
        for index in np.array_split(order, -(-len(texts) // 32)):
            options: Any = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
            found[index] = logits(tokenizer([texts[i] for i in index], **options))[:, 0]
        return found

    return scores
