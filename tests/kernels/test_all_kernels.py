"""What all Triton kernels have in common: on a GPU, or interpreted.

Without a GPU conftest.py sets TRITON_INTERPRET before Triton is imported, and the launchers are called directly, since
CPU tensors dispatch to C++. The tests are the same on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.operators import (
    cumulative,
    embed_inputs,
)
from helpers.triton_kernels import DEVICE, on_device
from torch import Tensor

pytest.importorskip("triton")

from bertnli import BERTClassifier, BERTConfig, BERTModel, PackedBatch
from bertnli.kernels import activation, embedding, norm


def test_no_tokens() -> None:
    x, w = on_device(torch.zeros(0, 12), torch.ones(12))
    out, mean, rstd = norm.add_norm(x, x, w, w, w, 1e-5, 0.0, None)
    dx, dy, *vectors = norm.add_norm_backward(x, x, x, w, w, w, mean, rstd, 0.0, None)
    assert out.shape == dx.shape == dy.shape == (0, 12)
    assert all(torch.equal(v.cpu(), torch.zeros(12)) for v in vectors)
    assert activation.bias_act(x, w, "gelu").shape == (0, 12)
    assert torch.equal(activation.bias_act_backward(x, x, w, "gelu")[1].cpu(), torch.zeros(12))
    tables, ids, _ = embed_inputs(12, torch.float32, 0)
    assert embedding.embed(*on_device(*tables, *ids)).shape == (0, 12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: norm.add_norm(x.double(), x, None, w, w, 1e-5, 0.0, None), "x must be float32"),
        (lambda x, w: norm.add_norm(x, x[:1], None, w, w, 1e-5, 0.0, None), r"y must have x's shape \[3, 8\]"),
        (lambda x, w: norm.add_norm(x, x, None, w[1:], w, 1e-5, 0.0, None), r"weight must have shape \[8\]"),
        (lambda x, w: norm.add_norm(x, x, None, w, w, 1e-5, 0.5, None), "seed must be given"),
        (lambda x, w: activation.bias_act(x, w, "silu"), "kind must be"),
        (lambda x, w: embedding.embed(x, x, x[:, 1:], *[w.int()] * 3), "position_table must have shape"),
        (lambda x, w: embedding.embed(x, x, x, *[w.long()] * 3), "input_ids must be int32"),
    ],
)
def test_rows_bad_arguments(function: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        function(torch.zeros(3, 8, device=DEVICE), torch.zeros(8, device=DEVICE))


def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """Triton's compiler takes every kernel for an H100, with or without one: hardly a register is spilled."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", root / "tests" / "helpers" / "compile_kernels.py"],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "TRITON_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {launch["kernel"] for launch in found} == {
        *("forward_kernel", "backward_whole_kernel", "backward_queries_kernel", "backward_keys_kernel"),
        *("_add_norm", "_add_norm_backward", "_bias_act", "_bias_act_backward", "_column_sums"),
        *("_embed", "_embed_norm", "_embed_norm_backward", "_scatter"),
    }
    for launch in found:
        assert launch["shared"] <= 227 << 10, launch
        # 128 keys in a tile, in a loop over sequences, take some hundred bytes
        assert launch.get("spilled", 0) <= (320 if launch["ranked"] else 64), launch


@pytest.mark.gpu
def test_a_training_step_on_a_gpu_is_that_of_the_cpu_and_waits_for_nothing() -> None:
    """Equal gradients, and no synchronisation on the way."""
    lens = [27, 8, 60, 1]
    total = sum(lens)
    config = BERTConfig.original(
        50, num_hiddens=64, ffn_num_hiddens=128, num_heads=2, num_layers=2, dropout=0.0, max_len=64
    )
    torch.manual_seed(0)
    model = BERTClassifier(BERTModel(config))
    batch = PackedBatch(
        torch.randint(0, 50, (total,), dtype=torch.int32),
        torch.zeros(total, dtype=torch.int32),
        torch.cat([torch.arange(n, dtype=torch.int32) for n in lens]),
        cumulative(lens),
        max(lens),
        torch.tensor([0, 1, 2, 1]),
    )
    model.loss(model(batch), batch).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.cuda()
    on_gpu = batch.pin_memory().to("cuda", non_blocking=True)
    model.loss(model(on_gpu), on_gpu).backward()  # compiles
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad.cpu(), expected[name], rtol=1e-3, atol=1e-4, msg=name)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = batch.pin_memory().to("cuda", non_blocking=True)
        model.loss(model(on_gpu), on_gpu).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_benchmark_for_gpus_runs_on_tiny_sizes(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    program, options = root / "benchmarks" / "bench_gpu.py", ["--device", "cpu", "--tiny", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, program, *options, "--json", tmp_path / "gpu.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["work"] for row in rows} == {"attention", "rows", "step", "logits", "fit", "text"}
    assert all(row["pairs_per_second" if row["work"] in ("fit", "text") else "bertnli_ms"] > 0 for row in rows)
