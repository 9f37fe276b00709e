"""The choice of the instruction set and the threads of the CPU kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.isa import available

from bertnli import ops


@pytest.mark.parametrize("name", ["plain", "avx2", "avx512", "avx512_bf16", "amx", "sse9"])
def test_environment_chooses_the_instruction_set(name: str) -> None:
    code = """if True:
        import torch
        from bertnli import ops
        found, choose = ops.cpu_isa(), torch.ops.bertnli.set_cpu_isa
        choose("plain")
        choose("")
        assert ops.cpu_isa() == found
        print(found)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"BERTNLI_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    if available(name):
        assert done.stdout.strip() == name, done.stderr
    else:
        assert done.returncode != 0
        assert "BERTNLI_ISA" in done.stderr
        assert (
            "which this CPU lacks" if name != "sse9" else "must be plain, avx2, avx512, avx512_bf16 or amx"
        ) in done.stderr


def test_kernels_share_their_work_among_threads() -> None:
    """A build without OpenMP would leave ATen's parallel_for, and so every operator, on one thread."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert ops.cpu_threads() == threads
    finally:
        torch.set_num_threads(before)
