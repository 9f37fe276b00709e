"""`CrossEncoder`'s backend "openvino" in float32, bfloat16, and int8 calibrated on texts."""

from __future__ import annotations

from functools import partial
from typing import Any

from problem import Problem

NAME = "CrossEncoder, openvino"
PRECISIONS = ("fp32", "bf16", "int8")
REQUIRES = ("sentence-transformers", "optimum-intel", "openvino", "nncf", "datasets")
# Versions that fit each other.
ENVIRONMENT = ("sentence-transformers==5.2.*", "transformers==4.57.*", "datasets==4.*", "optimum-intel==1.27.*")
BUILT_FOR = {"bf16": ("avx512_bf16",)}


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    from sentence_transformers import CrossEncoder

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def load(**more: Any) -> Any:
        kwargs = {"ov_config": settings, **more}
        return CrossEncoder(str(problem.folder), device="cpu", backend="openvino", model_kwargs=kwargs)

    if precision != "int8":
        model = load(export=True)
    else:
        if not (problem.folder / "int8" / "openvino" / "openvino_model.xml").exists():
            _quantize(load(export=True), problem)
        model = load(file_name="int8/openvino/openvino_model.xml")
    return partial(model.predict, show_progress_bar=False)


def _quantize(model: Any, problem: Problem) -> None:
    """As the library's `export_static_quantized_openvino_model`, which takes its texts from the Hugging Face hub."""
    from datasets import Dataset
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer

    columns = [list(side) for side in zip(*problem.pairs(300).texts, strict=True)]
    encoded = dict(model.tokenizer(*columns, padding="max_length", max_length=64, truncation=True))
    config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(columns[0])))
    quantizer = OVQuantizer.from_pretrained(model.model)
    quantizer.quantize(Dataset.from_dict(encoded), save_directory=problem.folder / "int8", ov_config=config)
