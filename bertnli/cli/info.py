"""`bertnli info`: versions, hardware, and what runs on it."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch

from bertnli import __version__, ops
from bertnli.bench.machine import cpu
from bertnli.cli.reports import print_json
from bertnli.data.download import cache_dir
from bertnli.ops.devices import HAS_TRITON
from bertnli.runtime.precision import uses_bf16

_EXTRAS = {  # of pyproject.toml, and a module of each
    "hub": "huggingface_hub",
    "data": "pyarrow",
    "plot": "matplotlib",
    "onnx": "onnxruntime",
    "sklearn": "sklearn",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def info(args: SimpleNamespace) -> None:
    facts = {
        "bertnli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": {name: value for name, value in cpu().items() if name != "family"},
        "kernels": _kernels(),
        "threads": _threads(),
        "gpus": _gpus(),
        "precisions": _precisions(),
        "extras": {name: find_spec(module) is not None for name, module in _EXTRAS.items()},
        "cache": str(cache_dir()),
    }
    if args.json:
        print_json(args, facts)
    else:
        _print(facts)


def _kernels() -> dict[str, str]:
    """Which kernels run on the CPU, and why."""
    asked = os.environ.get("BERTNLI_ISA")
    own = ops.own_products(torch.float32)
    return {
        "instruction_set": ops.cpu_isa(),
        "reason": f"BERTNLI_ISA={asked}" if asked else "the best that this CPU has",
        "training_products": "bertnli's: PyTorch's are slower here" if own else "PyTorch's",
        "gpu": "Triton" if HAS_TRITON else "none: this torch has no CUDA, or Triton is not installed",
    }


def _threads() -> dict[str, Any]:
    return {
        "operators": ops.cpu_threads(),
        "torch": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _gpus() -> list[dict[str, Any]]:
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1), "capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in found
    ]


def _precisions() -> dict[str, dict[str, Any]]:
    """Whether bf16 and int8 are faster than fp32 here, and why."""
    isa = ops.cpu_isa()
    if torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        bf16 = {"pays": has_bf16, "reason": f"the GPU has {'' if has_bf16 else 'no '}bfloat16 instructions"}
        return {"training_bf16": bf16, "inference_bf16": bf16, "inference_int8": {"pays": False, "reason": "CPU only"}}
    trains = uses_bf16(torch.device("cpu"), "bf16")
    how = "multiply bfloat16" if isa in ("avx512_bf16", "amx") else "multiply integers of 12 and 13 bits"
    return {
        "training_bf16": {
            "pays": trains,
            "reason": "products run in bfloat16" if trains else "this CPU multiplies bfloat16 slowly; it runs in fp32",
        },
        "inference_bf16": {
            "pays": isa != "plain",
            "reason": f"the {isa} kernels {'only round weights to bfloat16' if isa == 'plain' else how}",
        },
        "inference_int8": {
            "pays": isa != "plain",
            "reason": f"the {isa} kernels {'convert' if isa == 'plain' else 'multiply'} int8",
        },
    }


def _print(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key}: {_text(item)}")
        else:
            print(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    """A fact in words."""
    if isinstance(value, dict):
        if value.keys() == {"pays", "reason"}:
            return f"{'yes' if value['pays'] else 'no'}, {value['reason']}"
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None else str(value)
