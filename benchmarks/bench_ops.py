"""The operators that go row by row against PyTorch's own expressions, forward and backward, one training batch.

    python benchmarks/bench_ops.py [--threads 1] [--rounds 15] [--dtype float32]

Each first has to give PyTorch's values and gradients without dropout. Then the contestants are timed alternately, with
dropout 0.1 where there is any; the figures are each one's least time and the median ratio of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli import ops

TOKENS, HIDDEN, FFN, VOCAB, POSITIONS = 870, 384, 1536, 30522, 512  # 32 SNLI pairs, MiniLM's sizes


def problems(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    """Name to (ours, PyTorch's, inputs); the callables take `p` and the inputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    ids, segments, positions = (
        torch.randint(0, n, (TOKENS,), generator=generator, dtype=torch.int32) for n in (VOCAB, 2, 40)
    )

    def add_norm(p: float, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + F.dropout(y, p), (HIDDEN,), weight, bias)

    def bias_act(kind: str, p: float, x: Tensor, bias: Tensor) -> Tensor:
        return F.relu(x + bias) if kind == "relu" else F.gelu(x + bias, approximate=kind)

    def embed(p: float, token: Tensor, segment: Tensor, position: Tensor) -> Tensor:
        return F.embedding(ids, token) + F.embedding(segments, segment) + F.embedding(positions, position)

    rows = [random(TOKENS, HIDDEN), random(TOKENS, HIDDEN), random(HIDDEN), random(HIDDEN)]
    wide = [random(TOKENS, FFN), random(FFN)]
    tables = [random(n, HIDDEN) for n in (VOCAB, 2, POSITIONS)]
    return {
        "add_norm": (lambda p, x, y, w, b: ops.add_norm(x, y, w, b, dropout_p=p), add_norm, rows),
        "relu": (lambda p, *x: ops.bias_act(*x, "relu"), partial(bias_act, "relu"), wide),
        "gelu": (lambda p, *x: ops.bias_act(*x, "gelu"), partial(bias_act, "none"), wide),
        "gelu_tanh": (lambda p, *x: ops.bias_act(*x, "gelu_tanh"), partial(bias_act, "tanh"), wide),
        "embed": (lambda p, *x: ops.embed(*x, ids, segments, positions), embed, tables),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    print(f"{options.dtype}, {torch.get_num_threads()} threads, {ops.cpu_isa()}; milliseconds forward + backward")
    for name, (ours, theirs, inputs) in problems(dtype).items():
        leaves = [x.requires_grad_() for x in inputs]
        dout = torch.randn(TOKENS, FFN if len(inputs) == 2 else HIDDEN, generator=torch.Generator().manual_seed(1))
        dout = dout.to(dtype)
        results = []
        for f in (ours, theirs):
            out = f(0.0, *leaves)
            results.append([out, *torch.autograd.grad(out, leaves, dout)])
        if dtype == torch.float32:
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        times: tuple[list[list[float]], list[list[float]]] = ([], [])
        for _ in range(options.rounds):
            for f, to in zip((ours, theirs), times, strict=True):
                begun = time.perf_counter()
                out = f(0.1, *leaves)
                middle = time.perf_counter()
                torch.autograd.grad(out, leaves, dout)
                to.append([middle - begun, time.perf_counter() - middle])
        best = [[min(part) * 1e3 for part in zip(*side, strict=True)] for side in times]
        ratio = statistics.median(sum(b) / sum(a) for a, b in zip(*times, strict=True))
        print(
            f"{name:10} ours {best[0][0]:6.2f} + {best[0][1]:6.2f}   PyTorch {best[1][0]:6.2f} + {best[1][1]:6.2f}   "
            f"median ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
