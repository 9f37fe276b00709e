"""The operators in Triton, registered for CUDA. Importing this needs the package `triton`; bertnli/ops.py does so only
where PyTorch is built for CUDA."""

from __future__ import annotations

import torch

from bertnli.kernels import attention

_library = torch.library.Library("bertnli", "IMPL", "CUDA")
for _name, _function in {
    "varlen_attention": attention.forward,
    "varlen_attention_backward": attention.backward,
    "varlen_attention_packed": attention.packed_forward,
    "varlen_attention_packed_backward": attention.packed_backward,
}.items():
    _library.impl(_name, _function)
