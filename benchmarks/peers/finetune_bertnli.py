"""bertnli: `fit` and `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NAME = "bertnli"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ()
BUILT_FOR = {"bf16": ("avx512_bf16",)}
MODELS = ("small", "minilm")


def build() -> Callable[..., float]:
    from pathlib import Path

    import torch

    import bertnli

    def run(task: Any, stages: Any) -> float:
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)
        bert, tokenizer = bertnli.from_pretrained(task.folder)
        model = bertnli.BERTClassifier(bert, 3)
        train, test = (
            model.encode(
                tokenizer,
                bertnli.read_pairs(Path(task.data, f"snli_1.0_{s}.txt"), "text")[: task.limit(s)],
                task.max_len,
            )
            for s in ("train", "test")
        )
        stages.end("encode")
        options = {"epochs": 1, "batch_size": task.batch_size, "lr": task.lr, "seed": task.seed}
        bertnli.fit(model, train, precision=task.precision, progress=False, **options)
        stages.end("train")
        return float(bertnli.evaluate(model, test, precision=task.precision)["accuracy"])

    return run
