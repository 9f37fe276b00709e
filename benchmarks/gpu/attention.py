"""Varlen attention beside PyTorch's: SDPA padded and nested, torch.nn.attention.varlen, FlexAttention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpu.bench import Bench, Contestants

Attention = Callable[[Tensor], Tensor]


class Problem:
    """Queries, keys and values of one batch: bfloat16 [T, 3, heads, width], and padded [B, L, 3, heads, width]."""

    def __init__(self, device: torch.device, lens: list[int], heads: int, width: int, dropout: float) -> None:
        self.lens, self.total, self.longest = lens, sum(lens), max(lens)
        self.scale, self.dropout = width**-0.5, dropout
        self.cu_seqlens = torch.tensor([0, *lens]).cumsum(0).to(torch.int32).to(device)  # [B + 1]
        self.packed = torch.randn(self.total, 3, heads, width, device=device, dtype=torch.bfloat16)
        self.dout = torch.randn(self.total, heads, width, device=device, dtype=torch.bfloat16)
        self.valid = (torch.arange(self.longest) < torch.tensor(lens)[:, None]).to(device)  # [B, L]
        self.padded, self.padded_dout = self.pad(self.packed), self.pad(self.dout)

    def pad(self, packed: Tensor) -> Tensor:
        padded = packed.new_zeros(len(self.lens), self.longest, *packed.shape[1:])
        padded[self.valid] = packed
        return padded

    def bertnli(self, qkv: Tensor) -> Tensor:
        # The operator itself: `ops.varlen_attention` prefers torch.nn.attention.varlen for long sequences.
        seed = torch.randint(0, 2**32, (2,), device=qkv.device) if self.dropout else None
        attend = torch.ops.bertnli.varlen_attention_packed
        out: Tensor = attend(qkv, self.cu_seqlens, self.longest, self.dropout, self.scale, seed)[0]
        return out

    def sdpa_padded(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v, self.valid[:, None, None, :], self.dropout).transpose(1, 2)

    def sdpa_nested(self, qkv: Tensor) -> Tensor:
        offsets, shortest = self.cu_seqlens.long(), min(self.lens)
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                x.contiguous(), offsets, min_seqlen=shortest, max_seqlen=self.longest
            ).transpose(1, 2)
            for x in qkv.unbind(1)
        )
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).values()

    def torch_varlen(self, qkv: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # absent from older versions of PyTorch

        return varlen_attn(*qkv.unbind(1), self.cu_seqlens, self.cu_seqlens, self.longest, self.longest)

    def flex(self, compiler: str) -> Attention:
        """FlexAttention over the packed tokens, each sequence a document."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        device = self.cu_seqlens.device
        document = torch.repeat_interleave(torch.arange(len(self.lens), device=device), self.cu_seqlens.diff().long())
        compiled = torch.compile(flex_attention, backend=compiler)
        block_mask = create_block_mask(
            lambda b, h, i, j: document[i] == document[j], None, None, self.total, self.total, device=str(device)
        )

        def attend(qkv: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in qkv.unbind(1))
            return compiled(q, k, v, block_mask=block_mask)[0].transpose(0, 1)

        return attend

    def work(self, attend: Attention, train: bool, padded: bool = False) -> Callable[[], Tensor]:
        """What is timed: forward, or with `train` forward and backward. Gives the output."""
        qkv, dout = (self.padded, self.padded_dout) if padded else (self.packed, self.dout)
        if not train:
            return torch.no_grad()(lambda: attend(qkv))
        leaf = qkv.detach().requires_grad_()

        def run() -> Tensor:
            out = attend(leaf)
            torch.autograd.grad(out, leaf, dout)
            return out.detach()

        return run


def attention(
    bench: Bench, shape: str, lens: list[int], heads: int, width: int, train: bool, dropout: float, flex: bool = False
) -> None:
    """Add a row for sequences of the given lengths. Without dropout, outputs are compared first."""
    problem = Problem(bench.device, lens, heads, width, dropout)
    contestants: Contestants = {
        "bertnli": problem.work(problem.bertnli, train),
        "sdpa padded": problem.work(problem.sdpa_padded, train, padded=True),
    }
    about = dict(shape=shape, batch=len(lens))
    if dropout == 0:
        contestants["sdpa nested"] = problem.work(problem.sdpa_nested, train)
        contestants["torch varlen"] = problem.work(problem.torch_varlen, train)
        if flex:
            contestants["flex"] = problem.work(problem.flex(bench.compiler), train)
        expected = contestants["bertnli"]()
        for name, run in list(contestants.items())[1:]:
            with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):  # `compare` names what fails
                out = run()
                out = out[problem.valid] if name == "sdpa padded" else out
                bench.check_close(out, expected, 3e-2, work="attention", contestant=name, **about)
    pass_ = "both" if train else "forward"
    bench.compare("attention", contestants, kernels=True, **about, tokens=problem.total, pass_=pass_, dropout=dropout)
