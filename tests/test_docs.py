"""Every command and snippet of the documentation's pages runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.commands import shell

from bertnli.cli import main
from bertnli.tasks.base import HEADS


def test_applications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, where no pipe is needed, for it is many commands."""
    page = (ROOT / "docs" / "applications.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert all(f"`{task}`" in page for task in HEADS)
    assert main(["demo", "--output", "runs/demo", "--pairs", "300", "--epochs", "1", "--quiet"]) == 0
    try:
        for kind, text in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
            capsys.readouterr()
            if kind == "python":
                exec(compile(text, "docs/applications.md", "exec"), {"__name__": "snippet"})
            for line in text.splitlines() if kind == "sh" else ():
                if "|" in line:
                    assert shell(tmp_path, line).strip()
                else:
                    assert main(shlex.split(line)[1:]) == 0, line
        figures, prediction = capsys.readouterr().out.splitlines()
    finally:
        HEADS.pop("relation", None)
    evaluated, trained = figures.split()
    assert float(evaluated) == float(trained)  # what was saved is what was trained
    assert re.fullmatch(r"\[\{'kind': \d, 'score': .*\}\]", prediction)
