"""ONNX Runtime on the graph that its optimizer for BERT fuses; int8 by dynamic quantization."""

from __future__ import annotations

from pathlib import Path

from problem import Padded, Peer, Problem

NAME = "onnxruntime"
PRECISIONS = ("fp32", "int8")
REQUIRES = ("onnxruntime", "onnx", "transformers", "torch")


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import onnxruntime

    path = _int8_file(problem) if precision == "int8" else _fused_file(problem)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Peer(Padded.named, lambda inputs: session.run(["logits"], inputs)[0])


def _fused_file(problem: Problem) -> Path:
    """The model in ONNX with attention, GELU and LayerNorm fused."""
    import torch
    from onnxruntime.transformers import optimizer

    path, plain = problem.folder / "fused.onnx", problem.folder / "plain.onnx"
    if path.exists():
        return path
    inputs = problem.calibration()[0].tensors()
    torch.onnx.export(
        problem.torch_model("eager"), tuple(inputs.values()), plain, opset_version=17,
        dynamo=False,  # ONNX Runtime's optimizer finds the attention in the older exporter's graph only
        input_names=list(inputs), output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in inputs},
    )  # fmt: skip
    sizes = {"num_heads": problem.config["num_attention_heads"], "hidden_size": problem.config["hidden_size"]}
    fused = optimizer.optimize_model(str(plain), "bert", opt_level=0, **sizes)
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
