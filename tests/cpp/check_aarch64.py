"""The tokenizer and the operators' kernels with four lanes against NumPy. Run on aarch64 by aarch64.sh, where qemu-user
cannot run PyTorch's own kernels: none is called."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import bertnli
from bertnli import ops

call = torch.ops.bertnli
rng = np.random.default_rng(0)


def new(*shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def check(name: str, found: Tensor, expected: npt.NDArray[np.floating]) -> None:
    error = np.abs(found.detach().numpy() - expected).max()
    assert error < 1e-5, (name, error)
    print(f"{name}: {error:.1e}")


def tensors(*arrays: npt.NDArray[np.generic]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


tokenizer = bertnli.WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "sleep", "##s"])
assert tokenizer.encode("A man sleeps, é") == [5, 6, 7, 8, 1, 1]
assert ops.cpu_isa() == "plain"

# Widths that are not multiples of a vector.
x, bias, y, weight = new(37, 45), new(45), new(37, 45), new(45)
total = (x + bias).astype(np.float64)
gelu = total * 0.5 * (1 + np.vectorize(math.erf)(total / math.sqrt(2)))
check("bias_act, gelu", call.bias_act(*tensors(x, bias), "gelu"), gelu)
check("bias_act, relu", call.bias_act(*tensors(x, bias), "relu"), np.maximum(total, 0))
dx, dbias = call.bias_act_backward(*tensors(y, x, bias), "relu")
check("bias_act_backward, dx", dx, y * (total > 0))
check("bias_act_backward, dbias", dbias, (y * (total > 0)).sum(0, dtype=np.float64))

total = (x + y).astype(np.float64)
rstd = 1 / np.sqrt(total.var(1, keepdims=True) + 1e-5)
normal = (total - total.mean(1, keepdims=True)) * rstd
out = call.add_norm(*tensors(x, y), None, *tensors(weight, bias), 1e-5, 0.0, None)[0]
check("add_norm", out, normal * weight + bias)

bounds = np.array([0, 5, 5, 30, 37], dtype=np.int32)
q, k, v = new(37, 3, 20), new(37, 3, 20), new(37, 3, 20)
cu = torch.from_numpy(bounds)
expected = np.empty((37, 3, 20))
for begin, end in itertools.pairwise(bounds):
    for head in range(3):
        scores = q[begin:end, head].astype(np.float64) @ k[begin:end, head].T * 0.2
        weights = np.exp(scores)
        expected[begin:end, head] = weights / weights.sum(1, keepdims=True) @ v[begin:end, head]
out = call.varlen_attention(*tensors(q, k, v), cu, cu, 25, 25, 0.0, 0.2, None)[0]
check("varlen_attention", out, expected)

ids, segments, positions = (rng.integers(0, size, 37).astype(np.int32) for size in (11, 2, 7))
tables = new(11, 45), new(2, 45), new(7, 45)
out = call.embed(*tensors(*tables, ids, segments, positions), False)
check("embed", out, tables[0][ids] + tables[1][segments] + tables[2][positions])
print("the kernels for any CPU agree with NumPy")
