"""The layout that ARCHITECTURE.md promises: rooms import from rooms above them, and nothing grows out of hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

# From the first stage to the last. `bertnli/__init__.py` and `__main__.py` may import from all of them.
ROOMS = [
    *("data", "text", "ops", "kernels", "encoder", "tasks", "runtime", "inference", "training", "distillation"),
    *("checkpoint", "report", "model", "integrations", "sklearn", "d2l", "bench", "cli"),
]
PACKAGE = sorted(path for path in (ROOT / "bertnli").rglob("*.py") if path.parent != ROOT / "bertnli") + [
    ROOT / "bertnli" / name for name in ("model.py", "sklearn.py")
]
PYTHON = sorted(path for folder in ("bertnli", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
CPP = sorted(
    path
    for folder in ("csrc", "tests/cpp", "benchmarks")
    for kind in ("cpp", "h", "inc")
    for path in (ROOT / folder).rglob(f"*.{kind}")
    if path.name != "unicode_tables.inc"  # generated
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(module: str) -> str | None:
    """The room of a module such as `bertnli.text.batch`; None for the package itself and its extensions."""
    parts = module.split(".")
    return parts[1] if parts[0] == "bertnli" and len(parts) > 1 and parts[1] in ROOMS else None


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of each import of a room, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} has a relative import"
            modules = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for room in {found for module in modules if (found := room_of(module)) is not None}:
            yield node.lineno, room


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_rooms_import_from_rooms_above(path: Path) -> None:
    own = path.relative_to(ROOT / "bertnli").parts[0].removesuffix(".py")
    below = [f"line {line}: {room}" for line, room in imported_rooms(path) if ROOMS.index(room) > ROOMS.index(own)]
    assert not below, f"{name(path)} imports from rooms below {own}: {', '.join(below)}"


def test_architecture_names_every_room() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert all(f"`bertnli/{room}" in page for room in ROOMS)


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_python_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450, "split the file by what its parts are for"
    strict = re.match(r"bertnli/(training|inference)/", name(path))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= (60 if strict else 80), f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", CPP, ids=name)
def test_cpp_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, "split the file by what its parts are for"


def test_tests_do_not_import_tests() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (\w+\.)*test_\w+", path.read_text(encoding="utf-8"), re.MULTILINE), (
            path
        )


def test_the_extra_all_is_every_extra_for_users() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", table, re.MULTILINE)) - {"all", "bench", "docs", "test"}
    found = re.search(r'^all = \["bertnli\[(.*?)\]"\]', table, re.MULTILINE)
    assert found is not None
    assert set(found[1].split(",")) == extras
