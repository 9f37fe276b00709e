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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, in which `bertnli demo` has run, small."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--output", "runs/demo", "--pairs", "300", "--epochs", "1", "--quiet"]) == 0
    return tmp_path


def run_page(name: str, place: Path) -> None:
    """Run the page's blocks in this process (there are many), commands with a pipe in another."""
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL):
        if kind == "python":
            exec(compile(text, f"docs/{name}", "exec"), {"__name__": "snippet"})
        for line in text.splitlines() if kind == "sh" else ():
            if "|" in line:
                assert shell(place, line).strip()
            else:
                assert main(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize("name", ["guide.md", "d2l.md"])
def test_page(name: str, place: Path) -> None:
    run_page(name, place)


def test_tasks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert all(f"`{task}`" in page for task in HEADS)
    try:
        run_page("tasks.md", place)
        figures, prediction = capsys.readouterr().out.splitlines()[-2:]
    finally:
        HEADS.pop("relation", None)
    evaluated, trained = figures.split()
    assert float(evaluated) == float(trained)  # what was saved is what was trained
    assert re.fullmatch(r"\[\{'kind': \d, 'score': .*\}\]", prediction)


def test_links() -> None:
    """Every relative link of every page leads to a file."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
