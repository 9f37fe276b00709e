"""The Triton kernels of attention against float64 PyTorch and the CPU operators: on a GPU, or interpreted.

Without a GPU conftest.py sets TRITON_INTERPRET before Triton is imported, and the launchers are called directly, since
CPU tensors dispatch to C++. The tests are the same on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.dropout import attention_mask
from helpers.operators import (
    attention_by_loop,
    attention_by_sdpa,
    cumulative,
    random,
    with_gradients,
)
from helpers.triton_kernels import DEVICE, FLOOR, HALF
from torch import Tensor

pytest.importorskip("triton")

from bertnli.kernels import attention


def run_attention(
    q: Tensor, k: Tensor, v: Tensor, q_lens: list[int], lens: list[int], dout: Tensor, dsum: Tensor | None = None,
    p: float = 0.0, seed: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """out, weight_sum, dq, dk, dv of the launchers, on the CPU."""
    on = [
        None if x is None else x.to(DEVICE) for x in (q, k, v, cumulative(q_lens), cumulative(lens), seed, dout, dsum)
    ]
    *tensors, seed, dout, dsum = on  # type: ignore[assignment]
    arguments = (*tensors[3:], max(q_lens, default=0), max(lens, default=0), p, q.size(2) ** -0.5, seed)
    results = attention.forward(*tensors[:3], *arguments)  # type: ignore[arg-type]
    gradients = attention.backward(dout, dsum, *tensors[:3], *results, *arguments)  # type: ignore[arg-type]
    return [x.cpu() for x in (*results[:2], *gradients)]


# heads, kv_heads, d, d_v, lengths, one query a sequence?
SHAPES = [
    pytest.param(2, 2, 32, 32, [27, 8, 60, 1, 0, 33, 16, 17], False, id="snli"),
    pytest.param(1, 1, 64, 64, [63, 64, 65, 1], False, id="tile-borders"),
    pytest.param(1, 1, 128, 128, [15, 31, 32], False, id="width-128"),
    pytest.param(4, 1, 256, 256, [27, 8, 1, 3, 33], True, id="one-query-shared-keys"),
    pytest.param(12, 1, 384, 384, [27, 5], True, id="chunks"),
    pytest.param(6, 2, 13, 7, [5, 1, 30, 9], False, id="odd-widths-grouped"),
    pytest.param(1, 1, 32, 32, [129, 257], False, id="loops"),
    pytest.param(3, 1, 320, 272, [140, 5], True, id="loops-of-chunks"),
]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "d", "d_v", "lens", "one_query"), SHAPES)
def test_attention_error_is_at_most_twice_that_of_pytorch(
    heads: int, kv_heads: int, d: int, d_v: int, lens: list[int], one_query: bool, dtype: torch.dtype
) -> None:
    q_lens = [1] * len(lens) if one_query else lens
    shapes = [(sum(q_lens), heads, d), (sum(lens), kv_heads, d), (sum(lens), kv_heads, d_v), (sum(q_lens), heads, d_v)]
    q, k, v, dout = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    out, _, *gradients = run_attention(q, k, v, q_lens, lens, dout)
    exact = with_gradients(
        lambda q, k, v: attention_by_loop(q, k, v, q_lens, lens)[0], [x.double() for x in (q, k, v)], dout.double()
    )
    theirs = with_gradients(
        lambda q, k, v: attention_by_sdpa(q, k, v, q_lens, lens).to(dtype),
        [x.to(DEVICE) for x in (q, k, v)],
        dout.to(DEVICE),
    )
    for name, a, b, reference in zip(["out", "dq", "dk", "dv"], [out, *gradients], theirs, exact, strict=True):
        assert a.shape == reference.shape
        assert a.dtype == dtype
        floor = FLOOR[dtype] * torch.finfo(dtype).eps * float(reference.abs().max())
        error, their_error = (float((x.cpu().double() - reference).abs().max()) for x in (a, b))
        assert error <= 2 * their_error + floor, f"{name}: {error} against {their_error} of PyTorch"


@pytest.mark.parametrize(("heads", "kv_heads", "d", "d_v", "lens", "one_query"), SHAPES)
def test_attention_dropout_and_weight_sum_equal_the_definition(
    heads: int, kv_heads: int, d: int, d_v: int, lens: list[int], one_query: bool
) -> None:
    p, seed = 0.3, torch.tensor([2**40 + 5, -3])
    q_lens = [1] * len(lens) if one_query else lens
    shapes = [(sum(q_lens), heads, d), (sum(lens), kv_heads, d), (sum(lens), kv_heads, d_v), (sum(q_lens), heads, d_v)]
    q, k, v, dout = (random(*shape, seed=i) for i, shape in enumerate(shapes))
    dsum = dout.sum(-1)
    masks = [attention_mask(b, heads, n, m, p, seed) for b, (n, m) in enumerate(zip(q_lens, lens, strict=True))]
    out, weight_sum, *gradients = run_attention(q, k, v, q_lens, lens, dout, dsum, p, seed)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, weight_sum = attention_by_loop(q, k, v, q_lens, lens, masks=masks)
        return torch.cat([out, weight_sum[..., None]], -1)

    expected = with_gradients(
        reference, [x.double() for x in (q, k, v)], torch.cat([dout, dsum[..., None]], -1).double()
    )
    actual = [torch.cat([out, weight_sum[..., None]], -1), *gradients]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=5e-6 * max(1, float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_mask_is_that_of_the_cpu_bit_for_bit(dtype: torch.dtype) -> None:
    """With v the identity, the output is the weights themselves, and its zeros are the mask."""
    lens, heads, p = [5, 0, 90, 33], 2, 0.25
    seed = torch.tensor([123456789, 987654321])
    q = torch.zeros(sum(lens), heads, 4, dtype=dtype)
    v = torch.cat([torch.eye(n, max(lens)) for n in lens])[:, None].expand(-1, heads, -1).to(dtype)
    cu, longest = cumulative(lens), max(lens)
    expected = torch.ops.bertnli.varlen_attention(q, q, v, cu, cu, longest, longest, p, 0.5, seed)[0]
    out = run_attention(q, q, v, lens, lens, torch.zeros_like(expected), None, p, seed)[0]
    assert torch.equal(out != 0, expected != 0)
    assert 0.7 < float((out[5:95, :, :90] != 0).double().mean()) < 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_of_a_large_batch_has_tiles_of_several_sizes(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 300 sequences, more than are looked at together, some of each size."""
    generator = torch.Generator().manual_seed(0)
    lens = torch.randint(0, 34, (300,), generator=generator) * (torch.arange(300) % 10 == 0)
    lens[[3, 150, 151, 298]] = 60
    lens[[255, 256]] = torch.tensor([32, 33])
    longest = [64, 33, 40] if dtype == torch.float32 else [64, 65, 100, 128, 90, 70]
    lens[torch.tensor([0, 7, 200, 254, 257, 299])[: len(longest)]] = torch.tensor(longest)
    lengths, p, seed = lens.tolist(), 0.2, torch.tensor([7, 8])
    q, k, v, dout = (random(int(lens.sum()), 2, 16, dtype=dtype, seed=i) for i in range(4))
    masks = [attention_mask(b, 2, n, n, p, seed) for b, n in enumerate(lengths)]
    expected = with_gradients(
        lambda q, k, v: attention_by_loop(q, k, v, lengths, lengths, masks=masks)[0],
        [x.double() for x in (q, k, v)],
        dout.double(),
    )
    monkeypatch.setattr(attention, "_CROWD", 0)
    monkeypatch.setattr(attention, "_SEEKERS", 1)  # on a GPU too a program has several of the longest
    out, _, *gradients = run_attention(q, k, v, lengths, lengths, dout, None, p, seed)
    for a, b in zip([out, *gradients], expected, strict=True):
        tolerance = 5e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * max(1, float(b.abs().max())))


def test_attention_of_4096_tokens() -> None:
    tokens = 4096 if DEVICE.type == "cuda" else 700  # the interpreter takes a second for every 4 million scores
    q, k, v, dout = (random(tokens, 1, 32, seed=i) for i in range(4))
    out, weight_sum, *gradients = run_attention(q, k, v, [tokens], [tokens], dout)
    expected = with_gradients(
        lambda q, k, v: attention_by_loop(q, k, v, [tokens], [tokens])[0],
        [x.double() for x in (q, k, v)],
        dout.double(),
    )
    for a, b in zip([out, *gradients], expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=3e-6 * max(1, float(b.abs().max())), rtol=0)
    torch.testing.assert_close(weight_sum, torch.ones(tokens, 1), atol=1e-5, rtol=0)


def test_attention_scores_far_apart() -> None:
    """Weights that underflow, and a maximum that grows from block to block."""
    lens = [300, 40]
    q, k, v, dout = (random(340, 1, 8, seed=i) for i in range(4))
    k = k * torch.linspace(1, 60, len(k))[:, None, None]
    expected = attention_by_loop(q.double(), k.double(), v.double(), lens, lens)[0]
    # scores reach several hundred, so a relative error of 1e-7 in them moves weights by 1e-5
    out = run_attention(q, k, v, lens, lens, dout)[0]
    torch.testing.assert_close(out.double(), expected, atol=1e-4 if DEVICE.type == "cpu" else 1e-3, rtol=0)


@pytest.mark.parametrize("lens", [[], [0], [0, 0, 3, 0]], ids=str)
def test_attention_of_empty_sequences(lens: list[int]) -> None:
    q = random(sum(lens), 2, 8)
    out, weight_sum, *gradients = run_attention(q, q, q, lens, lens, torch.ones_like(q))
    assert out.shape == (sum(lens), 2, 8)
    torch.testing.assert_close(weight_sum, torch.ones(sum(lens), 2))
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("longest", [2, 200])
def test_attention_of_queries_without_keys_and_keys_without_queries(longest: int) -> None:
    q, k, dout = random(3, 2, 8), random(longest + 1, 2, 8, seed=1), random(3, 2, 8, seed=2)
    out, weight_sum, dq, dk, dv = run_attention(q, k, k, [2, 0, 1], [0, longest, 1], dout, dout.sum(-1))
    for zero in (out[:2], weight_sum[:2], dq[:2], dk[:longest], dv[:longest]):
        assert torch.equal(zero, torch.zeros_like(zero))
    torch.testing.assert_close(out[2], k[longest])
    torch.testing.assert_close(dv[longest], dout[2])


def test_attention_reads_and_writes_the_packed_projection_in_place() -> None:
    lens, seed = [27, 0, 40, 5], torch.tensor([5, 6], device=DEVICE)
    qkv, cu = random(72, 3, 2, 24).to(DEVICE), cumulative(lens).to(DEVICE)
    dout = random(24, seed=3).to(DEVICE).expand(72, 2, 24)  # what .sum().backward() sends: strides of 0
    results = attention.packed_forward(qkv, cu, 40, 0.1, 0.2, seed)
    dqkv = attention.packed_backward(dout, qkv, *results, cu, 40, 0.1, 0.2, seed)
    q, k, v = (x.contiguous() for x in qkv.unbind(1))
    expected = attention.forward(q, k, v, cu, cu, 40, 40, 0.1, 0.2, seed)
    assert torch.equal(results[0], expected[0])
    gradients = attention.backward(dout, None, q, k, v, *expected, cu, cu, 40, 40, 0.1, 0.2, seed)
    assert torch.equal(dqkv, torch.stack(gradients, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": torch.zeros(7, 4, 8, dtype=torch.float64)},
            "q must be float32, bfloat16 or float16|k must have q's dtype",
        ),
        ({"k": torch.zeros(7, 4, 9)}, "k must have q's width 8; found 9"),
        ({"k": torch.zeros(7, 3, 8), "v": torch.zeros(7, 3, 8)}, "heads must divide q's, 4; found 3"),
        ({"v": torch.zeros(6, 4, 8)}, "v must have k's tokens and heads"),
        ({"cu_k": cumulative([3, 4]).long()}, "cu_seqlens must be int32"),
        ({"cu_q": cumulative([7])}, "cu_seqlens_q must have cu_seqlens's length 3"),
        ({"dropout_p": 1.0}, "dropout_p must be at least 0 and below 1; found 1"),
        ({"dropout_p": 0.1}, "seed must be given"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1.0, 2.0])}, "seed must be an int64 tensor"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_attention_bad_arguments(change: dict[str, Any], message: str) -> None:
    tensors = dict.fromkeys("qkv", torch.zeros(7, 4, 8)) | dict.fromkeys(("cu_q", "cu_k"), cumulative([3, 4]))
    numbers = dict(max_q=4, max_k=4, dropout_p=0.0, scale=1.0, seed=None)
    arguments: dict[str, Any] = {**tensors, **numbers, **change}
    on_device: dict[str, Any] = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        attention.forward(**on_device)
