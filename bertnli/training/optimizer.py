"""Optimizers of training runs, and the hooks that a step calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from bertnli.encoder.bert import BERTEncoder
from bertnli.runtime.distributed import rank_and_size
from bertnli.runtime.precision import autocast, uses_bf16
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch
from bertnli.training.adam import Adam
from bertnli.training.options import TrainingOptions


class TrainingOptimizer:
    """One of torch's optimizers as a training run uses it:

    with optimizer.epoch():
        for each step:
            optimizer.set_lr(lr)
            for each batch of the step:
                optimizer.before_forward(batch)
                with optimizer.autocast(): forward
                backward
                optimizer.between_batches()    # not after the last batch
            optimizer.clip_and_step()          # leaves no gradients

    Between two steps, `with optimizer.masters():` has the parameters themselves in the model, to save them, and
    `with optimizer.up_to_date():` has them all as after the epoch, to evaluate them.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], options: TrainingOptions
    ) -> None:
        self.optimizer, self.parameters, self.device = optimizer, parameters, parameters[0].device
        self.bf16, self.max_grad_norm = uses_bf16(self.device, options.precision), options.max_grad_norm

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Within it steps are taken; after it the parameters are up to date and can be evaluated and saved."""
        yield

    @contextmanager
    def masters(self) -> Iterator[None]:
        """Run the block, between two steps, with the parameters that are updated in the model."""
        yield

    @contextmanager
    def up_to_date(self) -> Iterator[None]:
        """Run the block, between two steps, with parameters that can be evaluated."""
        yield

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            own = lr * group.get("lr_factor", 1)
            group["lr"] = group["lr"].fill_(own) if isinstance(group["lr"], torch.Tensor) else own

    def before_forward(self, batch: PackedBatch) -> None:
        """Make the parameters that the batch reads ready to be read."""

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return autocast(self.device, self.bf16)

    def between_batches(self) -> None:
        """Make room for the gradients of another batch of the same step."""

    def clip_and_step(self) -> None:
        """Clip the gradient norm, update the parameters and forget the gradients."""
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state between two steps; taking it changes nothing."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of any TrainingOptimizer of a run with the same options."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


class LazyTrainingOptimizer(TrainingOptimizer):
    """bertnli's Adam on one CPU process: it clips by itself, and updates only the embedding rows of each batch.

    In bf16 the matrices of the encoder's layers are bfloat16 copies during an epoch, so that all activations between
    the embeddings and the head are bfloat16; tables, vectors, statistics and what the optimizer updates stay float32.
    """

    optimizer: Adam

    def __init__(
        self, optimizer: Adam, parameters: list[nn.Parameter], options: TrainingOptions, encoder: BERTEncoder
    ) -> None:
        super().__init__(optimizer, parameters, options)
        self.encoder = encoder
        self.swapped: list[tuple[nn.Linear, Tensor, nn.Parameter]] = []  # layers, masters and copies of an epoch

    @contextmanager
    def epoch(self) -> Iterator[None]:
        embedding = self.encoder.token_embedding
        sparse = getattr(embedding, "sparse", False)  # an adapter in its place has none
        layers = [m for m in self.encoder.blks.modules() if self.bf16 and isinstance(m, nn.Linear)]
        self.swapped = [(m, m.weight, _bf16_copy(m.weight)) for m in layers]
        self.optimizer.copies = {master: copy for _, master, copy in self.swapped if master.requires_grad}
        try:
            embedding.sparse = True
            self._put(copies=True)
            yield
        finally:
            self._put(copies=False)
            self.optimizer.copies, self.swapped = {}, []
            embedding.sparse = sparse
            self.optimizer.flush()

    def _put(self, copies: bool) -> None:
        """Put the bfloat16 copies or their masters into the layers."""
        for layer, master, copy in self.swapped:
            layer.weight = cast(nn.Parameter, copy if copies else master)

    @contextmanager
    def masters(self) -> Iterator[None]:
        try:
            self._put(copies=False)
            yield
        finally:
            self._put(copies=True)

    @contextmanager
    def up_to_date(self) -> Iterator[None]:
        self.optimizer.flush()
        with self.masters():
            yield

    def before_forward(self, batch: PackedBatch) -> None:
        self.optimizer.catch_up(self.encoder.token_embedding.weight, batch.input_ids)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, False)

    def between_batches(self) -> None:
        self.optimizer.gather()

    def clip_and_step(self) -> None:
        self.optimizer.step()
        self.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.snapshot()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_tables(state.get("tables", {}))


def _bf16_copy(p: Tensor) -> nn.Parameter:
    return nn.Parameter(p.detach().bfloat16(), p.requires_grad)


def make_optimizer(
    model: Head, objective: nn.Module, options: TrainingOptions, capturable: bool = False
) -> TrainingOptimizer:
    """An optimizer of the parameters of model and objective that require gradients; biases and LayerNorms do not decay.

    capturable  steps are captured as CUDA graphs: the learning rate is a tensor on the device
    """
    named = [*model.named_parameters(), *objective.named_parameters()]
    parameters = [p for _, p in named if p.requires_grad]
    spared = {p for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    spared |= {p for name, p in named if name.endswith(".bias")}
    depths = _depths(model) if options.layer_decay != 1 else {}
    groups = [
        {
            "params": [p for p in parameters if (p in spared) == spares and depths.get(p, 0) == depth],
            "weight_decay": 0.0 if spares else options.weight_decay,
            "lr_factor": options.layer_decay**depth,
        }
        for depth in sorted({0, *depths.values()})
        for spares in (False, True)
    ]
    groups = [g for g in groups if g["params"]]
    device = model.encoder.pos_embedding.device
    if device.type == "cpu" and rank_and_size()[1] == 1:
        decoupled, clip = options.optimizer == "adamw", options.max_grad_norm or None
        adam = Adam(groups, lr=options.lr, decoupled=decoupled, max_grad_norm=clip)
        return LazyTrainingOptimizer(adam, parameters, options, model.encoder)
    kind: type[torch.optim.Adam] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.optimizer]
    if not capturable:
        return TrainingOptimizer(kind(groups, lr=options.lr, fused=True), parameters, options)
    for group in groups:
        group["lr"] = torch.tensor(options.lr, device=device)
    optimizer = kind(groups, fused=True, capturable=True)
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps of each size run uncaptured
    return TrainingOptimizer(optimizer, parameters, options)


def _depths(model: Head) -> dict[nn.Parameter, int]:
    """How many layers below the head each parameter of the encoder is: 1 in the last block, most in the embeddings."""
    blocks = list(model.encoder.blks)
    depths = dict.fromkeys(model.encoder.parameters(), len(blocks) + 1)
    for i, block in enumerate(blocks):
        depths |= dict.fromkeys(block.parameters(), len(blocks) - i)
    return depths
