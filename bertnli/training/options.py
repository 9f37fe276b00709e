"""The options of a training run."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral
from typing import Any

from bertnli.runtime.precision import TRAINING_PRECISIONS

OPTIMIZERS = ("adamw", "adam")


def parse_freeze(text: str) -> str | int | None:
    """The value of `freeze` for a word of the command line."""
    return None if text == "none" else int(text) if text.isdigit() else text


def _option(default: Any, of: Callable[[str], Any], text: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field with its default and what a command-line flag needs: type, help and choices."""
    return field(default=default, metadata={"help": text, "choices": choices, "type": of})


@dataclass(frozen=True)
class TrainingOptions:
    """How `fit` trains (defaults in brackets).

    epochs         passes over the training examples (3)
    batch_size     examples per forward pass (32, unless `batch_tokens` is given)
    batch_tokens   maximum tokens per forward pass, instead of `batch_size`: bounds time and memory (None)
    accumulate     forward passes per optimizer step; the loss is the mean over the targets of all of them (1)
    lr             peak learning rate (5e-5)
    optimizer      "adamw" or "adam" ("adamw")
    weight_decay   weight decay of all parameters but biases and LayerNorms (0.01)
    warmup         share of the steps with linear warm-up; then linear decay to 0 (0.06)
    max_grad_norm  gradient norm to clip to; 0 or None disables clipping (1.0)
    freeze         "embeddings", "encoder", or a number k for the embeddings and the lowest k layers (None). Frozen
                   modules run in eval mode without a backward pass. A wholly frozen encoder runs once, and its vectors
                   are kept if they take at most 2 GiB
    precision      "fp32" or "bf16", which keeps weights, statistics and sums in float32 ("fp32")
    cuda_graphs    launch steps as CUDA graphs: needs one process on a GPU and accumulate=1; a step's activations are in
                   memory twice. None uses them where possible for heads of this package (None). True raises ValueError
                   where impossible; the loss of a custom head must ignore padding, see `Head.ignored`
    seed           seed of shuffling and dropout; call torch.manual_seed before building a new head (0)
    keep_best      end with the weights of the epoch with the best dev score, the head's `metric`; of equal epochs the
                   first (True). Without dev data the last epoch's weights stay

    Raises ValueError for a value out of its range.
    """

    epochs: int = _option(3, int, "passes over the training examples")
    batch_size: int | None = _option(
        None, int, "examples per forward pass (default: 32, unless --batch-tokens is given)"
    )
    batch_tokens: int | None = _option(None, int, "maximum tokens per forward pass, instead of --batch-size")
    accumulate: int = _option(1, int, "forward passes per optimizer step")
    lr: float = _option(5e-5, float, "peak learning rate")
    optimizer: str = _option("adamw", str, "optimizer", OPTIMIZERS)
    weight_decay: float = _option(0.01, float, "weight decay of all parameters but biases and LayerNorms")
    warmup: float = _option(0.06, float, "share of the steps with linear warm-up, then linear decay to 0")
    max_grad_norm: float | None = _option(1.0, float, "clip the gradient norm to this value; 0 disables clipping")
    freeze: str | int | None = _option(
        None,
        parse_freeze,
        "parameters that are not trained: none, embeddings, encoder, or a number k for the embeddings and the lowest "
        "k layers (default: none)",
    )
    precision: str = _option(
        "fp32",
        str,
        "precision of matrix products; bf16 is faster on GPUs and on CPUs with AVX512_BF16 or AMX, and trains in fp32 "
        "on x86 CPUs without AVX-512",
        TRAINING_PRECISIONS,
    )
    cuda_graphs: bool | None = _option(None, bool, "launch steps as CUDA graphs (default: where they are possible)")
    seed: int = _option(0, int, "seed of weight initialisation, shuffling and dropout")
    keep_best: bool = _option(
        True, bool, "restore the weights of the epoch with the best dev score; no effect without dev data (default: on)"
    )

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError(
                f"a batch has either batch_size={self.batch_size} examples or batch_tokens={self.batch_tokens} tokens; "
                "give one of the two"
            )
        for name in ("epochs", "batch_size", "batch_tokens", "accumulate"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, Integral) or number < 1):
                raise ValueError(f"{name} must be at least 1, an integer; found {number!r}")
        for name in ("lr", "weight_decay", "max_grad_norm"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"{name} must be at least 0; found {number}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be a share of the steps, from 0 to 1; found {self.warmup}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie between 0 and 2**32 - 1; found {self.seed}")
        for name, choices in (("optimizer", OPTIMIZERS), ("precision", TRAINING_PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}; found {getattr(self, name)!r}")
        depth = self.freeze
        if isinstance(depth, bool) or (depth not in (None, "embeddings", "encoder") and not isinstance(depth, int)):
            raise ValueError(
                f'freeze must be None (--freeze none), "embeddings", "encoder" or a number of layers; found {depth!r}'
            )

    @property
    def examples_per_batch(self) -> int | None:
        """Examples per forward pass; None where `batch_tokens` counts tokens instead."""
        return self.batch_size or (32 if self.batch_tokens is None else None)

    def changed(self, changes: dict[str, Any]) -> TrainingOptions:
        """These options with some replaced by name. Raises TypeError for an unknown name, and names the nearest."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}"
                raise TypeError(f"training has no option {name!r}; {hint}")
        return replace(self, **changes)

    def key(self) -> dict[str, Any]:
        """What two runs must have in common for one to continue the other: all that decides the result."""
        key = asdict(self) | {"batch_size": self.examples_per_batch, "max_grad_norm": self.max_grad_norm or None}
        del key["cuda_graphs"]
        return key
