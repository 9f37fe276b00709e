"""OpenVINO in float32, bfloat16, and int8 calibrated by NNCF."""

from __future__ import annotations

from pathlib import Path

from problem import Padded, Peer, Problem

NAME = "openvino"
PRECISIONS = ("fp32", "bf16", "int8")
REQUIRES = ("openvino", "nncf", "transformers", "torch")
BUILT_FOR = {"bf16": ("avx512_bf16",)}


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(_exported(problem, precision == "int8"), "CPU", settings)
    request = compiled.create_infer_request()
    return Peer(Padded.named, lambda inputs: next(iter(request.infer(inputs, share_inputs=True).values())))


def _exported(problem: Problem, int8: bool) -> Path:
    import openvino

    path = problem.folder / ("openvino_int8.xml" if int8 else "openvino.xml")
    if not path.exists():
        buckets = problem.calibration()
        model = openvino.convert_model(problem.torch_model(), example_input=buckets[0].tensors())
        if int8:
            import nncf

            data = nncf.Dataset([bucket.named() for bucket in buckets])
            kind = nncf.ModelType.TRANSFORMER
            model = nncf.quantize(model, data, model_type=kind, subset_size=len(buckets))
        openvino.save_model(model, path, compress_to_fp16=False)
    return path
