"""Several processes on one training run, by torch.distributed: `torchrun` starts them, one a GPU or one a CPU share.

Every process has the whole data and the whole model. A step's examples are shard out by length, each process computes
the gradient of its own, and DistributedDataParallel adds them up; so a step is the same with any number of processes.
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
    """Within it this process belongs to the group in which `torchrun` started it, if it did; gives its rank, else 0.

    GPUs talk by NCCL, each process on the one of its local rank; CPUs by Gloo.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield rank_and_size()[0]
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank()
        # Gloo's threads drop what they have sent, Python's tensors, a little later than they say that it is sent: in an
        # interpreter that is ending by then they abort the process. A barrier's own tensor is none of Python's.
        if dist.get_backend() == "gloo":
            dist.barrier()
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """This process's number among how many; 0 of 1 where there is no group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def broadcast_from_rank_0(function: Callable[[], T]) -> T:
    """What `function` gives, or raises, in process 0, where alone it runs; the same in all."""
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


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of all processes' tensors."""
    if rank_and_size()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def shard(rows: Tensor, lengths: Tensor, rank: int, size: int) -> Tensor:
    """The part of `rows` that process `rank` of `size` takes, in their order.

    Dealt longest first to 0, 1, ..., size - 1, then back: numbers of rows differ by one at most, and numbers of tokens
    by a longest row at most.

        lengths 9 8 7 6 5 4 of two processes:  9 6 5 and 8 7 4
    """
    if size == 1:
        return rows
    order = torch.argsort(lengths[rows], descending=True, stable=True)
    place = torch.arange(len(rows)) % (2 * size)
    mine = order[(place == rank) | (place == 2 * size - 1 - rank)]
    return rows[mine.sort().values]
