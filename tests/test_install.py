"""The package as it is built and installed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
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
    """Whatever is used first: a public name, or the extension itself. On the command line it is one line."""
    for use in ("bertnli.InferenceSession", "from bertnli.ops.linear import linear", "from bertnli import _ops"):
        result = python(f"import torch; torch.__version__ = '9.9.9+cpu'\nimport bertnli\n{use}", ROOT)
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: bertnli was built for torch ")
        assert "but torch 9.9.9 is installed" in last
        assert "pip install --no-build-isolation" in last
    result = python("import torch; torch.__version__ = '9.9.9+cpu'\nimport bertnli.cli as c; c.main(['info'])", ROOT)
    assert result.stderr.startswith("bertnli: error: bertnli was built for torch ")
    assert result.stderr.count("\n") == 1
    assert torch.__version__.split("+")[0] == _text.torch_version


def test_every_public_name_is_there_and_documented() -> None:
    names = ["d2l", *bertnli._MODULES]
    for name in names:
        assert getattr(bertnli, name).__doc__, name
    assert set(names) <= set(dir(bertnli))
    with pytest.raises(AttributeError, match="'bertnli' has no attribute 'Modle'"):
        _ = bertnli.Modle  # type: ignore[attr-defined]


def test_type_checkers_see_the_public_names() -> None:
    """The imports for type checkers are those that happen at run time, name by name."""
    tree = ast.parse(Path(str(bertnli.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name: module for name, module in seen.items() if name != "d2l"} == bertnli._MODULES
    assert seen["d2l"] == "bertnli"


def test_importing_takes_no_time() -> None:
    """The package imports neither torch nor numpy. Once a name is used, it can be pickled, and operators exist."""
    code = (
        "import sys, bertnli, pickle\n"
        "from bertnli import TrainingOptions\n"
        "print({'torch', 'numpy'} & set(sys.modules))\n"
        "print(pickle.loads(pickle.dumps(bertnli.Vocab)) is bertnli.Vocab)\n"
        "from bertnli import *\n"
        "import torch\n"
        "print(hasattr(torch.ops.bertnli, 'add_norm'), EncodedPairs is EncodedTexts, bertnli.ops.cpu_isa() > '')"
    )
    result = python(code, ROOT)
    assert result.stdout.splitlines() == ["set()", "True", "True True True"], result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what makes packages, so that the checkout's own build stays as it is."""
    skipped = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__", "runs", "demo.log")
    folder = tmp_path_factory.mktemp("packages") / "source"
    return Path(shutil.copytree(ROOT, folder, ignore=skipped))


def setup(source: Path, *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "setup.py", "--quiet", *arguments]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, outside the checkout. Its extensions are those that the installation for the tests compiled
    from the same sources."""
    setup(source, "build_py")
    (library,) = source.glob("build/lib*")
    for extension in Path(bertnli.__file__).parent.glob("*.so"):
        shutil.copy2(extension, library / "bertnli")
    setup(source, "bdist_wheel", "--skip-build")
    (wheel,) = source.glob("dist/*.whl")
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_source_distribution_has_every_file(source: Path) -> None:
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    setup(source, "sdist", "--dist-dir", "sdist")
    (archive,) = source.glob("sdist/*.tar.gz")
    with tarfile.open(archive) as content:
        packed = {name.split("/", 1)[1] for name in content.getnames() if "/" in name}
    rooms = ("bertnli/", "csrc/", "tests/", "benchmarks/", "docs/")
    assert {name for name in files if name.startswith(rooms) or "/" not in name} <= packed


def test_a_wheel_works_outside_the_checkout(site: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "tools" / "wheels.py"), "check"]
    result = subprocess.run(
        command, cwd=site, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(site / "bertnli" / "__init__.py"))
    assert f"bertnli {bertnli.__version__} works with torch {torch.__version__}" in result.stdout


@pytest.mark.skipif(torch.version.cuda is not None, reason="Triton may bring what it likes")
def test_a_prediction_brings_little_beside_torch(site: Path, tmp_path: Path) -> None:
    """What takes seconds to import waits until it is used. (To load a checkpoint brought torch._dynamo once.)"""
    code = (
        "import sys\n"
        "from bertnli import *\n"
        "import bertnli.cli.train\n"
        "head = BERTClassifier(BERTModel(BERTConfig(6, num_hiddens=8, num_heads=2)))\n"
        "save_pretrained(head, sys.argv[1], WordPieceTokenizer(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a']))\n"
        "assert bertnli.cli.main(['predict', '--model', sys.argv[1]]) == 0\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    result = subprocess.run(command, cwd=site, input="a\ta\n", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert '"probabilities"' in result.stdout
    slow = {"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy"}
    assert not (slow | {"sklearn", "scipy", "matplotlib", "pyarrow", "transformers"}) & set(result.stdout.split())


def test_a_wheel_carries_types_licence_and_its_torch(site: Path) -> None:
    names = {p.name for p in (site / "bertnli").iterdir()}
    assert {"py.typed", "_text.pyi", "_ops.pyi"} <= names
    (info,) = site.glob("bertnli-*.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert f"\nVersion: {bertnli.__version__}\n" in metadata
    assert f"Requires-Dist: torch=={_text.torch_version}" in metadata
    assert "License-Expression: MIT" in metadata
    assert (info / "licenses" / "LICENSE").exists()
    assert "bertnli = bertnli.cli:main" in (info / "entry_points.txt").read_text()
