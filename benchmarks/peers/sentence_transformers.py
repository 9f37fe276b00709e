"""`CrossEncoder.predict` of sentence-transformers in plain torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from problem import Problem

NAME = "CrossEncoder"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("sentence-transformers",)
BUILT_FOR = {"bf16": ("avx512_bf16",)}


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(problem.folder), device="cpu")
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    return partial(model.predict, show_progress_bar=False)
