"""Steps of training and inference as CUDA graphs: a step's some hundred launches become one.

A graph repeats what was captured, with the same sizes and addresses. So batches are padded to one of few sizes, by
sequences that the loss ignores; for each size there is a graph, whose inputs are copied to where it reads them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bertnli.batching import PackedBatch, padding
from bertnli.heads import Head

_SIZES = 16  # between a number of tokens or sequences and its double: at most 6.3 % more than there are

Step = Callable[[PackedBatch, Tensor], tuple[Tensor, ...]]


def obstacle(model: Head, device: torch.device, processes: int, accumulate: int) -> str | None:
    """Why the steps of a training run cannot be captured; None where they can."""
    if model.ignored is None:
        return f"cuda_graphs needs a head with labels that its loss ignores; {type(model).__name__} has none"
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()):
        return "cuda_graphs is for models without hooks, which would not be called again"
    if device.type != "cuda" or processes > 1 or accumulate > 1:
        return (
            f"cuda_graphs is for one process on a CUDA device and whole steps; found {processes} on {device.type!r}, "
            f"accumulate={accumulate}"
        )
    return None


def in_a_bucket(batch: PackedBatch, ignored: float, max_len: int) -> PackedBatch:
    """The batch, padded so that its numbers of tokens and of sequences and its `max_seqlen` are some of few."""
    sequences = len(batch) + len(batch) // (_SIZES // 2) + 1  # so many that none is longer than the batch's own
    sequences += padding(sequences, _SIZES)
    tokens = len(batch.input_ids) + sequences - len(batch)
    padded = batch.padded(tokens + padding(tokens, _SIZES), sequences, ignored)
    power = 1 << (padded.max_seqlen - 1).bit_length()  # a tile of the attention is no smaller
    return replace(padded, max_seqlen=max(padded.max_seqlen, min(power, max_len)))


class CapturedSteps:
    """`step` of batches in buckets: the first of each size runs as it is, the second is captured, and it and later ones
    are replayed.

    step    whole steps: from a batch and a number, float32 [], both on the GPU, tensors that it makes anew. It must not
            wait for the GPU, and must leave parameters without gradients, as it found them

    This is PyTorch's recipe for the capture of whole networks: warm-up and capture on a stream of their own, the
    optimizer `capturable`, one pool of memory for all graphs. They may share it, though not replayed in the order of
    their capture, since no graph reads what another wrote there: gradients are new in each, and results are copied out.
    Random numbers come from torch's generator of the device, which every replay moves on.

    Where a capture fails, a warning says why, and steps run as they are from then on.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self.fails = False
        self._number = torch.zeros((), device=device)
        # None: seen once
        self._steps: dict[tuple[int, int, int], tuple[PackedBatch, tuple[Tensor, ...], Callable[[], None]] | None] = {}
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: PackedBatch, number: float) -> tuple[Tensor, ...]:
        """What `step` gives for a batch from `in_a_bucket`, on the CPU."""
        sizes = len(batch.input_ids), len(batch), batch.max_seqlen
        self._number.fill_(number)
        if (captured := self._steps.get(sizes)) is not None:
            inputs, outputs, replay = captured
            inputs.copy_(batch)
        else:
            inputs = batch.to(self.device, non_blocking=True)
            if self.fails or sizes not in self._steps:
                self._steps[sizes] = None
                return self._warmed_up(inputs)
            try:
                outputs, replay = self._captured(inputs)
            except RuntimeError as error:
                self.fails = True
                warnings.warn(f"steps are not captured in CUDA graphs but run one by one: {error}", stacklevel=2)
                return self._warmed_up(inputs)
            self._steps[sizes] = inputs, outputs, replay
        replay()
        return tuple(x.clone() for x in outputs)

    def _warmed_up(self, inputs: PackedBatch) -> tuple[Tensor, ...]:
        here = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True.*")  # of the optimizer: this is no capture
            found = self.step(inputs, self._number)
        here.wait_stream(self._stream)
        return found

    def _captured(self, inputs: PackedBatch) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """The results of a step, and what computes them anew from what `inputs` hold by then."""
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream behind as the current one.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
        ):
            outputs = self.step(inputs, self._number)
        return outputs, graph.replay
