"""Training mode and eval mode of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bertnli.tasks.base import Head


@contextmanager
def eval_mode(model: Head, include_encoder: bool = True) -> Iterator[None]:
    """Run the block with `model` in eval mode, then give every module its own mode back.

    include_encoder  False leaves the encoder's modules as they are: switching them takes longer than encoding one pair
    """
    found: list[nn.Module | None] = [model]
    for module in found:  # breadth first: the list grows
        if module is not None and (include_encoder or module is not model.encoder):
            found += module._modules.values()
    changed = [module for module in found if module is not None and module.training]
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True
