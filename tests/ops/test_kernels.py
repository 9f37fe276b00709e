"""The Triton kernels against float64 PyTorch and the CPU operators: on a GPU, or interpreted on CPU tensors.

Without a GPU conftest.py sets TRITON_INTERPRET before Triton is imported, and the launchers are called directly, since
CPU tensors dispatch to C++. The tests are the same on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dropout import attention_mask, row_mask
from helpers.operators import (
    add_norm_inputs,
    attention_by_loop,
    attention_by_sdpa,
    cumulative,
    embed_inputs,
    plain_add_norm,
    plain_bias_act,
    plain_embed,
    random,
    with_gradients,
)
from torch import Tensor

pytest.importorskip("triton")

from bertnli import BERTClassifier, BERTConfig, BERTModel, PackedBatch
from bertnli.kernels import attention, rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = [torch.bfloat16, torch.float16]
# Units of rounding that are no error. The interpreter cuts bfloat16 off where the hardware rounds it.
FLOOR = {torch.float32: 4, torch.bfloat16: 0.5 if DEVICE.type == "cuda" else 1.5, torch.float16: 0.5}


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
    *inputs, dout = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    out, _, *gradients = run_attention(*inputs, q_lens, lens, dout)
    exact = with_gradients(
        lambda *x: attention_by_loop(*x, q_lens, lens)[0], [x.double() for x in inputs], dout.double()
    )
    theirs = with_gradients(
        lambda *x: attention_by_sdpa(*x, q_lens, lens).to(dtype), [x.to(DEVICE) for x in inputs], dout.to(DEVICE)
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
    *inputs, dout = (random(*shape, seed=i) for i, shape in enumerate(shapes))
    dsum = dout.sum(-1)
    masks = [attention_mask(b, heads, n, m, p, seed) for b, (n, m) in enumerate(zip(q_lens, lens, strict=True))]
    out, weight_sum, *gradients = run_attention(*inputs, q_lens, lens, dout, dsum, p, seed)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, weight_sum = attention_by_loop(q, k, v, q_lens, lens, masks=masks)
        return torch.cat([out, weight_sum[..., None]], -1)

    expected = with_gradients(reference, [x.double() for x in inputs], torch.cat([dout, dsum[..., None]], -1).double())
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
    *inputs, dout = (random(int(lens.sum()), 2, 16, dtype=dtype, seed=i) for i in range(4))
    masks = [attention_mask(b, 2, n, n, p, seed) for b, n in enumerate(lengths)]
    expected = with_gradients(
        lambda *x: attention_by_loop(*x, lengths, lengths, masks=masks)[0], [x.double() for x in inputs], dout.double()
    )
    monkeypatch.setattr(attention, "_CROWD", 0)
    monkeypatch.setattr(attention, "_SEEKERS", 1)  # on a GPU too a program has several of the longest
    out, _, *gradients = run_attention(*inputs, lengths, lengths, dout, None, p, seed)
    for a, b in zip([out, *gradients], expected, strict=True):
        tolerance = 5e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * max(1, float(b.abs().max())))


def test_attention_of_4096_tokens() -> None:
    tokens = 4096 if DEVICE.type == "cuda" else 700  # the interpreter takes a second for every 4 million scores
    q, k, v, dout = (random(tokens, 1, 32, seed=i) for i in range(4))
    out, weight_sum, *gradients = run_attention(q, k, v, [tokens], [tokens], dout)
    expected = with_gradients(
        lambda *x: attention_by_loop(*x, [tokens], [tokens])[0], [x.double() for x in (q, k, v)], dout.double()
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
    separate = [x.contiguous() for x in qkv.unbind(1)]
    expected = attention.forward(*separate, cu, cu, 40, 40, 0.1, 0.2, seed)
    assert torch.equal(results[0], expected[0])
    gradients = attention.backward(dout, None, *separate, *expected, cu, cu, 40, 40, 0.1, 0.2, seed)
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
    arguments = dict.fromkeys("qkv", torch.zeros(7, 4, 8)) | dict.fromkeys(("cu_q", "cu_k"), cumulative([3, 4]))
    numbers = dict(max_q=4, max_k=4, dropout_p=0.0, scale=1.0, seed=None)
    arguments = {**arguments, **numbers, **change}
    on_device = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        attention.forward(**on_device)


# ---- row by row ----


def assert_as_exact_as_pytorch(
    actual: list[Tensor], plain: Callable[..., Any], inputs: list[Tensor], dout: Tensor
) -> None:
    """Our error against float64 is at most twice that of PyTorch in the same dtype."""
    exact = with_gradients(plain, [x.double() for x in inputs], dout.double())
    theirs = with_gradients(plain, [x.to(DEVICE) for x in inputs], dout.to(DEVICE))
    for i, (a, b, reference) in enumerate(zip(actual, theirs, exact, strict=True)):
        assert a.shape == reference.shape
        assert a.dtype == b.dtype
        floor = FLOOR[a.dtype] * torch.finfo(a.dtype).eps * float(reference.abs().max())
        error, their_error = (float((x.cpu().double() - reference).abs().max()) for x in (a, b))
        assert error <= 2 * their_error + floor, f"result {i}: {error} against {their_error} of PyTorch"


def on_device(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.to(DEVICE) for x in tensors]


def run_add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, y_bias: Tensor | None, dout: Tensor, p: float = 0.0,
    seed: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """out, dx, dy, dweight, dbias, dy_bias of the launchers, on the CPU."""
    x, y, weight, bias, y_bias, dout, seed = on_device(x, y, weight, bias, y_bias, dout, seed)
    out, *statistics = rows.add_norm(x, y, y_bias, weight, bias, 1e-5, p, seed)
    dx, dy, dy_bias, dweight, dbias = rows.add_norm_backward(dout, x, y, y_bias, weight, bias, *statistics, p, seed)
    return [t.cpu() for t in (out, dx, dy, dweight, dbias, dy_bias)]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("width", [2, 37, 256, 768])
def test_add_norm_is_as_exact_as_pytorch(width: int, dtype: torch.dtype) -> None:
    inputs, dout = add_norm_inputs(19, width, dtype)
    assert_as_exact_as_pytorch(run_add_norm(*inputs, dout), plain_add_norm, inputs, dout)


def test_add_norm_of_one_column() -> None:
    """Its norm is 0 whatever x and y are, but for roundings that the inverse deviation, 1 / sqrt(eps), multiplies."""
    inputs, dout = add_norm_inputs(19, 1, torch.float32)
    out, dx, dy, dweight, dbias, dy_bias = run_add_norm(*inputs, dout)
    torch.testing.assert_close(out, inputs[3].expand_as(out), rtol=0, atol=1e-4)
    torch.testing.assert_close(dbias, dout.sum(0))
    for zero in (dx, dy, dweight, dy_bias):
        torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-3)


@pytest.mark.parametrize("width", [37, 256])
def test_add_norm_drops_what_the_cpu_does(width: int) -> None:
    """Equal masks, bit for bit, and equal results; y of half precision as under autocast."""
    (x, y, weight, bias, y_bias), dout = add_norm_inputs(70, width, torch.float32)
    seed, p = torch.tensor([2**40 + 5, -3]), 0.25
    library = torch.ops.bertnli
    for half in (y, y.bfloat16()):
        out, *statistics = library.add_norm(x, half, y_bias, weight, bias, 1e-5, p, seed)
        dx, dy, dy_bias, dweight, dbias = library.add_norm_backward(
            dout, x, half, y_bias, weight, bias, *statistics, p, seed
        )
        actual = run_add_norm(x, half, weight, bias, y_bias, dout, p, seed)
        for a, b in zip(actual, (out, dx, dy, dweight, dbias, dy_bias), strict=True):
            eps = FLOOR[b.dtype] * torch.finfo(b.dtype).eps
            torch.testing.assert_close(a, b, rtol=0, atol=2 * eps * max(1, float(b.abs().max())))
        assert torch.equal(actual[2] != 0, dy != 0)
        mask = row_mask(70, width, p, seed)
        assert torch.equal(dy != 0, (mask != 0) & (dx != 0))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh"])
def test_bias_act_is_as_exact_as_pytorch(kind: str, dtype: torch.dtype) -> None:
    x, bias, dout = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(41, 150), (150,), (41, 150)]))
    on = on_device(x, bias, dout)
    results = [rows.bias_act(*on[:2], kind), *rows.bias_act_backward(on[2], *on[:2], kind)]
    assert_as_exact_as_pytorch(results, plain_bias_act(kind), [x, bias], dout)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
def test_activation_of_nan_and_infinity() -> None:
    x = torch.tensor([[float("nan"), float("inf"), 1.0]], device=DEVICE)
    for kind in ("relu", "gelu", "gelu_tanh"):
        out = rows.bias_act(x, torch.zeros(3, device=DEVICE), kind).cpu()
        assert out.isnan().tolist() == [[True, False, False]]
        assert float(out[0, 1]) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_embed_is_as_exact_as_pytorch(dtype: torch.dtype) -> None:
    tables, ids, dout = embed_inputs(37, dtype)
    on_ids = on_device(*ids)
    results = [
        rows.embed(*on_device(*tables), *on_ids),
        *rows.embed_backward(dout.to(DEVICE), *on_ids, *(len(t) for t in tables), True, True, True),
    ]
    plain = plain_embed(ids)
    exact = with_gradients(plain, [t.double() for t in tables], dout.double())
    for a, b in zip(results, exact, strict=True):
        eps = torch.finfo(dtype).eps * max(1, FLOOR[dtype])
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=10 * eps * float(b.abs().max()))
    only = rows.embed_backward(dout.to(DEVICE), *on_ids, *(len(t) for t in tables), False, True, False)
    assert [len(t) for t in only] == [0, 2, 0]


@pytest.mark.parametrize("kinds", [1, 3, 6])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_of_tables(kinds: int, deterministic: bool) -> None:
    """One row for all tokens, few or many of the segments', rows that no token reads; ids outside a table count not."""
    tokens, width, sizes = 700, 150, (40, kinds, 90)
    generator = torch.Generator().manual_seed(kinds)
    ids = [torch.randint(0, n, (tokens,), generator=generator, dtype=torch.int32) for n in (30, kinds, 70)]
    dout = random(tokens, width)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = rows.embed_backward(*on_device(dout, *ids), *sizes, True, True, True)
    finally:
        torch.use_deterministic_algorithms(before)
    for a, i, n in zip(found, ids, sizes, strict=True):
        expected = torch.zeros(n, width, dtype=torch.float64).index_add_(0, i, dout.double())
        torch.testing.assert_close(a.cpu().double(), expected, rtol=0, atol=1e-7 * float(dout.abs().sum(0).max()))
    if not deterministic:
        ids[0][5], ids[2][6] = 40, -1
        outside = rows.embed_backward(*on_device(dout, *ids), *sizes, True, False, True)
        assert [len(x) for x in outside] == [40, 0, 90]
        assert all(x.isfinite().all() for x in outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embed_norm_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    """Equal masks, bit for bit, and equal results."""
    tables, ids, _ = embed_inputs(37, torch.float32, 50)
    weight, bias, dout = random(37, seed=1), random(37, seed=2), random(50, 37, dtype=dtype, seed=3)
    inputs, rest = (*tables, *ids, weight, bias), (0.25, torch.tensor([2**40 + 5, -3]))
    library = torch.ops.bertnli
    expected = library.embed_norm(*inputs, 1e-12, *rest, dtype, False)
    expected = (*expected, *library.embed_norm_backward(dout, *inputs, *expected[1:], *rest))
    on, on_rest = on_device(*inputs), (0.25, rest[1].to(DEVICE))
    results = rows.embed_norm(*on, 1e-12, *on_rest, dtype)
    results = (*results, *rows.embed_norm_backward(dout.to(DEVICE), *on, *results[1:], *on_rest))
    for a, b in zip(results, expected, strict=True):
        eps = FLOOR[b.dtype] * torch.finfo(b.dtype).eps
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2 * eps * max(1, float(b.abs().max())))
    assert torch.equal(results[0].cpu() != 0, expected[0] != 0)


def test_an_id_outside_its_table_gives_nan() -> None:
    tables, ids, _ = embed_inputs(8, torch.float32, 4)
    for axis, bad in ((0, 50), (1, -1), (2, 40)):
        wrong = [i.clone() for i in ids]
        wrong[axis][1] = bad
        out = rows.embed(*on_device(*tables, *wrong)).cpu()
        assert out.isnan().all(1).tolist() == [False, True, False, False]
        assert not out[[0, 2, 3]].isnan().any()


def test_no_tokens() -> None:
    x, w = torch.zeros(0, 12), torch.ones(12)
    out, dx, dy, *vectors = run_add_norm(x, x, w, w, w, x)
    assert out.shape == dx.shape == dy.shape == (0, 12)
    assert all(torch.equal(v, torch.zeros(12)) for v in vectors)
    on = on_device(x, w)
    assert rows.bias_act(*on, "gelu").shape == (0, 12)
    assert torch.equal(rows.bias_act_backward(on[0], *on, "gelu")[1].cpu(), torch.zeros(12))
    tables, ids, _ = embed_inputs(12, torch.float32, 0)
    assert rows.embed(*on_device(*tables, *ids)).shape == (0, 12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: rows.add_norm(x.double(), x, None, w, w, 1e-5, 0.0, None), "x must be float32"),
        (lambda x, w: rows.add_norm(x, x[:1], None, w, w, 1e-5, 0.0, None), r"y must have x's shape \[3, 8\]"),
        (lambda x, w: rows.add_norm(x, x, None, w[1:], w, 1e-5, 0.0, None), r"weight must have shape \[8\]"),
        (lambda x, w: rows.add_norm(x, x, None, w, w, 1e-5, 0.5, None), "seed must be given"),
        (lambda x, w: rows.bias_act(x, w, "silu"), "kind must be"),
        (lambda x, w: rows.embed(x, x, x[:, 1:], *[w.int()] * 3), "position_table must have shape"),
        (lambda x, w: rows.embed(x, x, x, *[w.long()] * 3), "input_ids must be int32"),
    ],
)
def test_rows_bad_arguments(function: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        function(torch.zeros(3, 8, device=DEVICE), torch.zeros(8, device=DEVICE))


def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """Triton's compiler takes every kernel for an H100, with or without one: hardly a register is spilled."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", root / "tests" / "helpers" / "compile_kernels.py"],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "TRITON_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {launch["kernel"] for launch in found} == {
        *("_forward", "_backward_whole", "_backward_queries", "_backward_keys"),
        *("_add_norm", "_add_norm_backward", "_bias_act", "_bias_act_backward", "_column_sums"),
        *("_embed", "_embed_norm", "_embed_norm_backward", "_scatter"),
    }
    for launch in found:
        assert launch["shared"] <= 227 << 10, launch
        # 128 keys in a tile, in a loop over sequences, take some hundred bytes
        assert launch.get("spilled", 0) <= (320 if launch["ranked"] else 64), launch


# ---- on the whole ----


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_a_training_step_on_a_gpu_is_that_of_the_cpu_and_waits_for_nothing() -> None:
    """Equal gradients, and no synchronisation on the way."""
    lens = [27, 8, 60, 1]
    total = sum(lens)
    config = BERTConfig.original(
        50, num_hiddens=64, ffn_num_hiddens=128, num_heads=2, num_layers=2, dropout=0.0, max_len=64
    )
    torch.manual_seed(0)
    model = BERTClassifier(BERTModel(config))
    batch = PackedBatch(
        torch.randint(0, 50, (total,), dtype=torch.int32),
        torch.zeros(total, dtype=torch.int32),
        torch.cat([torch.arange(n, dtype=torch.int32) for n in lens]),
        cumulative(lens),
        max(lens),
        torch.tensor([0, 1, 2, 1]),
    )
    model.loss(model(batch), batch).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.cuda()
    on_gpu = batch.pin_memory().to("cuda", non_blocking=True)
    model.loss(model(on_gpu), on_gpu).backward()  # compiles
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad.cpu(), expected[name], rtol=1e-3, atol=1e-4, msg=name)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = batch.pin_memory().to("cuda", non_blocking=True)
        model.loss(model(on_gpu), on_gpu).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_benchmark_for_gpus_runs_on_tiny_sizes(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [root / "benchmarks" / "bench_gpu.py", "--device", "cpu", "--tiny", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--json", tmp_path / "gpu.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["work"] for row in rows} == {"attention", "rows", "step", "logits", "fit", "text"}
    assert all(row["pairs_per_second" if row["work"] in ("fit", "text") else "bertnli_ms"] > 0 for row in rows)
