"""kjarni's Reranker, in Rust."""

from __future__ import annotations

NAME = "kjarni"
PRECISIONS = ("fp32",)
REQUIRES = ("kjarni",)
CANNOT = "its Reranker loads models of its own list by name, no folder"
