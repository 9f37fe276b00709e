"""The instruction sets of the CPU kernels that this machine has."""

from __future__ import annotations

from collections.abc import Callable

import torch

import bertnli.ops  # noqa: F401  (registers set_cpu_isa)

set_cpu_isa: Callable[[str], None] = torch.ops.bertnli.set_cpu_isa


def available(isa: str) -> bool:
    try:
        set_cpu_isa(isa)
    except RuntimeError:
        return False
    finally:
        set_cpu_isa("")
    return True


ISAS = [isa for isa in ("plain", "avx2", "avx512", "avx512_bf16") if available(isa)]
ISAS_WITH_AMX = [*ISAS, *(["amx"] if available("amx") else [])]  # AMX has kernels of its own for inference only
