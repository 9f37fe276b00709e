"""The operators in Triton, registered for CUDA. Importing this needs the package `triton`; bertnli/ops.py does so only
where PyTorch is built for CUDA."""

from __future__ import annotations

import torch

from bertnli.kernels import attention, rows

_library = torch.library.Library("bertnli", "IMPL", "CUDA")
for _name, _function in {
    "varlen_attention": attention.forward,
    "varlen_attention_backward": attention.backward,
    "varlen_attention_packed": attention.packed_forward,
    "varlen_attention_packed_backward": attention.packed_backward,
    "add_norm": rows.add_norm,
    "add_norm_backward": rows.add_norm_backward,
    "bias_act": rows.bias_act,
    "bias_act_backward": rows.bias_act_backward,
    "embed": rows.embed,
    "embed_backward": rows.embed_backward,
    "embed_norm": rows.embed_norm,
    "embed_norm_backward": rows.embed_norm_backward,
}.items():
    _library.impl(_name, _function)
