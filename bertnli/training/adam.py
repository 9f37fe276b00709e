"""Adam and AdamW on the CPU, whose cost on an embedding table goes with the rows of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

_lib = torch.ops.bertnli
_MOST_BEHIND = 4096  # steps after which all rows are brought up to date, so that the record of steps stays small


@dataclass
class _Behind:
    """The steps of a table since all its rows were up to date, and how many of them each row has done."""

    last: Tensor  # int32 [rows]
    steps: Tensor  # float64 [_MOST_BEHIND, 3], what `_numbers` gave
    taken: int = 0


class Adam(torch.optim.Optimizer):
    """`torch.optim.Adam` (or, with `decoupled`, `AdamW`) in one pass over the memory, with clipping inside.

    params         parameters or groups, as in torch; float32 or float64, contiguous, on the CPU
    decoupled      weight decay as in AdamW; else it is added to the gradient
    max_grad_norm  the norm of all gradients together is clipped to this, as `clip_grad_norm_` does; None does not clip

    The attribute `copies`, {float32 parameter: its bfloat16 copy}, is the caller's to fill: each step writes the new
    value there too, and takes the gradient from the copy's `.grad`.

    A two-dimensional parameter with a sparse gradient (that of `nn.Embedding(sparse=True)`; ours sets it in `fit`) is
    updated lazily: only the rows of the gradient are touched. What a dense optimizer would have done to the others
    meanwhile, since their moments still decay and move them, is made up for when they are next needed. So

        optimizer.catch_up(table, rows)    before a forward pass that reads those rows
        optimizer.flush()                  before anything else reads the table: evaluation, saving

    and `state_dict()` flushes by itself. The result is that of the dense optimizer to rounding: each skipped step is
    replayed with its own learning rate and decay, until the moments' contribution has fallen below rounding.

    `state_dict` has the layout of torch's Adam and AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled: bool = False,
        max_grad_norm: float | None = None,
    ) -> None:
        if not (lr >= 0 and eps > 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"Adam cannot have lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.decoupled, self.max_grad_norm = decoupled, max_grad_norm
        self.copies: dict[Tensor, Tensor] = {}
        self._behind: dict[Tensor, _Behind] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients that are there; a parameter without one stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            (group, [(p, g) for p in group["params"] if (g := self._gradient(p)) is not None])
            for group in self.param_groups
        ]
        scale = 1.0
        if self.max_grad_norm is not None:
            values = [g._values() if g.is_sparse else g for _, found in work for _, g in found]
            scale = min(1.0, self.max_grad_norm / (float(_lib.gradient_norm(values)) + 1e-6))
        for group, found in work:
            if found:
                self._step_group(group, found, scale)
        return loss

    def _step_group(self, group: dict[str, Any], found: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """A step of the parameters of a group that have gradients. (All tensors at once where that can be: a step of
        few pairs takes no longer than some hundred calls from Python.)"""
        states = [self.state[p] for p, _ in found]
        for (p, _), state in zip(found, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device="cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        counts = [state["step"] for state in states]
        torch._foreach_add_(counts, 1)
        dense: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]] = {}  # by the number of the step
        nothing = torch.empty(0, device="cpu")
        for (p, gradient), state, number in zip(found, states, torch.stack(counts).tolist(), strict=True):
            if gradient.is_sparse:
                self._step_rows(group, p, gradient, scale)
                continue
            self._flush(group, p)
            copy = self.copies.get(p, nothing)
            dense.setdefault(int(number), []).append((p, gradient, state["exp_avg"], state["exp_avg_sq"], copy))
        for number, tensors in dense.items():
            lists = map(list, zip(*tensors, strict=True))
            _lib.adam_step(*lists, *self._numbers(group, number), *self._constants(group), scale)
        increment_version([p for p, _ in found] + [self.copies[p] for p, _ in found if p in self.copies])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, also those of the copies."""
        if not set_to_none:
            super().zero_grad(set_to_none)
        else:  # what torch does around the same loop takes three times as long
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None
        for copy in self.copies.values():
            copy.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Add the copies' gradients to those of their parameters, in float32: between the parts of a larger batch."""
        for p, copy in self.copies.items():
            if copy.grad is not None:
                p.grad = copy.grad.to(p.dtype) if p.grad is None else p.grad.add_(copy.grad)
                copy.grad = None

    def catch_up(self, table: Tensor, rows: Tensor) -> None:
        """Bring rows of a table, int32 [n], repeated or not, to where a dense optimizer would have them."""
        if table in self._behind:
            self._catch_up(next(g for g in self.param_groups if any(p is table for p in g["params"])), table, rows)

    def flush(self) -> None:
        """Bring every row of every table to where a dense optimizer would have it."""
        for group in self.param_groups:
            for p in group["params"]:
                self._flush(group, p)

    def state_dict(self) -> dict[str, Any]:
        """Torch's, of Adam or AdamW, after a flush."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state of this class, or of torch's Adam or AdamW."""
        self._behind.clear()
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "step" in state:  # an int, or [1], in old ones
                state["step"] = torch.tensor(float(state["step"]), device="cpu")

    def _gradient(self, p: Tensor) -> Tensor | None:
        copy = self.copies.get(p)
        if copy is not None and copy.grad is not None:
            if p.grad is None:
                return copy.grad.contiguous()
            self.gather()
        if p.grad is None:
            return None
        if not p.grad.is_sparse:
            return p.grad.contiguous()
        rows = p.grad._indices()[0]  # ascending after one backward pass, though autograd forgets that it is
        return p.grad if p.grad.is_coalesced() or bool((rows.diff() > 0).all()) else p.grad.coalesce()

    def _step_rows(self, group: dict[str, Any], p: Tensor, gradient: Tensor, scale: float) -> None:
        if p in self._behind and self._behind[p].taken == _MOST_BEHIND:
            self._flush(group, p)
        if p not in self._behind:
            self._behind[p] = _Behind(
                torch.zeros(len(p), dtype=torch.int32), torch.empty(_MOST_BEHIND, 3, dtype=torch.float64)
            )
        rows = gradient._indices()[0].to(torch.int32)
        self._catch_up(group, p, rows)
        state, behind = self.state[p], self._behind[p]
        numbers = self._numbers(group, int(state["step"]))
        behind.steps[behind.taken] = torch.tensor(numbers, dtype=torch.float64)
        behind.taken += 1
        behind.last[rows.long()] = behind.taken
        _lib.adam_rows(
            *(p, rows, gradient._values(), state["exp_avg"], state["exp_avg_sq"]),
            *numbers,
            *self._constants(group),
            scale,
        )

    def _catch_up(self, group: dict[str, Any], p: Tensor, rows: Tensor | None) -> None:
        behind, state, (beta1, beta2, eps, l2) = self._behind[p], self.state[p], self._constants(group)
        felt = behind.taken
        if not l2 and 0 < beta1 < math.sqrt(beta2):
            bits = 55 if p.dtype == torch.float64 else 26
            felt = math.ceil(bits * math.log(2) / math.log(math.sqrt(beta2) / beta1))
        steps = behind.steps[: behind.taken]
        with torch.no_grad():
            _lib.adam_catch_up(
                p, rows, state["exp_avg"], state["exp_avg_sq"], behind.last, steps, felt, beta1, beta2, eps, l2
            )
        increment_version(p)

    def _flush(self, group: dict[str, Any], p: Tensor) -> None:
        if p in self._behind:
            self._catch_up(group, p, None)
            del self._behind[p]

    def _numbers(self, group: dict[str, Any], step: int) -> tuple[float, float, float]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        shrink = 1 - lr * group["weight_decay"] if self.decoupled else 1.0
        return lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), shrink

    def _constants(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        return (*group["betas"], group["eps"], 0.0 if self.decoupled else group["weight_decay"])


def _fake_norm(gradients: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float64)


def _fake_update(*_: Any) -> None:
    return None


torch.library.register_fake("bertnli::gradient_norm", _fake_norm)
for _name in ("adam_step", "adam_rows", "adam_catch_up"):
    torch.library.register_fake(f"bertnli::{_name}", _fake_update)
