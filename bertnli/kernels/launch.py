"""What the launchers share: sizes of tiles, checks of arguments, and the sums over programs."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)


# ---- checks ----


def check(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def check_dropout(dropout_p: float, seed: Tensor | None, neighbour: Tensor) -> None:
    check(0 <= dropout_p < 1, f"dropout_p must be at least 0 and below 1; found {dropout_p}")
    if dropout_p > 0:
        check(seed is not None, "seed must be given where dropout_p is above 0")
        assert seed is not None
        check(
            seed.shape == (2,) and seed.dtype == torch.int64 and seed.device == neighbour.device,
            f"seed must be an int64 tensor of shape [2] on {neighbour.device}; "
            f"found {seed.dtype} {list(seed.shape)} on {seed.device}",
        )


def check_type(op: str, x: Tensor, name: str) -> None:
    check(x.dtype in TYPES, f"{op} on {x.device}: {name} must be float32, bfloat16 or float16; found {x.dtype}")


def check_vector(vector: Tensor | None, name: str, x: Tensor) -> None:
    if vector is not None:
        check(vector.shape == x.shape[1:], f"{name} must have shape [{x.size(1)}]; found {list(vector.shape)}")
        check(vector.device == x.device, f"{name} must lie on x's device {x.device}; found {vector.device}")
        check(vector.is_floating_point(), f"{name} must be of floating point; found {vector.dtype}")


def check_saved(x: Tensor, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """What the forward pass saved for the backward pass, as the operator itself makes it."""
    check(
        x.shape == shape and x.dtype == dtype and x.device == like.device,
        f"{name} must be {dtype} {list(shape)} on {like.device}; found {x.dtype} {list(x.shape)} on {x.device}",
    )


def check_like(dout: Tensor, x: Tensor) -> None:
    check(
        dout.shape == x.shape and dout.dtype == x.dtype and dout.device == x.device,
        f"the gradient of the output must have the output's dtype and shape {x.dtype} {list(x.shape)}; "
        f"found {dout.dtype} {list(dout.shape)}",
    )


def below(dropout_p: float) -> int:
    """Words below this number are dropped."""
    return max(1, int(dropout_p * 2**32)) if dropout_p > 0 else 0


# ---- the device ----


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have of a multiprocessor's memory."""
    if device.type != "cuda":
        return 227 << 10
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


# ---- tiles ----
# Sizes were measured on an H100 with 12,833 tokens of widths 256 to 3,072. The backward kernels wait for memory and for
# sums over a row: the fewer warps share a row the better, with the next rows' loads under way (num_stages).


def power(n: int) -> int:
    """A tile's size that holds n: a power of 2, at least 16."""
    return max(16, int(triton.next_power_of_2(n)))


def tile(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps: the whole width, and 2,048 elements or a row."""
    w = power(width)
    r = max(1, 2048 // w)
    return r, w, min(16, max(1, r * w // 512))


def backward_tile(device: torch.device, width: int) -> dict[str, int]:
    """As `tile`, for a program that goes over many rows, sums within each and has three tiles in each stage."""
    w = power(width)
    r = max(1, min(4, 2048 // w))
    stages = 3 if 3 * 3 * r * w * 4 <= shared_memory(device) * 3 // 4 else 1
    return dict(R=r, W=w, STAGES=stages, num_warps=min(16, max(1, r * w // 1024)))


def count_programs(device: torch.device, most: int, each: int = 4, beside: int = 1) -> int:
    """How many programs share the rows: `each` for a multiprocessor, times `beside` others."""
    return min(most, max(1, multiprocessors(device) * each // beside))


# ---- sums over programs ----


@triton.jit
def _column_sums(
    sums,  # float32 [rows, vectors, width]
    first,  # [width]
    second,  # [width]; not written with one vector
    third,  # [width]; not written with two vectors
    rows, vectors, width, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The sums over sums [rows, vectors, width] of vector number program_id(1)."""
    columns, vector = tl.program_id(0) * W + tl.arange(0, W), tl.program_id(1)
    there = columns < width
    total = tl.zeros([R, W], tl.float32)
    for begin in range(0, rows, R):
        row = begin + tl.arange(0, R)
        offsets = (row * vectors + vector)[:, None] * width + columns[None, :]
        total += tl.load(sums + offsets, mask=(row < rows)[:, None] & there[None, :], other=0.0)
    result = tl.sum(total, 0)
    if vector == 0:
        tl.store(first + columns, result.to(first.dtype.element_ty), mask=there)
    elif vector == 1:
        tl.store(second + columns, result.to(second.dtype.element_ty), mask=there)
    else:
        tl.store(third + columns, result.to(third.dtype.element_ty), mask=there)


def add_up(sums: Tensor, *vectors: Tensor) -> None:
    """Write the sums of `sums`, float [programs, n, width], over the programs into one to three vectors; zeros where
    there are no programs."""
    programs, stride, width = sums.shape
    if width:
        _column_sums[(triton.cdiv(width, 32), len(vectors))](
            sums, *(*vectors, vectors[0], vectors[0])[:3], programs, stride, width, R=32, W=32, num_warps=4
        )
