"""Which kernels run on which device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from bertnli import _ops  # noqa: F401  (registers torch.ops.bertnli)

HAS_TRITON = torch.version.cuda is not None and find_spec("triton") is not None


def has_kernel(x: Tensor) -> bool:
    """Whether bertnli's operators run on x's device and dtype; elsewhere the wrappers use PyTorch's own."""
    return x.device.type in ("cpu", "meta") or (
        HAS_TRITON and x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    )


def check_no_seed(op: str, x: Tensor, seed: Tensor | None) -> None:
    """ValueError for an explicit seed where PyTorch's own operations run: their dropout takes none."""
    if seed is not None:
        raise ValueError(f"{op} takes no seed for {x.dtype} on {x.device}")


class _ThreadLocal(threading.local):
    generator: torch.Generator | None = None


_thread_local = _ThreadLocal()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Run the block with `generator`, of the CPU, in place of torch's default one for dropout in this thread's CPU
    operators."""
    before, _thread_local.generator = _thread_local.generator, generator
    try:
        yield
    finally:
        _thread_local.generator = before


def generator_for(x: Tensor) -> torch.Generator | None:
    """What `drawing_from` set for x's device; None for torch's default generator."""
    return _thread_local.generator if x.device.type == "cpu" else None


def seed_or_drawn(x: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor | None:
    """The seed, int64 [2] on x's device; drawn where dropout needs one."""
    if dropout_p > 0 and seed is None:
        return torch.randint(0, 2**32, (2,), dtype=torch.int64, device=x.device, generator=generator_for(x))
    return seed


def computed_dtype(x: Tensor) -> torch.dtype:
    """What the operators compute in and return statistics in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: "plain", "avx2", "avx512", "avx512_bf16" or "amx".

    The best that the CPU has, or what the environment variable BERTNLI_ISA asked for when the first operator ran.
    Raises RuntimeError where that names an unknown set, or one that the CPU lacks.
    """
    return cast(str, torch.ops.bertnli.cpu_isa())


def cpu_multiplies_bf16() -> bool:
    """Whether PyTorch multiplies bfloat16 matrices by instructions of this CPU. Where it does not, as on x86 without
    AVX-512, its plain loops take some fifteen times as long as products of float32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # what PyTorch itself asks
    return supported is not None and bool(supported())


def cpu_threads() -> int:
    """How many threads share the CPU kernels' work: `torch.get_num_threads()`, or 1 in a build without OpenMP."""
    return cast(int, torch.ops.bertnli.cpu_threads())
