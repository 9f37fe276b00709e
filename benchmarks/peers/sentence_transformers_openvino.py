"""sentence-transformers' backend "openvino" in float32, bfloat16, and int8 calibrated on texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

PRECISIONS = ("fp32", "bf16", "int8")


def build(kind: Any, folder: Path, precision: str, texts: list[Any]) -> Any:
    """The model of the folder; `kind` is CrossEncoder or SentenceTransformer."""
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }

    def load(**more: Any) -> Any:
        return kind(str(folder), device="cpu", backend="openvino", model_kwargs={"ov_config": settings, **more})

    if precision != "int8":
        return load(export=True)
    if not (folder / "int8" / "openvino" / "openvino_model.xml").exists():
        _quantize(load(export=True), folder / "int8", texts)
    return load(file_name="int8/openvino/openvino_model.xml")


def _quantize(model: Any, folder: Path, texts: list[Any]) -> None:
    """As the library's `export_static_quantized_openvino_model`, which takes its texts from the Hugging Face hub."""
    from datasets import Dataset
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer

    columns = [texts] if isinstance(texts[0], str) else [list(side) for side in zip(*texts, strict=True)]
    encoded = dict(model.tokenizer(*columns, padding="max_length", max_length=64, truncation=True))
    quantizer = OVQuantizer.from_pretrained(model[0].auto_model if hasattr(model, "encode") else model.model)
    config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(texts)))
    quantizer.quantize(Dataset.from_dict(encoded), save_directory=folder, ov_config=config)
