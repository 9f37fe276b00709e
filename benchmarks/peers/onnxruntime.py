"""ONNX Runtime on the graph that its optimizer for BERT fuses; int8 by dynamic quantization."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from inference_problem import Padded, Peer, Problem

from peers.transformers import equal_model


def build(problem: Problem, precision: str, threads: int) -> Peer:
    path = _int8_file(problem) if precision == "int8" else _fused_file(problem)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Peer(Padded.named, lambda inputs: session.run(["logits"], inputs)[0])


def _fused_file(problem: Problem) -> Path:
    """The model in ONNX with attention, GELU and LayerNorm fused."""
    from onnxruntime.transformers import optimizer

    path, plain = problem.folder / "fused.onnx", problem.folder / "plain.onnx"
    if path.exists():
        return path
    inputs = problem.calibration()[0].tensors()
    torch.onnx.export(
        equal_model(problem.model, "eager").eval(), tuple(inputs.values()), plain, opset_version=17,
        dynamo=False,  # ONNX Runtime's optimizer finds the attention in the older exporter's graph only
        input_names=list(inputs), output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in inputs},
    )  # fmt: skip
    heads, hidden = problem.config.num_heads, problem.config.num_hiddens
    fused = optimizer.optimize_model(str(plain), "bert", num_heads=heads, hidden_size=hidden, opt_level=0)
    fused.save_model_to_file(str(path))
    plain.unlink()
    return path


def _int8_file(problem: Problem) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = problem.folder / "int8.onnx"
    if not path.exists():
        quantize_dynamic(
            _fused_file(problem), path, per_channel=True, weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # types of fused nodes are not inferred
        )  # fmt: skip
    return path
