"""Compile the two extensions: `_text` (bytes to ragged ids, free of torch) and `_ops` (operators on packed tensors)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

TORCH_VERSION = torch.__version__.split("+")[0]  # 2.13.0+cpu and 2.13.0+cu130 share one C++ ABI
OPTIMIZATION = os.environ.get("BERTNLI_OPTIMIZATION", "-O3")  # less for builds that are slow to compile
FLAGS = [OPTIMIZATION, "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
if os.environ.get("BERTNLI_WERROR"):  # a warning is an error
    FLAGS.append("-Werror")


def openmp() -> list[str]:
    """What makes ATen's parallel_for, in its headers, run on several threads; without it all work stays on one.

    Only compiled, not linked: the symbols are those of the libgomp that torch brings, whatever its name; a process must
    not have two.
    """
    if not sys.platform.startswith("linux"):
        return []
    version = subprocess.run([get_cxx_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    return [] if "clang" in version else ["-fopenmp"]


def sources(room: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", room).rglob("*.cpp"))


def headers(room: str) -> list[str]:
    found = (path for pattern in ("*.h", "*.inc") for path in Path("csrc", room).rglob(pattern))
    return sorted(map(str, [*found, Path("csrc/system.h")]))


def version() -> str:
    """`__version__`; with BERTNLI_TAG_TORCH set, wheels for different torch versions have versions of their own."""
    line = re.search(r'^__version__ = "(.+)"$', Path("bertnli/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None
    return line[1] + (f"+torch{TORCH_VERSION}" if os.environ.get("BERTNLI_TAG_TORCH") else "")


setup(
    version=version(),
    # The wheel works with the torch it was compiled for and no other, so it says so.
    install_requires=[
        f"torch=={TORCH_VERSION}",
        "numpy",
        "safetensors>=0.4",
        "tqdm",
        "click>=8.4",
        "rich-click>=1.9",
        "tomli; python_version < '3.11'",
    ],
    ext_modules=[
        Pybind11Extension(
            "bertnli._text",
            sources("text"),
            depends=headers("text"),
            define_macros=[("BERTNLI_TORCH_VERSION", f'"{TORCH_VERSION}"')],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        ),
        CppExtension(
            "bertnli._ops",
            sources("ops"),
            depends=headers("ops"),
            extra_compile_args=[*FLAGS, *openmp()],
        ),
    ],
    cmdclass={"build_ext": BuildExtension},
)
