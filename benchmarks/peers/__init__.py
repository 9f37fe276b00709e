"""The libraries that the benchmarks compare bertnli with: one small file a peer, all with the same names in it.

    NAME          the contestant's name in records
    PRECISIONS    those that it can compute in; ("exact",) for a tokenizer
    REQUIRES      its distributions on the package index
    FEATURES      features of the CPU that it needs, as /proc/cpuinfo names them (optional)
    BUILT_FOR     {precision: features of the CPU} that a precision needs (optional)
    CANNOT        why it cannot do the work at all (optional)
    ENVIRONMENT   distributions of a virtual environment of its own, where they do not fit this one (optional)
    build         makes the contestant's work from a problem

Suites that score have peers with `build(problem, precision, threads)`, which gives a `problem.Peer` on padded ids, or
with `build_text(...)`, which gives a function of pairs of strings; see problem.py.
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any


def load(name: str) -> ModuleType:
    """The module of a peer; importing it imports no library."""
    return importlib.import_module(f"peers.{name}")


def cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def unavailable(module: ModuleType, precision: str) -> str | None:
    """Why a peer cannot run here in a precision; None if it may."""
    features = (*getattr(module, "FEATURES", ()), *getattr(module, "BUILT_FOR", {}).get(precision, ()))
    if lacking := [flag for flag in features if flag not in cpu_flags()]:
        return f"needs a CPU with {', '.join(lacking)}"
    if hasattr(module, "CANNOT"):
        return str(module.CANNOT)
    if hasattr(module, "ENVIRONMENT"):
        return None
    for name in module.REQUIRES:
        try:
            version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
    return None


_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"


def environment_of(module: Any, runs: Path) -> str:
    """The Python to run a peer with: this one, or that of an environment made for it.

    Such an environment has the packages of this one, behind its own.
    """
    wanted = getattr(module, "ENVIRONMENT", None)
    if wanted is None:
        return sys.executable
    folder = runs / "environments" / hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = subprocess.run([str(python), "-c", _PACKAGES], check=True, capture_output=True, text=True).stdout
        inherited = [path for path in sys.path if path.endswith("-packages")]
        Path(packages.strip(), "inherited.pth").write_text("\n".join(inherited), encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=1200)
        (folder / "ready").touch()
    return str(python)
