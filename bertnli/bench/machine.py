"""What a record says about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bertnli import __version__, ops

CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
_VARIABLES = ("BERTNLI_ISA", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_MAX_CPU_ISA")


@cache
def cpu() -> dict[str, Any]:
    """The CPU's name, family, features that kernels are chosen by, and the cores that this process may use."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = fields.get("flags", "").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": fields.get("model name", platform.processor() or platform.machine()),
        "family": fields.get("cpu family"),  # cloud machines hide the model's number
        "cores": cores,
        "features": [flag for flag in CPU_FLAGS if flag in flags],
    }


def machine() -> str:
    """One line: processor, family, cores, and the instruction set of bertnli's kernels."""
    about = cpu()
    family = f" (family {about['family']})" if about["family"] else ""
    return f"{about['name']}{family}, {about['cores']} cores, {ops.cpu_isa()} kernels"


def versions_of(distributions: tuple[str, ...]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "."], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + "+" * bool(changed.stdout.strip())


def circumstances(threads: int | None = None) -> dict[str, Any]:
    """The fields of a record that do not depend on the work."""
    about = cpu()
    return {
        "machine": machine(),
        "cpu": about["name"],
        "threads": threads or torch.get_num_threads(),
        "versions": {"bertnli": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "flags": {
            "cpu": about["features"],
            "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        },
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
