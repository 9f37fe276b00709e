"""Steps of training and inference as CUDA graphs: a step's some hundred launches become one.

A graph repeats what was captured, with the same sizes and addresses. So batches are padded to one of few sizes, by
sequences that the loss ignores; for each size there is a graph, whose inputs are copied to where it reads them.
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

_SIZES = 16  # between a number of tokens or sequences and its double: at most 6.3 % more than there are

Step = Callable[[PackedBatch, Tensor], tuple[Tensor, ...]]
Captured = tuple[PackedBatch, tuple[Tensor, ...], Callable[[], None]]  # where it reads, its results, and what runs it


def use_cuda_graphs(
    asked: bool | None, model: Head, device: torch.device, processes: int = 1, accumulate: int = 1
) -> bool:
    """Whether steps of this model are captured: as asked, by default where they can be and the head is one of ours,
    whose steps are known to bear it. Raises ValueError where it is asked for and cannot be."""
    why_not = why_not_capturable(model, device, processes, accumulate)
    if asked and why_not is not None:
        raise ValueError(why_not)
    return why_not is None and ours(model) if asked is None else asked


def ours(model: Head) -> bool:
    """Whether the head is one of this package."""
    return type(model).__module__.partition(".")[0] == "bertnli"


def why_not_capturable(model: Head, device: torch.device, processes: int, accumulate: int) -> str | None:
    """Why the steps of a model cannot be captured; None where they can."""
    if model.ignored is None:
        return f"cuda_graphs needs a head with labels that its loss ignores; {type(model).__name__} has none"
    if device.type != "cuda" or processes > 1 or accumulate > 1:
        return (
            f"cuda_graphs is for one process on a CUDA device and whole steps; found {processes} on {device.type!r}, "
            f"accumulate={accumulate}"
        )
    if not ops.has_kernel(model.encoder.pos_embedding):
        return "cuda_graphs needs Triton, and parameters that are not float64: else attention waits for the device"
    if any(map(_hooks, model.modules())) or any(p._backward_hooks for p in model.parameters()):
        return "cuda_graphs is for models without hooks, which would not be called again"
    return None


def _hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def pad_to_bucket(batch: PackedBatch, ignored: float, max_len: int) -> PackedBatch:
    """The batch, padded so that its numbers of tokens and of sequences and its `max_seqlen` are some of few."""
    sequences = len(batch) + len(batch) // (_SIZES // 2) + 1  # so many that none is longer than the batch's own
    sequences += pad_amount(sequences, _SIZES)
    tokens = len(batch.input_ids) + sequences - len(batch)
    padded = batch.padded(tokens + pad_amount(tokens, _SIZES), sequences, ignored)
    power = 1 << (padded.max_seqlen - 1).bit_length()  # a tile of the attention is no smaller
    return replace(padded, max_seqlen=max(padded.max_seqlen, min(power, max_len)))


_mine = threading.local()  # the streams of a thread
_one_at_a_time = threading.Lock()  # PyTorch's rule for captures


def _stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """The thread's stream for a purpose: for each stream on which it has run, cuBLAS keeps a workspace."""
    streams: dict[tuple[torch.device, str], torch.cuda.Stream] = _mine.__dict__.setdefault("streams", {})
    if (device, purpose) not in streams:
        streams[device, purpose] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device, purpose]


class CapturedSteps:
    """`step` of batches in buckets: the first of each size run as they are, the next is captured, and it and later ones
    are replayed.

    step     whole steps: from a batch and a number, float32 [], both on the GPU, tensors that it makes anew. It must
             not wait for the GPU, and must leave parameters without gradients, as it found them
    purpose  of the stream on which steps are captured; those that are in use at the same time have different ones
    first    how many steps of a size are run as they are: a capture takes as long as some two of them

    This is PyTorch's recipe for the capture of whole networks: warm-up and capture on a stream of their own, the
    optimizer `capturable`, one pool of memory for all graphs. They may share it, though not replayed in the order of
    their capture, since no graph reads what another wrote there: gradients are new in each, and results are copied out.
    Random numbers come from torch's generator of the device, which every replay moves on.

    The pool holds what a step's activations take for as long as this object lives, beside what steps that run as they
    are take. Raises RuntimeError where a capture fails: the generator is of no use then, so nothing can go on.
    """

    def __init__(self, step: Step, device: torch.device, purpose: str = "training", first: int = 1) -> None:
        self.step, self.device, self.purpose, self.first = step, device, purpose, first
        self._number = torch.zeros((), device=device)
        self._seen: dict[tuple[int, int, int], int] = {}
        self._steps: dict[tuple[int, int, int], Captured] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, batch: PackedBatch, number: float) -> tuple[Tensor, ...]:
        """What `step` gives for a batch from `pad_to_bucket`, on the CPU."""
        sizes = len(batch.input_ids), len(batch), batch.max_seqlen
        self._number.fill_(number)
        if sizes in self._steps:
            self._steps[sizes][0].copy_(batch)
        else:
            inputs = batch.to(self.device, non_blocking=True)
            self._seen[sizes] = self._seen.get(sizes, 0) + 1
            if self._seen[sizes] <= self.first:
                return self._warmed_up(inputs)
            try:
                self._steps[sizes] = inputs, *self._captured(inputs)
            except RuntimeError as error:
                raise RuntimeError(
                    "a step could not be captured as a CUDA graph (cuda_graphs=False runs them kernel by kernel): "
                    f"{error.__context__ or error}"
                ) from error
        _, outputs, replay = self._steps[sizes]
        replay()
        return tuple(x.clone() for x in outputs)

    def _warmed_up(self, inputs: PackedBatch) -> tuple[Tensor, ...]:
        here, beside = torch.cuda.current_stream(self.device), _stream(self.device, "warm-up")
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            found = self.step(inputs, self._number)
        here.wait_stream(beside)
        return found

    def _captured(self, inputs: PackedBatch) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """The results of a step, and what computes them anew from what `inputs` hold by then."""
        graph, stream = torch.cuda.CUDAGraph(), _stream(self.device, self.purpose)
        with _one_at_a_time:
            # A graph holds the address of cuBLAS's workspace for its stream: so it is made anew, in the graph's pool.
            # Another is gone once anybody has PyTorch let go of all, as torch.compile does for graphs of its own.
            torch._C._cuda_clearCublasWorkspaces()
            # "thread_local": what other threads do meanwhile, such as another model's inference, is none of the graph's
            # business.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self.step(inputs, self._number)
        return outputs, graph.replay
