"""The operators in Triton, registered for CUDA: a file each, as in bertnli/ops. Importing this needs Triton."""

from __future__ import annotations

import torch

from bertnli.kernels import activation, attention, embedding, norm

_library = torch.library.Library("bertnli", "IMPL", "CUDA")
for _name, _function in {
    "varlen_attention": attention.forward,
    "varlen_attention_backward": attention.backward,
    "varlen_attention_packed": attention.packed_forward,
    "varlen_attention_packed_backward": attention.packed_backward,
    "add_norm": norm.add_norm,
    "add_norm_backward": norm.add_norm_backward,
    "bias_act": activation.bias_act,
    "bias_act_backward": activation.bias_act_backward,
    "embed": embedding.embed,
    "embed_backward": embedding.embed_backward,
    "embed_norm": embedding.embed_norm,
    "embed_norm_backward": embedding.embed_norm_backward,
}.items():
    _library.impl(_name, _function)
