"""Every command and snippet of the README runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.commands import shell

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if "bertnli " in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder outside the checkout in which `bertnli demo` has run, small."""
    folder = tmp_path_factory.mktemp("readme")
    shell(folder, COMMANDS[0] + " --pairs 300 --epochs 1 --quiet")
    return folder


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_commands(place: Path, command: str) -> None:
    assert shell(place, command).strip()


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python"])
def test_snippets(place: Path, code: str) -> None:
    (place / "snippet.py").write_text(code, encoding="utf-8")
    shell(place, f"{sys.executable} -W error::DeprecationWarning snippet.py")


def test_make_and_ci_have_the_two_commands() -> None:
    """`make demo` and `make test` cannot run inside the suite: CI runs both."""
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in ("demo", "test"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert re.search(rf"^make {target}\b", ci, re.MULTILINE)
    assert len(COMMANDS) == 5
