# Importing the module registers the operators of csrc/ops under torch.ops.bertnli.

from typing import Any

from torch import Tensor

def cpu_multiplies_better(bf16: bool) -> bool: ...
def same_items(dicts: list[dict[str, Any]], keys: list[str], values: list[Any], /) -> bool: ...

class FusedEncoder:  # csrc/ops/encoder.h
    def __init__(
        self, tensors: list[Tensor], num_heads: int, eps: float, activation: str, precision: str, /
    ) -> None: ...
    def is_current(self) -> bool: ...
    def features(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        token_index: Tensor | None,
        first: bool,
        /,
    ) -> Tensor: ...
    def outputs(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        token_index: Tensor | None,
        first: bool,
        head: list[Tensor],
        /,
    ) -> Tensor: ...
