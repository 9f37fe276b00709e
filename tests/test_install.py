"""The package as it is built and installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import ROOT

import bertnli
from bertnli import _text


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_another_torch_is_a_clear_message(tmp_path: Path) -> None:
    code = "import torch; torch.__version__ = '9.9.9+cpu'\nimport bertnli"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: bertnli was built for torch ")
    assert "but torch 9.9.9 is installed" in last
    assert "pip install --no-build-isolation" in last
    assert torch.__version__.split("+")[0] == _text.torch_version


def test_every_public_name_is_there_and_documented() -> None:
    for name in bertnli.__all__:
        assert getattr(bertnli, name).__doc__, name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel that the documented build makes, outside the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    source = folder / "source"  # a copy, so that the checkout's own build stays as it is
    skipped = shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "__pycache__", "runs")
    shutil.copytree(ROOT, source, ignore=skipped)
    result = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_works_outside_the_checkout(site: Path) -> None:
    code = (
        "import bertnli, torch\n"
        "t = bertnli.WordPieceTokenizer(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', '##b'])\n"
        "net = bertnli.BERTClassifier(bertnli.BERTModel(bertnli.BERTConfig(7))).eval()\n"
        "print(bertnli.__file__, list(net(t.encode_pairs(['ab'], ['a c']).batch([0])).shape))"
    )
    result = python(code, site)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split(" ", 1) == [str(site / "bertnli" / "__init__.py"), "[1, 3]\n"]


@pytest.mark.skipif(torch.version.cuda is not None, reason="Triton may bring what it likes")
def test_an_import_brings_little_beside_torch(site: Path) -> None:
    """What takes seconds to import waits until it is used."""
    result = python("import bertnli.cli, sys; print(*sys.modules)", site)
    assert result.returncode == 0, result.stderr
    assert not {"torch._dynamo", "sklearn", "scipy", "matplotlib", "pyarrow"} & set(result.stdout.split())


def test_a_wheel_carries_types_licence_and_its_torch(site: Path) -> None:
    names = {p.name for p in (site / "bertnli").iterdir()}
    assert {"py.typed", "_text.pyi", "_ops.pyi"} <= names
    (info,) = site.glob("bertnli-*.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert f"Requires-Dist: torch=={_text.torch_version}" in metadata
    assert "License-Expression: MIT" in metadata
    assert (info / "licenses" / "LICENSE").exists()
    assert "bertnli = bertnli.cli:main" in (info / "entry_points.txt").read_text()
