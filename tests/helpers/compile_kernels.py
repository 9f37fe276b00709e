"""Compile the Triton kernels for an H100 on a machine without a GPU; one JSON line for each launch.

    python tests/helpers/compile_kernels.py

Every launch of one layer, forward and backward with dropout, in the shapes that matter: whole tiles, loops over long
sequences, and the last layer's one query a sequence.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bertnli.kernels import activation, attention, embedding, norm

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """What a launch does up to the launch itself: aligned pointers, multiples of 16 known as such."""
    options: dict[str, Any] = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    values = dict(zip(self.arg_names, args, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(self.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name], attributes[(i,)] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=self, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    found: dict[str, Any] = {"kernel": self.__name__, "shared": compiled.metadata.shared, **options}
    found["ranked"] = bool(named.get("RANKED"))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if tool.exists():
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder, "kernel.cubin")).write_bytes(compiled.asm["cubin"])
            text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
        usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
        assert usage is not None, text
        found |= {"registers": int(usage[1]), "spilled": int(usage[2])}
    print(json.dumps(found), flush=True)


def attend(heads: int, kv_heads: int, width: int, keys: int, dtype: torch.dtype, sequences: int = 1) -> None:
    queries = 1 if kv_heads < heads else keys
    q, k = torch.zeros(queries, heads, width, dtype=dtype), torch.zeros(keys, kv_heads, width, dtype=dtype)
    cu_q, cu_k = (torch.full((sequences + 1,), n, dtype=torch.int32) for n in (queries, keys))
    rest = (cu_q, cu_k, queries, keys, 0.1, 0.125, torch.tensor([1, 2]))
    results = attention.forward(q, k, k, *rest)
    attention.backward(results[0], None if kv_heads == heads else results[1], q, k, k, *results, *rest)


def main() -> None:
    JITFunction.run = compile_only
    bf16, fp32 = torch.bfloat16, torch.float32
    attend(12, 12, 64, 64, bf16)
    attend(12, 12, 64, 128, bf16, sequences=512)
    attend(12, 12, 64, 500, bf16)
    attend(12, 1, 768, 64, bf16)
    attend(12, 12, 32, 64, fp32)
    x, row, seed = torch.zeros(64, 768), torch.zeros(768), torch.tensor([1, 2])
    rest = (0.1, seed)
    results = norm.add_norm(x, x.bfloat16(), row, row, row, 1e-5, *rest)
    norm.add_norm_backward(results[0], x, x.bfloat16(), row, row, row, *results[1:], *rest)
    activation.bias_act(x.bfloat16(), row, "gelu")
    activation.bias_act_backward(x.bfloat16(), x.bfloat16(), row, "gelu")
    ids = torch.zeros(64, dtype=torch.int32)
    embedding.embed(x, x, x, ids, ids, ids)
    embedding.embed_backward(x, ids, ids, ids, 64, 2, 512, True, True, True)
    _, mean, rstd = embedding.embed_norm(x, x, x, ids, ids, ids, row, row, 1e-12, *rest, bf16)
    embedding.embed_norm_backward(x.bfloat16(), x, x, x, ids, ids, ids, row, row, mean, rstd, *rest)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") == "0", "unset TRITON_INTERPRET"
    main()
