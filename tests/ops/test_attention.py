"""varlen_attention against float64 PyTorch, PyTorch's own attention, and a numpy Philox checked by known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dropout import attention_mask, philox
from helpers.isa import ISAS
from helpers.operators import (
    attention_by_loop,
    attention_by_sdpa,
    cumulative,
    with_gradients,
)
from torch import Tensor

from bertnli import ops
from bertnli.ops.attention import _padded_attention


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that Random123 publishes for philox4x32, 7 rounds
        ([0] * 4, (0, 0), [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ],
)
def test_reference_philox_known_answers(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox(np.array(counter, dtype=np.uint64), key).tolist() == words


# heads, kv_heads, d, d_v, lengths, one query a sequence?
SHAPES = [
    pytest.param(4, 4, 32, 32, [27, 8, 60, 1, 0, 33, 16, 17], False, id="snli"),
    pytest.param(2, 2, 64, 64, [40, 1, 64, 65, 31], False, id="wide"),
    pytest.param(4, 1, 256, 256, [27, 8, 60, 1, 3, 33], True, id="one-query-shared-keys"),
    pytest.param(12, 1, 384, 384, [27, 5], True, id="twelve-heads-shared-keys"),
    pytest.param(16, 1, 48, 40, [27, 5, 300], True, id="sixteen-heads-shared-keys"),
    pytest.param(6, 2, 13, 7, [5, 1, 30, 9], False, id="odd-widths-grouped"),
    pytest.param(3, 1, 20, 33, [90, 260], False, id="shared-keys-many-rows"),
    # (Of width 1 so many keys are a dot product to PyTorch, summed in many lanes: no measure of sums in order.)
    pytest.param(1, 1, 4, 3, [3, 700, 257, 256], False, id="blocks-of-keys"),
    pytest.param(1, 1, 1, 1, [3, 40, 17, 0], False, id="width-one"),
    pytest.param(2, 2, 8, 12, [600, 15], True, id="one-query-blocks-of-keys"),
]


def random_inputs(
    heads: int, kv_heads: int, d: int, d_v: int, lens: list[int], one_query: bool, dtype: torch.dtype
) -> tuple[list[int], list[Tensor]]:
    generator = torch.Generator().manual_seed(sum(lens) + d)
    q_lens = [1] * len(lens) if one_query else lens
    shapes = [(sum(q_lens), heads, d), (sum(lens), kv_heads, d), (sum(lens), kv_heads, d_v), (sum(q_lens), heads, d_v)]
    return q_lens, [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [*((isa, dtype) for isa in ISAS for dtype in (torch.float32, torch.bfloat16)), ("plain", torch.float64)],
    indirect=["isa"],
    ids=str,
)
@pytest.mark.parametrize(("heads", "kv_heads", "d", "d_v", "lens", "one_query"), SHAPES)
def test_error_is_at_most_twice_that_of_pytorch(
    isa: str, heads: int, kv_heads: int, d: int, d_v: int, lens: list[int], one_query: bool, dtype: torch.dtype
) -> None:
    q_lens, (*inputs, dout) = random_inputs(heads, kv_heads, d, d_v, lens, one_query, dtype)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.varlen_attention(
            q, k, v, cumulative(lens), max(lens), cu_seqlens_q=cumulative(q_lens), max_seqlen_q=max(q_lens)
        )

    exact = with_gradients(
        lambda q, k, v: attention_by_loop(q, k, v, q_lens, lens)[0], [x.double() for x in inputs], dout.double()
    )
    theirs = with_gradients(lambda q, k, v: attention_by_sdpa(q, k, v, q_lens, lens), inputs, dout)
    for name, a, b, reference in zip(
        ["out", "dq", "dk", "dv"], with_gradients(ours, inputs, dout), theirs, exact, strict=True
    ):
        assert a.shape == reference.shape
        assert a.dtype == dtype
        eps = torch.finfo(dtype).eps / (1 if dtype != torch.bfloat16 else 8)
        # The largest of thousands of errors is chance, and PyTorch's is its CPU library's: that has more slack.
        measures: list[tuple[Callable[[Tensor], float], int]] = [
            (lambda x: float(x.double().square().mean().sqrt()), 2),
            (lambda x: float(x.abs().max()), 8),
        ]
        for measure, slack in measures:
            error, their_error = (measure(x.double() - reference) for x in (a, b))
            assert error <= 2 * their_error + slack * eps * measure(reference), (
                f"{name}: {error}, PyTorch's {their_error}"
            )


def test_long_sequence(isa: str) -> None:
    q_lens, (q, k, v, _) = random_inputs(2, 2, 16, 16, [4096], False, torch.float32)
    reference, _ = attention_by_loop(q.double(), k.double(), v.double(), q_lens, [4096])
    out = ops.varlen_attention(q, k, v, cumulative([4096]), 4096)
    torch.testing.assert_close(out.double(), reference, atol=2e-6, rtol=0)


def test_scores_far_apart(isa: str) -> None:
    """Weights that underflow, and a maximum that grows from block to block."""
    lens = [600, 40]
    _, (q, k, v, _) = random_inputs(1, 1, 8, 8, lens, False, torch.float32)
    k = k * torch.linspace(1, 60, len(k))[:, None, None]
    reference, _ = attention_by_loop(q.double(), k.double(), v.double(), lens, lens)
    # scores reach several hundred, so a relative error of 1e-7 in them moves weights by 1e-5
    torch.testing.assert_close(
        ops.varlen_attention(q, k, v, cumulative(lens), 600).double(), reference, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("heads", "kv_heads", "d", "d_v", "lens", "one_query"), SHAPES)
def test_dropout_and_weight_sum_equal_the_definition(
    isa: str, heads: int, kv_heads: int, d: int, d_v: int, lens: list[int], one_query: bool, p: float
) -> None:
    q_lens, (*inputs, dout) = random_inputs(heads, kv_heads, d, d_v, lens, one_query, torch.float32)
    seed = torch.tensor([2**40 + 5, -3])
    masks = [attention_mask(b, heads, n, m, p, seed) for b, (n, m) in enumerate(zip(q_lens, lens, strict=True))]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, weight_sum = ops.varlen_attention_with_sum(
            *(q, k, v, cumulative(lens), max(lens), p),
            cu_seqlens_q=cumulative(q_lens),
            max_seqlen_q=max(q_lens),
            seed=seed,
        )
        return torch.cat([out, weight_sum[..., None]], -1)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, weight_sum = attention_by_loop(q, k, v, q_lens, lens, masks=masks if p else None)
        return torch.cat([out, weight_sum[..., None]], -1)

    dout = torch.cat([dout, dout.sum(-1, keepdim=True)], -1)  # a gradient for the weight sums too
    expected = with_gradients(reference, [x.double() for x in inputs], dout.double())
    for a, b in zip(with_gradients(ours, inputs, dout), expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=3e-6 * max(1, float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dropout_mask_is_philox(isa: str, dtype: torch.dtype) -> None:
    """With v the identity, the output is the weights themselves, and its zeros are the mask."""
    lens, heads, p = [5, 0, 300, 61], 3, 0.25
    seed = torch.tensor([123456789, 987654321])
    q = torch.zeros(sum(lens), heads, 4, dtype=dtype)
    v = torch.cat([torch.eye(n, max(lens)) for n in lens])[:, None].expand(-1, heads, -1).to(dtype)
    out = ops.varlen_attention(q, q, v, cumulative(lens), max(lens), p, seed=seed)
    for b, part in enumerate(out.split(lens)):
        mask = attention_mask(b, heads, lens[b], lens[b], p, seed)
        assert torch.equal(part.transpose(0, 1)[..., : lens[b]] != 0, mask != 0)


def test_a_mask_does_not_depend_on_the_other_sequences_or_the_width() -> None:
    seed = torch.tensor([1, 2])
    _, (q, k, v, _) = random_inputs(2, 2, 8, 8, [20, 30], False, torch.float32)
    both = ops.varlen_attention(q, k, v, cumulative([20, 30]), 30, 0.5, seed=seed)
    q, k, v = (torch.cat([x[:20], torch.randn(7, 2, 8)]) for x in (q, k, v))
    longer = ops.varlen_attention(q, k, v, cumulative([20, 7]), 20, 0.5, seed=seed)
    assert torch.equal(both[:20], longer[:20])


def test_dropout_statistics() -> None:
    n, p = 400, 0.1
    q = torch.zeros(n, 4, 8)
    _, weight_sum = ops.varlen_attention_with_sum(q, q, q, cumulative([n]), n, p, seed=torch.tensor([3, 4]))
    kept = weight_sum * n * (1 - p)  # how many of each query's n keys stay
    # binomial: mean n (1 - p) = 360, standard deviation 6; over 1600 rows the mean's is 0.15
    assert abs(float(kept.mean()) - 360) < 0.75
    assert 5.5 < float(kept.std()) < 6.5


def test_seed_is_drawn_from_the_default_generator() -> None:
    q = torch.randn(30, 2, 8)

    def run() -> Tensor:
        return ops.varlen_attention(q, q, q, cumulative([30]), 30, 0.5)

    torch.manual_seed(11)
    first, second = run(), run()
    torch.manual_seed(11)
    assert torch.equal(first, run())
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_packed_equals_separate(isa: str, dtype: torch.dtype, p: float) -> None:
    lens, seed = [27, 0, 60, 5], torch.tensor([5, 6])
    qkv = torch.randn(sum(lens), 3, 4, 24).to(dtype)
    dout = torch.randn(sum(lens), 4, 24).to(dtype)
    packed = with_gradients(lambda x: ops.varlen_attention_packed(x, cumulative(lens), 60, p, seed=seed), [qkv], dout)
    separate = with_gradients(
        lambda q, k, v: ops.varlen_attention(q, k, v, cumulative(lens), 60, p, seed=seed),
        [qkv[:, i].contiguous() for i in range(3)],
        dout,
    )
    assert torch.equal(packed[0], separate[0])
    assert torch.equal(packed[1], torch.stack(separate[1:], 1))


def test_any_strides_give_the_same(isa: str) -> None:
    lens = [27, 60, 5]
    total, heads, d = sum(lens), 4, 24
    qkv = torch.randn(total, heads, 3, d + 3)[
        ..., :d
    ]  # heads outside q/k/v, rows with a gap: strided in two dimensions
    q, k, v = qkv.unbind(2)
    dout = torch.randn(d).expand(total, heads, d)  # what .sum().backward() sends: strides of 0
    odd = torch.randn(total, heads, d, 2)[..., 0]  # the width itself is strided

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.varlen_attention(q, k, v, cumulative(lens), 60)

    for views in ([q, k, v], [odd, k, odd]):
        leaves = [x.detach().requires_grad_() for x in views]
        out = run(*leaves)
        actual = [out, *torch.autograd.grad(out, leaves, dout)]
        for a, b in zip(actual, with_gradients(run, [x.contiguous() for x in views], dout.contiguous()), strict=True):
            assert torch.equal(a, b)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    lens = [int(n) for n in np.random.default_rng(0).integers(0, 70, 60)]
    _, (*inputs, dout) = random_inputs(4, 4, 32, 32, lens, False, torch.float32)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.varlen_attention(q, k, v, cumulative(lens), 70, 0.1, seed=torch.tensor([1, 2]))

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(with_gradients(run, inputs, dout))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("lens", [[], [0], [0, 0, 3, 0]])
def test_empty(isa: str, lens: list[int]) -> None:
    q = torch.randn(sum(lens), 2, 8, requires_grad=True)
    out, weight_sum = ops.varlen_attention_with_sum(q, q, q, cumulative(lens), 3)
    assert out.shape == (sum(lens), 2, 8)
    torch.testing.assert_close(weight_sum, torch.ones(sum(lens), 2))
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_queries_without_keys_give_zeros(isa: str) -> None:
    q = torch.randn(5, 2, 8, requires_grad=True)
    k = torch.randn(3, 2, 8, requires_grad=True)
    out, weight_sum = ops.varlen_attention_with_sum(
        q, k, k, cumulative([0, 3, 0]), 3, cu_seqlens_q=cumulative([2, 0, 3]), max_seqlen_q=3
    )
    assert not out.any()
    assert not weight_sum.any()
    out.sum().backward()
    assert q.grad is not None
    assert k.grad is not None
    assert not q.grad.any()
    assert not k.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_within_its_sequence_and_head(isa: str, bad: float) -> None:
    lens = [20, 30]
    _, (q, k, v, _) = random_inputs(2, 2, 8, 8, lens, False, torch.float32)
    clean = ops.varlen_attention(q, k, v, cumulative(lens), 30)
    k[22, 1] = bad
    out = ops.varlen_attention(q, k, v, cumulative(lens), 30)
    assert torch.equal(out[:20], clean[:20])
    assert torch.equal(out[:, 0], clean[:, 0])
    reference = attention_by_sdpa(q, k, v, lens, lens)
    assert torch.equal(out.isnan(), reference.isnan())
    assert out[20:, 1].isnan().any()


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(p: float) -> None:
    lens, seed = [3, 0, 6], torch.tensor([7, 8])
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    k = torch.randn(9, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    v = torch.randn(9, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return ops.varlen_attention_with_sum(
            *(q, k, v, cumulative(lens), 6, p), cu_seqlens_q=cumulative([1, 1, 1]), max_seqlen_q=1, seed=seed
        )

    torch.autograd.gradcheck(run, (q, k, v))
    qkv = torch.randn(9, 3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: ops.varlen_attention_packed(x, cumulative(lens), 6, p, seed=seed), (qkv,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_opcheck(dtype: torch.dtype, p: float) -> None:
    cu, seed = cumulative([3, 4]), torch.tensor([1, 2])
    q, k, v = (torch.randn(7, heads, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2))
    torch.library.opcheck(torch.ops.bertnli.varlen_attention, (q, k, v, cu, cu, 4, 4, p, 0.3, seed if p else None))
    qkv = torch.randn(7, 3, 4, 8, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.bertnli.varlen_attention_packed, (qkv, cu, 4, p, 0.3, seed if p else None))


def test_compile_without_graph_breaks() -> None:
    def run(qkv: Tensor, cu: Tensor, longest: int) -> Tensor:
        return ops.varlen_attention_packed(qkv * 2, cu, longest).square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for lens in ([3, 4], [5, 6, 2], [9]):
        qkv = torch.randn(sum(lens), 3, 2, 8, requires_grad=True)
        (expected,) = torch.autograd.grad(run(qkv, cumulative(lens), max(lens)), qkv)
        (actual,) = torch.autograd.grad(compiled(qkv, cumulative(lens), max(lens)), qkv)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(7, 4)}, "q must have shape"),
        ({"q": torch.zeros(7, 4, 8, dtype=torch.float16)}, "q must be float32, bfloat16 or float64"),
        ({"k": torch.zeros(7, 4, 9)}, "k must have q's width 8; found 9"),
        ({"k": torch.zeros(7, 3, 8), "v": torch.zeros(7, 3, 8)}, "heads must divide q's, 4; found 3"),
        ({"k": torch.zeros(7, 4, 8, dtype=torch.float64)}, "k must have q's dtype"),
        ({"v": torch.zeros(6, 4, 8)}, "v must have k's tokens and heads"),
        ({"cu_seqlens": cumulative([3, 4]).long()}, "cu_seqlens.* must be int32"),
        ({"cu_seqlens": cumulative([3, 5]), "max_seqlen": 5}, "must end with the number of tokens, 7; found 8"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 7], dtype=torch.int32)}, "must not decrease; found 4 then 3"),
        ({"cu_seqlens": torch.tensor([1, 7], dtype=torch.int32), "max_seqlen": 7}, "must begin with 0; found 1"),
        ({"cu_seqlens": torch.tensor([[0, 7]], dtype=torch.int32)}, r"must have shape \[batch \+ 1\]"),
        ({"max_seqlen": 3}, "max_seqlen.* is 3, but sequence 1 .* has 4 tokens"),
        ({"dropout_p": 1.0}, "dropout_p must be at least 0 and below 1; found 1"),
        ({"dropout_p": -0.1}, "dropout_p must be"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1.0, 2.0])}, "seed must be an int64 tensor"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"cu_seqlens_q": cumulative([7]), "max_seqlen_q": 7}, "cu_seqlens_q must have cu_seqlens's length 3"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        **dict.fromkeys("qkv", torch.zeros(7, 4, 8)),
        "cu_seqlens": cumulative([3, 4]),
        "max_seqlen": 4,
    } | change
    with pytest.raises(RuntimeError, match=message):
        ops.varlen_attention(**arguments)


def test_bad_packed_shape_and_lonely_argument() -> None:
    with pytest.raises(RuntimeError, match=r"qkv must have shape \[tokens, 3, heads, d\]"):
        ops.varlen_attention_packed(torch.zeros(7, 2, 4, 8), cumulative([7]), 7)
    q = torch.zeros(7, 4, 8)
    with pytest.raises(ValueError, match="must be given together"):
        ops.varlen_attention(q, q, q, cumulative([7]), 7, cu_seqlens_q=cumulative([7]))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_padded_expression_of_other_devices_is_the_same(kv_heads: int) -> None:
    """What runs where bertnli has no kernel: equal results and gradients."""
    g = torch.Generator().manual_seed(kv_heads)
    cu_k, cu_q = (torch.tensor(x, dtype=torch.int32) for x in ([0, 5, 5, 6, 20], [0, 1, 1, 2, 5]))
    q, k, v = (
        torch.randn(*shape, dtype=torch.float64, generator=g, requires_grad=True)
        for shape in ((5, 4, 8), (20, kv_heads, 8), (20, kv_heads, 6))
    )
    wanted = ops.varlen_attention_with_sum(q, k, v, cu_k, 14, cu_seqlens_q=cu_q, max_seqlen_q=3)
    found = _padded_attention(q, k, v, cu_q, cu_k, 0.0, 8**-0.5)
    gradients = []
    for out, weight_sum in (wanted, found):
        gradients.append(torch.autograd.grad(out.square().sum() + weight_sum.pow(3).sum(), (q, k, v)))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients[1], gradients[0])
    none = torch.tensor([0], dtype=torch.int32)
    assert _padded_attention(q[:0], k[:0], v[:0], none, none, 0.0, 1.0)[0].shape == (0, 4, 6)


def test_the_padded_expression_drops_weights() -> None:
    q, cu = torch.zeros(200, 2, 8), cumulative([200])
    out, weight_sum = _padded_attention(q, q, torch.ones(200, 2, 3), cu, cu, 0.25, 1.0)
    torch.testing.assert_close(out, weight_sum[..., None].expand_as(out))
    kept = weight_sum * 200 * 0.75  # binomial: mean 150, standard deviation 6.1; over 400 rows the mean's is 0.3
    assert abs(float(kept.mean()) - 150) < 1.5
    assert 5 < float(kept.std()) < 7.5


def test_no_seed_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertnli.ops.attention.has_kernel", lambda x: False)
    q = torch.zeros(3, 2, 8)
    with pytest.raises(ValueError, match=r"varlen_attention takes no seed for torch\.float32 on cpu"):
        ops.varlen_attention(q, q, q, cumulative([3]), 3, 0.1, seed=torch.tensor([1, 2]))
    assert ops.varlen_attention_packed(torch.zeros(3, 3, 2, 8), cumulative([3]), 3, 0.1).shape == (3, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dout": torch.zeros(7, 4, 7)}, "the gradient of the output must have the output's dtype and shape"),
        ({"dweight_sum": torch.zeros(7, 3)}, r"the gradient of weight_sum must be on the CPU, of shape \[7, 4\]"),
        ({"out": torch.zeros(6, 4, 8)}, r"out must be on the CPU, of shape \[7, 4, 8\] and Float"),
        ({"out": torch.zeros(7, 4, 8).double()}, "out must be"),
        ({"weight_sum": torch.zeros(7)}, r"weight_sum must be on the CPU, of shape \[7, 4\]"),
        ({"lse": torch.zeros(7, 4).bfloat16()}, r"lse must be on the CPU, of shape \[7, 4\] and Float"),
    ],
)
def test_backward_checks_what_it_was_given(change: dict[str, Tensor], message: str) -> None:
    x, rows = torch.zeros(7, 4, 8), torch.zeros(7, 4)
    names = ("dout", "dweight_sum", "q", "k", "v", "out", "weight_sum", "lse")
    saved = dict(zip(names, (x, rows, x, x, x, x, rows, rows), strict=True)) | change
    cu = cumulative([3, 4])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bertnli.varlen_attention_backward(*saved.values(), cu, cu, 4, 4, 0.0, 1.0, None)
