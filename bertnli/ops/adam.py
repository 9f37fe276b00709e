"""What the operators of Adam (csrc/ops/adam.cpp, CPU only) do to fake tensors; `training/adam.py` calls them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bertnli import _ops  # noqa: F401  (registers the operators)


def _fake_norm(gradients: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float64)


def _fake_update(*_: Any) -> None:
    return None


torch.library.register_fake("bertnli::gradient_norm", _fake_norm)
for _name in ("adam_step", "adam_rows", "adam_catch_up"):
    torch.library.register_fake(f"bertnli::{_name}", _fake_update)
