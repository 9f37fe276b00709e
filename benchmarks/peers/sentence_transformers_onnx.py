"""sentence-transformers' backend "onnx": fused by its optimization O2 (O3 approximates GELU), or in dynamic int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from sentence_transformers.backend import export_dynamic_quantized_onnx_model, export_optimized_onnx_model

from bertnli import ops

PRECISIONS = ("fp32", "int8")


def build(kind: Any, folder: Path, precision: str, texts: list[Any]) -> Any:
    """The model of the folder; `kind` is CrossEncoder or SentenceTransformer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    settings = {"provider": "CPUExecutionProvider", "session_options": options}

    def load(**more: Any) -> Any:
        return kind(str(folder), device="cpu", backend="onnx", model_kwargs=settings | more)

    isa = "avx512_vnni" if ops.cpu_isa().startswith(("avx512", "amx")) else "avx2"
    signed = "u" if isa == "avx2" else ""  # of the weights, as the library chooses it
    name = f"model_q{signed}int8_{isa}.onnx" if precision == "int8" else "model_O2.onnx"
    if not (folder / "onnx" / name).exists():
        plain = load(export=True)
        if precision == "int8":
            export_dynamic_quantized_onnx_model(plain, isa, str(folder))
        else:
            export_optimized_onnx_model(plain, "O2", str(folder))
    return load(file_name=f"onnx/{name}")
