"""Training in several processes with torch.distributed. `torchrun` starts them, one for each GPU or share of the CPUs.

Each process has all data and the whole model. The examples of a step are divided among the processes, each computes the
gradient of its part, and DistributedDataParallel adds the gradients. So a step is the same for any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[int]:
    """Run the block as a member of the process group that `torchrun` started, and give the rank (0 without a group).

    The backend is NCCL with GPUs, where each process uses the GPU of its local rank, else Gloo.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield rank_and_size()[0]
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank()
        # Gloo's threads release a sent tensor after the send has returned. If it is Python's and the interpreter is
        # exiting by then, they abort the process. A barrier is sent later and uses no Python tensor.
        if dist.get_backend() == "gloo":
            dist.barrier()
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def broadcast_from_rank_0(function: Callable[[], T]) -> T:
    """Call `function` in process 0 only; every process returns its value or raises its exception."""
    rank, size = rank_and_size()
    if size == 1:
        return function()
    box: list[Any] = [None, None]
    if rank == 0:
        try:
            box[0] = function()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    value: T = box[0]
    return value


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    _, size = rank_and_size()
    values: list[Any] = [value] * size
    if size > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes."""
    if rank_and_size()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def shard(examples: Tensor, lengths: Tensor, rank: int, size: int) -> Tensor:
    """The examples that process `rank` of `size` takes, in their order.

    examples  int64 [n], indices
    lengths   int64 [N], the number of tokens of every example

    Sorted by length, the longest first, they go to ranks 0, 1, ..., size - 1, size - 1, ..., 1, 0, 0, 1, ... So the
    numbers of examples differ by at most one, and the numbers of tokens by at most the longest length:

        lengths 9 8 7 6 5 4, two processes:  9 6 5 and 8 7 4
    """
    if size == 1:
        return examples
    order = torch.argsort(lengths[examples], descending=True, stable=True)
    place = torch.arange(len(examples)) % (2 * size)
    own = order[(place == rank) | (place == 2 * size - 1 - rank)]
    return examples[own.sort().values]
