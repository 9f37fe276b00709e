"""The pages of docs/: their commands and snippets run, their links and error messages hold, both languages agree."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

import bertnli
from bertnli.cli import main
from bertnli.data.demo import write_demo_corpus
from bertnli.tasks.base import HEADS

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(kind, text) of each block of code of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(kind, textwrap.dedent(text)) for _, kind, text in found]


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of code of a notebook."""
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if any(kind in ("python", "sh") for kind, _ in blocks(path))]
ENGLISH = [path for path in PAGES if path.parent.name != "zh"]


def leave_out_plots(patch: pytest.MonkeyPatch) -> None:
    """Make reports without plots, as without matplotlib: they take most of the time, and other tests draw them."""
    patch.setattr("bertnli.report.plots.new_figure", lambda **_: None)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small `bertnli demo`."""
    folder = tmp_path_factory.mktemp("docs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch)
        patch.setattr("bertnli.cli.demo.write_demo_corpus", partial(write_demo_corpus, dev=200, test=200))
        assert main(["demo", "--output", str(folder), "--pairs", "300", "--epochs", "1", "--quiet"]) == 0
    return folder


@pytest.fixture
def place(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, now the current one, in which runs/demo is the demo's."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(demo)
    monkeypatch.chdir(tmp_path)
    leave_out_plots(monkeypatch)
    yield tmp_path
    HEADS.pop("relation", None)


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `bertnli ...`, or `printf ... | bertnli ...`, in this process."""
    given, _, command = line.rpartition(" | ")
    with tempfile.TemporaryFile("w+b") as piped:
        subprocess.run(["bash", "-c", given], stdout=piped, check=True)
        piped.seek(0)
        with monkeypatch.context() as patch, io.TextIOWrapper(piped) as stdin:
            patch.setattr(sys, "stdin", stdin)
            assert main(shlex.split(command)[1:]) == 0, line


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: str(page.relative_to(DOCS)))
def test_page(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), {"__name__": "snippet"})
        for line in text.replace("\\\n", "").splitlines() if kind == "sh" else ():
            run_command(line, monkeypatch)
    if page.name == "custom-task.md":
        figures, prediction = capsys.readouterr().out.splitlines()[-2:]
        evaluated, trained = figures.split()
        assert float(evaluated) == float(trained)  # what was saved is what was trained
        assert re.fullmatch(r"\[\{'kind': \d, 'score': .*\}\]", prediction)


def test_tutorial(minilm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tutorial runs, on fewer examples. (It loads the checkpoint of `minilm_dir`.)"""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells(DOCS / "tutorial.ipynb")):
        source = "".join(cell["source"]).replace("range(1000)", "range(60)").replace("300", "60")
        exec(compile(source, f"tutorial.ipynb, cell {number}", "exec"), names)


def test_languages_have_equal_code() -> None:
    for page in ("README.md", "docs/index.md"):
        chinese = ROOT / page.replace("README", "README.zh").replace("docs/", "docs/zh/")
        assert blocks(chinese) == blocks(ROOT / page), f"{chinese} differs from {page}"
    english, chinese_cells = cells(DOCS / "tutorial.ipynb"), cells(DOCS / "zh" / "tutorial.ipynb")
    assert [cell["source"] for cell in english] == [cell["source"] for cell in chinese_cells]
    assert [cell["outputs"] for cell in english] == [cell["outputs"] for cell in chinese_cells]


def test_notebooks_were_executed() -> None:
    count = [cell["execution_count"] for cell in cells(DOCS / "tutorial.ipynb")]
    assert count == list(range(1, len(count) + 1)), "run: python tests/helpers/execute_tutorial.py"


def test_tasks() -> None:
    page = (DOCS / "howto" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{task}`" in page for task in HEADS)


def test_links() -> None:
    """Every relative link of every page leads to a file."""
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_reference_has_each_public_name_once() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    named = re.findall(r"^::: bertnli\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(vars(bertnli)["__all__"])


@cache
def messages() -> str:
    """The strings of the sources, one a line, with "…" for the values in them."""
    texts = []
    for path in (ROOT / "bertnli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for path in (ROOT / "csrc").rglob("*.cpp"):
        for statement in path.read_text(encoding="utf-8").split(";\n"):
            pieces = re.findall(r'"((?:[^"\\\n]|\\.)*)"(\s*(?=")|)', statement)
            texts.append("".join(text + ("" if adjacent else "…") for text, adjacent in pieces))
    return "\n".join(text.replace("\n", " ") for text in texts)


def test_errors_are_raised() -> None:
    """Every message of the page of errors is one of the sources."""
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(named) > 40
    for message in named:
        pattern = ".*".join(re.escape(piece) for piece in message.split("…"))
        assert re.search(pattern, messages()), f"no error says {message!r}"


def test_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "zh" / "tutorial.html").is_file()
    fetched = re.compile(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"')
    outside = [path.name for path in tmp_path.rglob("*.html") if fetched.search(path.read_text("utf-8"))]
    assert not outside, "these pages fetch from other servers"
