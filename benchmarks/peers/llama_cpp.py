"""llama.cpp through llama-cpp-python: embeddings and ranks of a GGUF file."""

from __future__ import annotations

NAME = "llama.cpp"
PRECISIONS = ("fp32",)
REQUIRES = ("llama-cpp-python",)
CANNOT = "reads GGUF files only, and has no converter of a BERT cross encoder in its package"
