"""`CrossEncoder`'s backend "onnx": fused by its optimization O2 (O3 approximates GELU), or in dynamic int8."""

from __future__ import annotations

from functools import partial
from typing import Any

from problem import Problem

from peers import cpu_flags

NAME = "CrossEncoder, onnx"
PRECISIONS = ("fp32", "int8")
REQUIRES = ("sentence-transformers", "optimum-onnx", "onnxruntime")
# Versions that fit each other.
ENVIRONMENT = ("sentence-transformers==5.2.*", "transformers==4.57.*", "datasets==4.*", "optimum-onnx==0.1.*")


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    import onnxruntime
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model, export_optimized_onnx_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    settings = {"provider": "CPUExecutionProvider", "session_options": options}
    folder = str(problem.folder)

    def load(**more: Any) -> Any:
        return CrossEncoder(folder, device="cpu", backend="onnx", model_kwargs=settings | more)

    isa = "avx512_vnni" if "avx512_vnni" in cpu_flags() else "avx2"
    signed = "u" if isa == "avx2" else ""  # of the weights, as the library chooses it
    name = f"model_q{signed}int8_{isa}.onnx" if precision == "int8" else "model_O2.onnx"
    if not (problem.folder / "onnx" / name).exists():
        plain = load(export=True)
        if precision == "int8":
            export_dynamic_quantized_onnx_model(plain, isa, folder)
        else:
            export_optimized_onnx_model(plain, "O2", folder)
    return partial(load(file_name=f"onnx/{name}").predict, show_progress_bar=False)
