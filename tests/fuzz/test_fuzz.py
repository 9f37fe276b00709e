"""A small part of what `make sanitize` and `make fuzz` do, without sanitizers and without Atheris."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import loaders
from helpers import ROOT

pytestmark = pytest.mark.slow


def test_bindings() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "fuzz" / "bindings.py"), "10", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"crashed in {result.stderr.splitlines()[-1]}: {result.stderr[-2000:]}"
    assert re.search(r"\b(\d+)0 calls of \1 kinds, 10 edited models: no crash", result.stdout)


@pytest.mark.filterwarnings("ignore")
def test_loaders(tmp_path: Path) -> None:
    one_input, good = loaders.make_one_input(tmp_path / "files")
    rng = random.Random(0)
    for data in good:
        one_input(data)
        for _ in range(10):
            changed = loaders.mutate(data, rng)
            try:
                one_input(changed)
            except Exception as error:
                pytest.fail(f"{type(error).__name__} of {changed!r}: {error}")
