"""Which modules the packed layers may compute by their parameters alone, without calling them."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle

from bertnli import ops


class CountsReplacements(nn.Module):
    """A module whose children may be computed without being called. It counts, in all instances together, how often a
    child is replaced, so that what was made ready of the old one can be dropped."""

    replacements: ClassVar[int] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", ()):
            CountsReplacements.replacements += 1
        super().__setattr__(name, value)


def changes_seen() -> tuple[int, int]:
    """Two numbers that are the same as before if since then no child was replaced and no hook registered."""
    return CountsReplacements.replacements, RemovableHandle.next_id


def why_not_plain(module: nn.Module | None, kind: type[nn.Module]) -> str | None:
    """Why a call of `module` may differ from what `kind` computes with its parameters, to follow the module's name.

    None for an unmodified module of exactly that class: no hooks, no parametrization, no `forward` of its own, and no
    parameter that is missing or of a tensor subclass (a quantized or distributed one).
    """
    if type(module) is not kind:
        return f"is a {type(module).__name__}, not a {kind.__name__}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if "forward" in module.__dict__:
        return "has a `forward` of its own"
    if module._compiled_call_impl is not None:
        return "is compiled"
    for name, parameter in module._parameters.items():
        if parameter is None:
            return f"has no {name}"
        if type(parameter) is not nn.Parameter and hasattr(parameter, "__tensor_flatten__"):
            return f"has a {name} that is a {type(parameter).__name__}"
    return None


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """True if a layer may compute with the module's parameters instead of calling it: see `why_not_plain`."""
    return why_not_plain(module, kind) is None and not _has_any_global_hook()


def is_plain_table(embedding: nn.Module, ids: Tensor) -> bool:
    """True if rows of the embedding's weight, with their gradient, are what a call gives for the ids."""
    if not is_plain(embedding, nn.Embedding):
        return False
    embedding = cast(nn.Embedding, embedding)
    if embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return False
    # The row `padding_idx` gets no gradient.
    padding = embedding.padding_idx
    if padding is None or not (torch.is_grad_enabled() and embedding.weight.requires_grad):
        return True
    return not torch.compiler.is_compiling() and not bool((ids == padding).any())


def dropout_p(dropout: nn.Module) -> float | None:
    """The probability that an operator may apply in place of the module; None if the module must be called."""
    if is_plain(dropout, nn.Dropout):
        return cast(nn.Dropout, dropout).p if dropout.training else 0.0
    return 0.0 if is_plain(dropout, nn.Identity) else None


def dropped(dropout: nn.Module, x: Tensor) -> Tensor:
    """dropout(x); a plain module draws from the generator of `ops.drawing_from`, where there is one."""
    generator, p = ops.generator_for(x), dropout_p(dropout)
    if generator is None or p is None or not 0 < p < 1 or not x.numel():
        return cast(Tensor, dropout(x))
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)  # as nn.Dropout does


def linear(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x weight^T, and the bias, which is left to be added; all of the layer and None if it has to be called."""
    if is_plain(layer, nn.Linear):
        return ops.linear(x, cast(nn.Linear, layer).weight), cast(nn.Linear, layer).bias
    return call(layer, x), None


def call(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), of x's dtype unless under autocast. The module's parameters may have other dtypes, as they have while
    training in bf16 replaces matrices by copies."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return cast(Tensor, module(x))
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(device, x.dtype, is_half and any(p.dtype != x.dtype for p in module.parameters())):
        return cast(Tensor, module(x).to(x.dtype))
