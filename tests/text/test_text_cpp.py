"""The C++ of the text stage alone: its own tests, with a plain compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_parts(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"needs a C++ compiler, {compiler}")
    environment = {**os.environ, "BUILD": str(tmp_path)}
    script = [str(ROOT / "tests" / "cpp" / "run.sh"), "plain"]
    result = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all parts hold" in result.stdout
