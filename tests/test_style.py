"""Linters, types and formatting, as the rest of the suite: a finding is a failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("csrc/**/*", "tests/cpp/*", "benchmarks/*")
CPP = sorted(str(p.relative_to(ROOT)) for room in ROOMS for kind in ("cpp", "h") for p in ROOT.glob(f"{room}.{kind}"))


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("ruff", ["check", "."]),
        ("ruff", ["format", "--check", "."]),
        ("mypy", []),
        ("clang_format", ["--dry-run", "--Werror", *CPP]),
    ],
    ids=["lint", "format", "types", "c++"],
)
def test_clean(module: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", module]
    if module == "clang_format":
        found = shutil.which("clang-format", path=str(Path(sys.executable).parent)) or shutil.which("clang-format")
        if found is None:
            pytest.skip("clang-format is not installed")
        command = [found]
    result = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
