"""CUDA graphs of training and inference: the hundred or so launches of a step become one.

A graph repeats the captured launches with the same sizes and addresses. Therefore batches are padded to one of few
sizes by sequences that the loss ignores, and each size has its graph. A batch is copied to the graph's input tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bertnli import ops
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch, pad_amount

_SIZES_PER_DOUBLING = 16  # padding adds at most 6.3 % tokens

Step = Callable[[PackedBatch, Tensor], tuple[Tensor, ...]]
Captured = tuple[PackedBatch, tuple[Tensor, ...], Callable[[], None]]  # input tensors, results, replay


def use_cuda_graphs(
    asked: bool | None, model: Head, device: torch.device, processes: int = 1, accumulate: int = 1
) -> bool:
    """True if steps of this model are to be captured.

    asked  True raises ValueError where capture is not possible; None captures where it is possible and the head is one
           of this package, whose steps are known to be capturable
    """
    why_not = why_not_capturable(model, device, processes, accumulate)
    if asked and why_not is not None:
        raise ValueError(why_not)
    return why_not is None and is_builtin(model) if asked is None else asked


def is_builtin(model: Head) -> bool:
    """True if the head's class is one of this package."""
    return type(model).__module__.partition(".")[0] == "bertnli"


def why_not_capturable(model: Head, device: torch.device, processes: int, accumulate: int) -> str | None:
    """The reason why steps of a model cannot be captured, or None."""
    if model.ignored is None:
        return f"cuda_graphs needs a head with labels that its loss ignores; {type(model).__name__} has none"
    if device.type != "cuda" or processes > 1 or accumulate > 1:
        return (
            f"cuda_graphs is for one process on a CUDA device and whole steps; found {processes} on {device.type!r}, "
            f"accumulate={accumulate}"
        )
    if not ops.has_kernel(model.encoder.pos_embedding):
        return "cuda_graphs needs Triton and parameters that are not float64; otherwise attention waits for the device"
    if any(map(_hooks, model.modules())) or any(p._backward_hooks for p in model.parameters()):
        return "cuda_graphs is for models without hooks: a graph does not call them"
    return None


def _hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def pad_to_bucket(batch: PackedBatch, ignored: float, max_len: int) -> PackedBatch:
    """The batch, padded so that its numbers of tokens and sequences and its `max_seqlen` take few values."""
    sequences = (
        len(batch) + len(batch) // (_SIZES_PER_DOUBLING // 2) + 1
    )  # enough that none is longer than the batch's own
    sequences += pad_amount(sequences, _SIZES_PER_DOUBLING)
    tokens = len(batch.input_ids) + sequences - len(batch)
    padded = batch.padded(tokens + pad_amount(tokens, _SIZES_PER_DOUBLING), sequences, ignored)
    power = 1 << (padded.max_seqlen - 1).bit_length()  # the attention's tiles are powers of 2 anyway
    return replace(padded, max_seqlen=max(padded.max_seqlen, min(power, max_len)))


_thread_local = threading.local()  # has `streams`
_capture_lock = threading.Lock()  # PyTorch allows one capture at a time


def _stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """This thread's stream for a purpose. Streams are reused because cuBLAS keeps a workspace for each."""
    streams: dict[tuple[torch.device, str], torch.cuda.Stream] = _thread_local.__dict__.setdefault("streams", {})
    if (device, purpose) not in streams:
        streams[device, purpose] = torch.cuda.Stream(device)
    return streams[device, purpose]


class CapturedSteps:
    """A function of padded batches that captures `step` once for each size, and replays it.

    step     a whole step: maps a batch and a number (float32 []), both on the GPU, to new tensors. It must not wait for
             the GPU. It finds parameters without gradients, and must leave them so
    purpose  name of the stream on which steps are captured; objects in use at the same time need different ones
    first    number of steps of a size that run eagerly before the capture, which takes as long as two of them

    This is PyTorch's recipe for whole networks: warm-up and capture on streams of their own, a `capturable` optimizer,
    one memory pool for all graphs. The graphs may share the pool, although they are not replayed in the order of their
    capture, because none reads what another wrote there: gradients are new in each, and results are copied out. Random
    numbers come from torch's generator of the device, which each replay advances.

    The pool holds one step's activations as long as this object lives, beside the memory of eager steps. Raises
    RuntimeError if a capture fails; the device's generator cannot be used afterwards.
    """

    def __init__(self, step: Step, device: torch.device, purpose: str = "training", first: int = 1) -> None:
        self.step, self.device, self.purpose, self.first = step, device, purpose, first
        self._number = torch.zeros((), device=device)
        self._seen: dict[tuple[int, int, int], int] = {}
        self._steps: dict[tuple[int, int, int], Captured] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, batch: PackedBatch, number: float) -> tuple[Tensor, ...]:
        """The results of `step` for a batch on the CPU that `pad_to_bucket` made."""
        sizes = len(batch.input_ids), len(batch), batch.max_seqlen
        self._number.fill_(number)
        if sizes in self._steps:
            self._steps[sizes][0].copy_(batch)
        else:
            inputs = batch.to(self.device, non_blocking=True)
            self._seen[sizes] = self._seen.get(sizes, 0) + 1
            if self._seen[sizes] <= self.first:
                return self._warm_up(inputs)
            try:
                self._steps[sizes] = inputs, *self._capture(inputs)
            except RuntimeError as error:
                raise RuntimeError(
                    "a step could not be captured as a CUDA graph (cuda_graphs=False runs them kernel by kernel): "
                    f"{error.__context__ or error}"
                ) from error
        _, outputs, replay = self._steps[sizes]
        replay()
        return tuple(x.clone() for x in outputs)

    def _warm_up(self, inputs: PackedBatch) -> tuple[Tensor, ...]:
        here, beside = torch.cuda.current_stream(self.device), _stream(self.device, "warm-up")
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            found = self.step(inputs, self._number)
        here.wait_stream(beside)
        return found

    def _capture(self, inputs: PackedBatch) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """The result tensors of a step, and the function that computes them again from the contents of `inputs`."""
        graph, stream = torch.cuda.CUDAGraph(), _stream(self.device, self.purpose)
        with _capture_lock:
            # A graph holds the address of its stream's cuBLAS workspace. Cleared here, it is allocated in the graph's
            # pool; an older one would be freed when anyone clears all workspaces, as torch.compile does.
            torch._C._cuda_clearCublasWorkspaces()
            # "thread_local" allows other threads, such as another model's inference, to use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self.step(inputs, self._number)
        return outputs, graph.replay
