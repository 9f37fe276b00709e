"""transformers in a plain loop, batches of similar lengths: sorted within windows of 50 shuffled batches."""

from __future__ import annotations

from collections.abc import Callable

from peers import finetune_transformers

NAME = "transformers, length groups"
PRECISIONS, REQUIRES, MODELS = (getattr(finetune_transformers, name) for name in ("PRECISIONS", "REQUIRES", "MODELS"))
BUILT_FOR = finetune_transformers.BUILT_FOR


def build() -> Callable[..., float]:
    return finetune_transformers.build(buckets=True)
