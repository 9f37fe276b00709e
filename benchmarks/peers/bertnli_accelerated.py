"""sentence-transformers' CrossEncoder after `bertnli.accelerate`."""

from __future__ import annotations

from functools import partial
from typing import Any

from problem import Problem

NAME = "bertnli.accelerate(CrossEncoder)"
PRECISIONS = ("fp32", "bf16", "int8")
REQUIRES = ("sentence-transformers",)


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    from sentence_transformers import CrossEncoder

    import bertnli

    model = bertnli.accelerate(CrossEncoder(str(problem.folder), device="cpu"), precision)
    return partial(model.predict, show_progress_bar=False)
