"""The cross entropy of classes with weights and label smoothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.data.arguments import nearest
from bertnli.runtime.precision import autocast
from bertnli.tasks.base import Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.tagging import NOT_READ, BERTTagger
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts
from bertnli.training.options import TrainingOptions
from bertnli.training.steps import Objective, at_least_float32

_LOSSES = (BERTClassifier.loss, BERTTagger.loss)


def make_objective(model: Head, train: EncodedTexts, options: TrainingOptions, given: Objective | None) -> Objective:
    """What a run minimises: the objective given, else the task's own loss, as the options weight and smooth it.

    Raises ValueError where weights or smoothing are for another loss, and for weights of classes that do not exist.
    """
    if options.class_weights is None and not options.label_smoothing:
        return given or Objective()
    name = "label_smoothing" if options.class_weights is None else "class_weights"
    if given is not None:
        raise ValueError(f"{name} changes the loss of a task; an objective has its own")
    if type(model).loss not in _LOSSES:
        raise ValueError(
            f"{name} is for classification and tagging with their own loss, not for {type(model).__name__}"
        )
    Objective().check(model, train)
    assert train.labels is not None
    return ClassObjective(class_weights(options.class_weights, train.labels, model), options.label_smoothing)


def class_weights(given: str | Mapping[Any, float] | None, labels: Tensor, model: Head) -> Tensor:
    """The weight of each class, float64 [C], as `TrainingOptions.class_weights` describes them."""
    count, names = model.output.out_features, model.label_names or ()
    weights = torch.ones(count, dtype=torch.float64)
    if given == "balanced":
        read = labels[labels != NOT_READ]
        frequency = torch.bincount(read, minlength=count).double()
        return torch.where(frequency > 0, len(read) / (frequency.count_nonzero() * frequency), weights)
    for name, weight in given.items() if isinstance(given, Mapping) else ():
        known = [*names, *(str(i) for i in range(count))]
        if str(name) not in known:
            hint = nearest(str(name), known[:count], "classes")
            raise ValueError(f"class_weights has a class {name!r} that the model does not have; {hint}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"class_weights must be finite and at least 0; found {weight} for class {name!r}")
        weights[known.index(str(name)) % count] = weight
    return weights


class ClassObjective(Objective):
    """`F.cross_entropy(outputs, labels, weights, label_smoothing=label_smoothing)` of the classes of texts or words.

    weights          float64 [C], on the CPU
    label_smoothing  share of each target that is spread over all classes
    """

    weights: Tensor

    def __init__(self, weights: Tensor, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights, persistent=False)  # on the model's device
        self.host_weights = weights.clone()

    def total_weight(self, model: Head, batch: PackedBatch, num_targets: int) -> float:
        assert batch.labels is not None
        return float(self.host_weights[batch.labels[batch.labels != NOT_READ]].sum())

    def forward(self, model: Head, batch: PackedBatch, features: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        outputs = model(batch) if features is None else model.head(features)
        labels = batch.labels
        assert labels is not None
        with autocast(outputs.device, False):
            outputs = at_least_float32(outputs)
            labels = labels if len(labels) == len(outputs) else labels[labels != NOT_READ]
            loss = F.cross_entropy(
                outputs, labels, self.weights.to(outputs), ignore_index=NOT_READ, reduction="sum",
                label_smoothing=self.label_smoothing,
            )  # fmt: skip
            return loss, model.num_correct(outputs.detach(), batch)
