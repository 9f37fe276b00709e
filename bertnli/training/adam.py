"""Adam and AdamW on the CPU that update only the embedding rows of a batch, with the result of the dense optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

_lib = torch.ops.bertnli
_MAX_SKIPPED = 4096  # steps after which all rows are brought up to date, which bounds the record of steps


@dataclass
class _LazyTable:
    """The steps of a table since all its rows were last up to date.

    done   int32 [rows], how many of the steps each row has done
    steps  float64 [_MAX_SKIPPED, 3], the `_factors` of each step
    taken  the number of steps
    """

    done: Tensor
    steps: Tensor
    taken: int = 0


class Adam(torch.optim.Optimizer):
    """`torch.optim.Adam` (or, with `decoupled`, `AdamW`) in one pass over the memory, with clipping inside.

    params         parameters or groups, as in torch; float32 or float64, contiguous, on the CPU
    decoupled      weight decay as in AdamW; False adds it to the gradient
    max_grad_norm  clip the norm of all gradients to this value, as `clip_grad_norm_` does; None disables clipping

    The attribute `copies`, {float32 parameter: its bfloat16 copy}, may be filled: each step takes the gradient from
    the copy's `.grad`, and writes the new value to the copy too.

    A two-dimensional parameter with a sparse gradient (of `nn.Embedding(sparse=True)`, which `fit` sets) is updated
    lazily: a step touches only the rows of the gradient. A dense optimizer moves the other rows too, because their
    moments are not zero. Here those steps are replayed when a row is next needed, therefore call

        optimizer.catch_up(table, rows)    before a forward pass that reads those rows
        optimizer.flush()                  before anything else reads the table, such as evaluation and saving

    `state_dict()` flushes by itself. The result is that of the dense optimizer to rounding: each skipped step is
    replayed with its own learning rate and decay, until the moments' contribution falls below rounding.

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
        self._tables: dict[Tensor, _LazyTable] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters without a gradient do not change."""
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
            values = [g._values() if g.is_sparse else g for _, pairs in work for _, g in pairs]
            scale = min(1.0, self.max_grad_norm / (float(_lib.gradient_norm(values)) + 1e-6))
        for group, pairs in work:
            if pairs:
                self._step_group(group, pairs, scale)
        return loss

    def _step_group(self, group: dict[str, Any], pairs: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """One step of the parameters of a group that have gradients, given with them.

        All dense tensors go to one operator: a step of few examples takes no longer than a hundred calls from Python.
        """
        states = [self.state[p] for p, _ in pairs]
        for (p, _), state in zip(pairs, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device="cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        counts = [state["step"] for state in states]
        torch._foreach_add_(counts, 1)
        dense: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]] = {}  # by the number of steps taken
        nothing = torch.empty(0, device="cpu")
        for (p, gradient), state, number in zip(pairs, states, torch.stack(counts).tolist(), strict=True):
            if gradient.is_sparse:
                self._step_rows(group, p, gradient, scale)
                continue
            self._flush(group, p)
            copy = self.copies.get(p, nothing)
            dense.setdefault(int(number), []).append((p, gradient, state["exp_avg"], state["exp_avg_sq"], copy))
        for number, tensors in dense.items():
            lists = map(list, zip(*tensors, strict=True))
            _lib.adam_step(*lists, *self._factors(group, number), *self._constants(group), scale)
        increment_version([p for p, _ in pairs] + [self.copies[p] for p, _ in pairs if p in self.copies])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters and of the copies."""
        if not set_to_none:
            super().zero_grad(set_to_none)
        else:  # torch's own method takes three times as long
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None
        for copy in self.copies.values():
            copy.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Add the copies' gradients to those of their parameters, in float32, before another backward pass."""
        for p, copy in self.copies.items():
            if copy.grad is not None:
                p.grad = copy.grad.to(p.dtype) if p.grad is None else p.grad.add_(copy.grad)
                copy.grad = None

    def catch_up(self, table: Tensor, rows: Tensor) -> None:
        """Bring rows of a table (int32 [n], repeats allowed) to the values of a dense optimizer."""
        if table in self._tables:
            self._catch_up(next(g for g in self.param_groups if any(p is table for p in g["params"])), table, rows)

    def flush(self) -> None:
        """Bring all rows of all tables to the values of a dense optimizer."""
        for group in self.param_groups:
            for p in group["params"]:
                self._flush(group, p)

    def state_dict(self) -> dict[str, Any]:
        """The state, in the layout of torch's Adam and AdamW, after a flush."""
        self.flush()
        return super().state_dict()

    def snapshot(self) -> dict[str, Any]:
        """The state without a flush, which would round differently: with the steps that each table's rows lack."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        tables = {i: self._tables[p] for i, p in enumerate(parameters) if p in self._tables}
        lacking = {i: {"done": t.done, "steps": t.steps[: t.taken].clone()} for i, t in tables.items()}
        return super().state_dict() | {"tables": lacking}

    def load_tables(self, tables: dict[int, dict[str, Tensor]]) -> None:
        """Load the part "tables" of a `snapshot`, after `load_state_dict` with the rest."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, saved in tables.items():
            steps, taken = torch.empty(_MAX_SKIPPED, 3, dtype=torch.float64), len(saved["steps"])
            steps[:taken] = saved["steps"]
            self._tables[parameters[i]] = _LazyTable(saved["done"], steps, taken)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class, or of torch's Adam or AdamW."""
        self._tables.clear()
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "step" in state:  # states of old torch versions have an int, or a tensor [1]
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
        rows = p.grad._indices()[0]  # ascending after one backward pass, but not marked coalesced
        return p.grad if p.grad.is_coalesced() or bool((rows.diff() > 0).all()) else p.grad.coalesce()

    def _step_rows(self, group: dict[str, Any], p: Tensor, gradient: Tensor, scale: float) -> None:
        if p in self._tables and self._tables[p].taken == _MAX_SKIPPED:
            self._flush(group, p)
        if p not in self._tables:
            self._tables[p] = _LazyTable(
                torch.zeros(len(p), dtype=torch.int32), torch.empty(_MAX_SKIPPED, 3, dtype=torch.float64)
            )
        rows = gradient._indices()[0].to(torch.int32)
        self._catch_up(group, p, rows)
        state, table = self.state[p], self._tables[p]
        factors = self._factors(group, int(state["step"]))
        table.steps[table.taken] = torch.tensor(factors, dtype=torch.float64)
        table.taken += 1
        table.done[rows.long()] = table.taken
        _lib.adam_rows(
            *(p, rows, gradient._values(), state["exp_avg"], state["exp_avg_sq"]),
            *factors,
            *self._constants(group),
            scale,
        )

    def _catch_up(self, group: dict[str, Any], p: Tensor, rows: Tensor | None) -> None:
        table, state, (beta1, beta2, eps, l2) = self._tables[p], self.state[p], self._constants(group)
        num_replayed = table.taken
        if not l2 and 0 < beta1 < math.sqrt(beta2):
            bits = 55 if p.dtype == torch.float64 else 26
            num_replayed = math.ceil(bits * math.log(2) / math.log(math.sqrt(beta2) / beta1))
        steps = table.steps[: table.taken]
        with torch.no_grad():
            _lib.adam_catch_up(
                p, rows, state["exp_avg"], state["exp_avg_sq"], table.done, steps, num_replayed, beta1, beta2, eps, l2
            )
        increment_version(p)

    def _flush(self, group: dict[str, Any], p: Tensor) -> None:
        if p in self._tables:
            self._catch_up(group, p, None)
            del self._tables[p]

    def _factors(self, group: dict[str, Any], step: int) -> tuple[float, float, float]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        shrink = 1 - lr * group["weight_decay"] if self.decoupled else 1.0
        return lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), shrink

    def _constants(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        return (*group["betas"], group["eps"], 0.0 if self.decoupled else group["weight_decay"])
