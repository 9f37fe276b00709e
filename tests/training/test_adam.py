"""bertnli's lazy Adam and AdamW against torch's on the dense gradient, over hundreds of steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.isa import ISAS
from torch import Tensor, nn

from bertnli.training.adam import Adam

ROWS, WIDTH, STEPS = 120, 37, 500


class Problem:
    """A table read by few rows a step, most of them rare, and a matrix and vector behind it."""

    def __init__(self, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        self.parameters = [
            nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in ((ROWS, WIDTH), (WIDTH, 5), (5,))
        ]

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        table, matrix, vector = self.parameters
        return [{"params": [table, matrix], "weight_decay": weight_decay}, {"params": [vector], "weight_decay": 0.0}]

    def loss(self, rows: Tensor, target: Tensor, sparse: bool) -> Tensor:
        table, matrix, vector = self.parameters
        return (F.embedding(rows, table, sparse=sparse) @ matrix + vector - target).square().sum()


def batches(dtype: torch.dtype, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    rows = [(torch.rand(1 + i % 7, generator=g) ** 3 * ROWS).long() for i in range(steps)]
    return [(r, torch.randn(len(r), 5, generator=g).to(dtype)) for r in rows]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    ("isa", "dtype"),
    [("plain", torch.float64), *((isa, torch.float32) for isa in ISAS if isa != "avx512_bf16")],  # has avx512's kernels
    indirect=["isa"],
    ids=str,
)
def test_lazy_rows_are_the_dense_optimizer(isa: str, dtype: torch.dtype, decoupled: bool, weight_decay: float) -> None:
    lazy, reference, exact = Problem(dtype), Problem(dtype), Problem(torch.float64)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = Adam(lazy.groups(weight_decay), lr=1e-2, decoupled=decoupled, max_grad_norm=3.0)
    peers = [(p, kind(p.groups(weight_decay), lr=1e-2)) for p in (reference, exact)]
    factor = [min((s + 1) / 30, (STEPS - s) / STEPS) for s in range(STEPS)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor.__getitem__) for o in (optimizer, *(o for _, o in peers))]
    for i, (rows, target) in enumerate(batches(dtype)[:-1]):
        optimizer.catch_up(lazy.parameters[0], rows.int())
        optimizer.zero_grad()
        lazy.loss(rows, target, sparse=True).backward()
        optimizer.step()
        for problem, peer in peers:
            peer.zero_grad()
            problem.loss(rows, target.to(problem.parameters[0].dtype), sparse=False).backward()
            nn.utils.clip_grad_norm_(problem.parameters, 3.0)
            peer.step()
        for schedule in schedules:
            schedule.step()
        # 299 steps between two, more than an unread row's moments are felt in float32 (172): the rest is left out.
        if i in (60, 160, 459) or i == STEPS - 2:
            optimizer.flush()
            for a, b, c in zip(lazy.parameters, reference.parameters, exact.parameters, strict=True):
                error, reference_error = (float((x.double() - c).abs().max().detach()) for x in (a, b))
                assert error <= 3 * reference_error + (1e-12 if dtype == torch.float64 else 1e-6)
    state, expected = optimizer.state_dict()["state"], peers[0][1].state_dict()["state"]
    assert state.keys() == expected.keys()
    for number, values in state.items():
        assert values["step"] == expected[number]["step"] == STEPS - 1
        for name in ("exp_avg", "exp_avg_sq"):
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(values[name], expected[number][name], atol=tolerance, rtol=10 * tolerance)


def test_the_record_of_steps_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from bertnli.training import adam as optim

    runs = []
    for most in (4096, 7):
        monkeypatch.setattr(optim, "_MAX_SKIPPED", most)
        problem = Problem(torch.float64)
        optimizer = Adam(problem.groups(0.1), lr=1e-2, decoupled=True)
        for rows, target in batches(torch.float64, 40):
            optimizer.catch_up(problem.parameters[0], rows.int())
            optimizer.zero_grad()
            problem.loss(rows, target, sparse=True).backward()
            optimizer.step()
        optimizer.flush()
        runs.append(problem.parameters[0].detach())
    torch.testing.assert_close(runs[0], runs[1], atol=1e-14, rtol=0)


@pytest.mark.parametrize("torch_first", [False, True])
def test_states_are_torchs(torch_first: bool) -> None:
    """A run that goes on in the other class is the run of one class."""
    problem = Problem(torch.float64)
    whole = copy.deepcopy(problem)
    steps = batches(torch.float64, 40)
    reference = torch.optim.AdamW(whole.groups(0.1), lr=1e-2)
    kinds: list[Callable[[Any], torch.optim.Optimizer]] = [
        lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        lambda groups: Adam(groups, lr=1e-2, decoupled=True),
    ]
    first, second = (kind(problem.groups(0.1)) for kind in (kinds if torch_first else kinds[::-1]))
    for i, (rows, target) in enumerate(steps):
        if i == 25:
            second.load_state_dict(first.state_dict())
        optimizer = first if i < 25 else second
        if isinstance(optimizer, Adam):
            optimizer.catch_up(problem.parameters[0], rows.int())
        for p, o in ((problem, optimizer), (whole, reference)):
            o.zero_grad()
            p.loss(rows, target, sparse=isinstance(o, Adam)).backward()
            o.step()
    second.state_dict()
    for a, b in zip(problem.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_copies_follow_and_give_the_gradient(isa: str) -> None:
    torch.manual_seed(0)
    parameter, twin = nn.Parameter(torch.randn(9, 21)), nn.Parameter(torch.randn(9, 21))
    twin.data.copy_(parameter.data)
    low = nn.Parameter(parameter.detach().bfloat16())
    optimizer, reference = Adam([parameter], lr=1e-2), torch.optim.Adam([twin], lr=1e-2)
    optimizer.copies = {parameter: low}
    for _ in range(5):
        low.grad = torch.randn(9, 21).bfloat16()
        twin.grad = low.grad.float()
        versions = parameter._version, low._version
        optimizer.step()
        assert parameter._version > versions[0]  # who keeps something made from it can see that it changed
        assert low._version > versions[1]
        reference.step()
        optimizer.zero_grad()
        assert low.grad is None
        torch.testing.assert_close(parameter, twin, atol=1e-6, rtol=0)
        assert torch.equal(low, parameter.bfloat16())
    # Parts of a larger batch are added in float32.
    parts = torch.randn(3, 9, 21).bfloat16()
    for part in parts:
        low.grad = part
        optimizer.gather()
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, parts[0].float() + parts[1].float() + parts[2].float())


@pytest.mark.parametrize("step", [3, torch.tensor(3.0), torch.tensor([3.0])], ids=["int", "scalar", "one"])
def test_steps_of_old_states(step: int | torch.Tensor) -> None:
    """Old torch versions have integers; a default device does not matter."""
    lazy, dense = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = Adam([lazy], lr=0.1), torch.optim.Adam([dense], lr=0.1)
    for optimizer, p in zip(optimizers, (lazy, dense), strict=True):
        state = {0: dict(step=step, exp_avg=torch.full((3,), 0.5), exp_avg_sq=torch.ones(3))}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        p.grad = torch.ones(3)
    with torch.device("meta"):
        optimizers[0].step()
    optimizers[1].step()
    torch.testing.assert_close(lazy, dense)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            g = torch.Generator().manual_seed(2)
            parameters = [nn.Parameter(torch.randn(n, generator=g)) for n in (100_000, 3, 50_001)]
            optimizer = Adam(parameters, lr=1e-2, max_grad_norm=1.0)
            for _ in range(3):
                for p in parameters:
                    p.grad = torch.randn(p.shape, generator=g)
                optimizer.step()
            results.append(parameters)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot have lr=-1"):
        Adam([nn.Parameter(torch.zeros(2))], lr=-1)
    p = nn.Parameter(torch.zeros(2, 3))
    optimizer = Adam([p])
    p.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 3), (2, 3), check_invariants=True)
    optimizer.step()
    with pytest.raises(IndexError, match="row 5 lies outside the table's 2"):
        optimizer.catch_up(p, torch.tensor([5], dtype=torch.int32))
    half = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    half.grad = torch.zeros(2, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="must be float32, bfloat16 or float64"):
        Adam([half]).step()
