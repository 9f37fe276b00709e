"""candle through embed-anything's Reranker, which reads an ONNX or safetensors model of the hub's cache only."""

from __future__ import annotations

NAME = "embed-anything"
PRECISIONS = ("fp32",)
REQUIRES = ("embed-anything",)
CANNOT = "its reranker reads models of the Hugging Face hub only, no folder"
