"""The random numbers of training runs: two runs in two threads do not disturb each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bertnli import ops

# Modules of torch that draw nothing.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_QUIET = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, *_CONTAINERS)
_turn = threading.RLock()


@dataclass(frozen=True)
class RandomNumbers:
    """generator    of the run; None where it draws from torch's default generators
    device       where the run computes
    """

    generator: torch.Generator | None
    device: torch.device

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed) if self.generator is None else self.generator.manual_seed(seed)

    def permutation(self, n: int) -> Tensor:
        """The numbers below n in random order, int64 [n]."""
        return torch.randperm(n, generator=self.generator)

    def state(self) -> list[Tensor]:
        """What `restore` takes, to draw the same numbers again."""
        if self.generator is not None:
            return [self.generator.get_state()]
        on_gpu = self.device.type == "cuda"
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if on_gpu else [])]

    def restore(self, state: list[Tensor]) -> None:
        """Continue as after `state()`, which may be of a run on another device: then what it lacks stays."""
        if self.generator is not None:
            self.generator.set_state(state[0])
            return
        torch.set_rng_state(state[0])
        if self.device.type == "cuda" and len(state) > 1:
            torch.cuda.set_rng_state(state[1], self.device)


@contextmanager
def random_numbers(device: torch.device, *modules: nn.Module) -> Iterator[RandomNumbers]:
    """Run a training run of the modules on a device; torch's default generators stay as they were.

    On the CPU, modules of this package draw from a generator of the run. Others, and all modules on a GPU, draw from
    torch's default generators, which threads share: there one run waits until another thread's has ended.
    """
    if device.type == "cpu" and not any(map(_may_draw, modules)):
        generator = torch.Generator()
        with ops.drawing_from(generator):
            yield RandomNumbers(generator, device)
        return
    with _turn, torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield RandomNumbers(None, device)


def _may_draw(model: nn.Module) -> bool:
    """Whether a module, as a whole, may draw random numbers in another way than this package does."""
    for module in model.modules():
        own = type(module).__module__.partition(".")[0] == "bertnli"
        dropouts = any(type(child) is nn.Dropout for child in module.children())  # `own` ones know `drawing_from`
        known = own or (type(module) in _QUIET and not dropouts) or type(module) is nn.Dropout
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if not known or any(hooks) or "forward" in vars(module):
            return True
    return type(model) is nn.Dropout
