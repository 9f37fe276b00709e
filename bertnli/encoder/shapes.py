"""Modules of which only names and shapes matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialization(TorchFunctionMode):
    """`torch.nn.init` leaves tensors as they are. For those without values it would import `torch._dynamo`, which takes
    longer than importing torch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are made in this context have parameters without values and without memory, on the device meta."""
    with torch.device("meta"), _NoInitialization():
        yield
