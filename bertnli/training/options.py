"""The options of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from bertnli.data.arguments import choice, integer, nearest, number, string, switch
from bertnli.runtime import TRAINING_PRECISIONS
from bertnli.training.schedule import SCHEDULES

OPTIMIZERS = ("adamw", "adam")
_ONLY_WHEN = ("cuda_graphs", "epochs", "patience", "min_delta", "save_steps", "save_minutes")  # see `key`


def parse_freeze(text: str) -> str | int | None:
    """The value of `freeze` for a word of the command line."""
    return None if text == "none" else int(text) if text.isdigit() else text


def parse_class_weights(text: str) -> str | dict[str, float] | None:
    """The value of `class_weights` for a word of the command line: none, balanced, or NAME=WEIGHT,NAME=WEIGHT."""
    if text in ("none", "balanced"):
        return None if text == "none" else text
    try:
        return {name: float(weight) for name, weight in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError:
        raise ValueError(f"expected balanced or NAME=WEIGHT,NAME=WEIGHT; found {text!r}") from None


def _option(
    default: Any,
    of: Callable[[str], Any],
    text: str,
    choices: tuple[str, ...] | None = None,
    low: int | None = None,
    high: float | None = None,
) -> Any:
    """A field with its default and what a command-line flag needs: type, help and choices. Without `low` and `high` an
    integer is at least 1, another number at least 0."""
    limits = {name: limit for name, limit in (("low", low), ("high", high)) if limit is not None}
    return field(default=default, metadata={"help": text, "choices": choices, "type": of, "limits": limits})


def _checked(option: Field[Any], value: Any) -> Any:
    """The value in the option's type; Python's numbers for those of numpy. Raises for values of other types and out of
    the option's limits."""
    kind, choices, limits = (option.metadata[key] for key in ("type", "choices", "limits"))
    if value is None and "None" in str(option.type):
        return None
    if choices is not None:
        return choice(value, option.name, choices)
    if kind is int:
        return integer(value, option.name, **({"low": 1} | limits))
    if kind is float:
        return number(value, option.name, **({"low": 0} | limits))
    return {bool: switch, str: string}[kind](value, option.name) if kind in (bool, str) else value


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
    warmup         share of the steps with linear warm-up (0.06)
    schedule       learning rate after the warm-up: "linear" or "cosine" decay to 0, or "constant" ("linear")
    layer_decay    factor of the learning rate from each layer to the one below; the head has the full rate (1.0)
    max_grad_norm  gradient norm to clip to; 0 or None disables clipping (1.0)
    freeze         "embeddings", "encoder", or a number k for the embeddings and the lowest k layers (None). Frozen
                   modules run in eval mode without a backward pass. A wholly frozen encoder runs once, and its vectors
                   are kept if they take at most 2 GiB
    class_weights  weight of each class in the loss, {name or index: weight}, 1 for the others; "balanced" is inversely
                   proportional to the class's frequency. The loss is a weighted mean, as PyTorch's (None)
    label_smoothing
                   share of each target that is spread over all classes (0.0). Both are for heads with classes
    precision      "fp32" or "bf16", which keeps weights, statistics and sums in float32 ("fp32")
    cuda_graphs    launch steps as CUDA graphs: needs one process on a GPU and accumulate=1; a step's activations are in
                   memory twice. None uses them where possible for heads of this package (None). True raises ValueError
                   where impossible; the loss of a custom head must ignore padding, see `Head.ignored`
    seed           seed of shuffling and dropout; call torch.manual_seed before building a new head (0)
    metric         dev figure that decides which weights are best: any number that `evaluate` gives. Of loss, mse and
                   mae lower is better, of others higher (the head's `metric`)
    eval_steps     steps between evaluations on the dev data, beside that after each epoch (None)
    patience       evaluations without a better `metric` after which training stops (None: it does not)
    min_delta      smallest change of `metric` that counts as better for `patience` (0.0)
    keep_best      end with the weights of the best evaluation; of equal ones the first (True). Without dev data the
                   last weights stay
    save_steps     steps between two writes of the state file, beside that after each epoch (None)
    save_minutes   minutes between two writes of the state file; 0 or None disables them (10.0)

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
    warmup: float = _option(0.06, float, "share of the steps with linear warm-up", high=1)
    schedule: str = _option("linear", str, "learning rate after the warm-up: decay to 0, or constant", SCHEDULES)
    layer_decay: float = _option(
        1.0, float, "factor of the learning rate from each layer to the one below; the head has the full rate", high=1
    )
    max_grad_norm: float | None = _option(1.0, float, "clip the gradient norm to this value; 0 disables clipping")
    freeze: str | int | None = _option(
        None,
        parse_freeze,
        "parameters that are not trained: none, embeddings, encoder, or a number k for the embeddings and the lowest "
        "k layers (default: none)",
    )
    class_weights: str | Mapping[Any, float] | None = _option(
        None,
        parse_class_weights,
        "weight of each class in the loss: balanced (inversely proportional to its frequency), or NAME=WEIGHT,... with "
        "1 for the others (default: none)",
    )
    label_smoothing: float = _option(0.0, float, "share of each target that is spread over all classes", high=1)
    precision: str = _option(
        "fp32",
        str,
        "precision of matrix products; bf16 is faster on GPUs and on CPUs with AVX512_BF16 or AMX, and trains in fp32 "
        "on x86 CPUs without AVX-512",
        TRAINING_PRECISIONS,
    )
    cuda_graphs: bool | None = _option(None, bool, "launch steps as CUDA graphs (default: where they are possible)")
    seed: int = _option(0, int, "seed of weight initialisation, shuffling and dropout", low=0, high=2**32 - 1)
    metric: str | None = _option(
        None, str, "dev figure that decides which weights are best, such as loss or macro_f1 (default: the task's own)"
    )
    eval_steps: int | None = _option(None, int, "steps between evaluations, beside that after each epoch")
    patience: int | None = _option(
        None, int, "evaluations without a better metric after which training stops (default: no early stopping)"
    )
    min_delta: float = _option(0.0, float, "smallest change of the metric that counts as better for --patience")
    keep_best: bool = _option(
        True, bool, "restore the weights of the best evaluation; no effect without dev data (default: on)"
    )
    save_steps: int | None = _option(None, int, "steps between writes of the state, beside that after each epoch")
    save_minutes: float | None = _option(10.0, float, "minutes between writes of the state; 0 disables them")

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError(
                f"a batch has either batch_size={self.batch_size} examples or batch_tokens={self.batch_tokens} tokens; "
                "give one of the two"
            )
        for option in fields(self):
            object.__setattr__(self, option.name, _checked(option, getattr(self, option.name)))
        if not self.layer_decay:
            raise ValueError("layer_decay must be above 0; found 0")
        if self.label_smoothing == 1:
            raise ValueError("label_smoothing must be below 1; found 1")
        weights = self.class_weights
        if weights not in (None, "balanced") and not isinstance(weights, Mapping):
            raise ValueError(f'class_weights must be None, "balanced" or {{class: weight}}; found {weights!r}')
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
                raise TypeError(f"training has no option {name!r}; {nearest(name, known, 'options')}")
        return replace(self, **changes)

    def key(self) -> dict[str, Any]:
        """What two runs must have in common for one to continue the other: all that decides the result, but not how
        long training goes on."""
        key = asdict(self) | {"batch_size": self.examples_per_batch, "max_grad_norm": self.max_grad_norm or None}
        return {name: value for name, value in key.items() if name not in _ONLY_WHEN}
