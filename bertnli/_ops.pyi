# Importing the module registers the operators of csrc/ops/bindings.cpp under torch.ops.bertnli.

from typing import Any

from torch import Tensor

def cpu_multiplies_better(bf16: bool) -> bool: ...
def state(tensors: list[Tensor], /) -> bytes: ...
def stand(owners: list[dict[str, Any]], names: list[str], found: list[Any], hooks: list[dict[int, Any]], /) -> bool: ...

class PreparedEncoder:
    def __init__(self, tensors: list[Tensor], heads: int, eps: float, activation: str, precision: str, /) -> None: ...
    def forward(
        self, ids: Tensor, segments: Tensor, positions: Tensor, cu_seqlens: Tensor, rows: Tensor | None, /
    ) -> Tensor: ...
    def outputs(
        self,
        ids: Tensor,
        segments: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        rows: Tensor | None,
        first: bool,
        head: list[Tensor],
        /,
    ) -> Tensor: ...
