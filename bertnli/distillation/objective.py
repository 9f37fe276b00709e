"""What a student is trained on: the labels, and its teacher's outputs and vectors of the same examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli.runtime.precision import autocast
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch, ragged_index
from bertnli.text.encoded import EncodedTexts
from bertnli.training.steps import Objective, at_least_float32


@dataclass(frozen=True)
class DistillationLoss:
    """Weights of the parts of the loss. Raises ValueError for a temperature that is not positive.

    hard           the task's own loss on the labels
    soft           divergence from the teacher's probabilities at `temperature`, times its square; where the outputs are
                   numbers, the squared difference
    hidden         mean squared difference between the vectors that the heads read, the student's projected to the
                   teacher's width by a linear layer that is trained too
    hidden_layers  layers of the teacher, from 0, that the student's first layers are compared with too, in order
    """

    temperature: float = 2.0
    hard: float = 0.5
    soft: float = 0.5
    hidden: float = 0.1
    hidden_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; found {self.temperature}")


@dataclass
class TeacherTargets:
    """What the teacher says of all examples, one row for each token that the heads read.

    values       float32 [R, C + H (1 + hidden_layers)]: its outputs, then its vectors, of the last layer first
    counts       int64 [N] on the CPU, the number of rows of each example
    by_sequence  True if there is one row for each example and `values` are on the student's device, so that a step
                 waits for nothing and can be captured as a CUDA graph
    """

    values: Tensor
    counts: Tensor
    by_sequence: bool

    def __post_init__(self) -> None:
        self.begins = self.counts.cumsum(0) - self.counts


@contextmanager
def watched_layers(model: Head, layers: Iterable[int]) -> Iterator[list[Tensor]]:
    """Run the block with a list to which these encoder layers append their outputs."""
    outputs: list[Tensor] = []
    hooks = [model.encoder.blks[i].register_forward_hook(lambda *call: outputs.append(call[-1])) for i in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def read_vectors(model: Head, batch: PackedBatch, features: Tensor, layer_outputs: list[Tensor]) -> Tensor:
    """[R, H (1 + layers)]: the features of each token that the head reads, then its vectors in the watched layers."""
    index = model.token_index(batch)
    inner = [x[: len(batch.input_ids)] if index is None else x[index] for x in layer_outputs]
    return torch.cat([features, *(x.to(features.dtype) for x in inner)], 1)


class DistillationObjective(Objective):
    """The mean over targets of a DistillationLoss.

    student   the model that will be trained
    labelled  the first of the training examples, with their labels; the others are unlabelled
    targets   what the teacher says of all training examples
    """

    uses_example_index = True

    def __init__(self, student: Head, labelled: EncodedTexts, targets: TeacherTargets, loss: DistillationLoss) -> None:
        super().__init__()
        assert labelled.labels is not None
        self.labelled, self.labels, self.targets, self.weights = labelled, labelled.labels, targets, loss
        self.settings = asdict(loss) | {"hidden_layers": list(loss.hidden_layers)}
        layers = 1 + len(loss.hidden_layers)
        width = (targets.values.shape[1] - student.output.out_features) // layers
        own, dtype = student.config.num_hiddens, student.output.weight.dtype
        self.project = nn.ModuleList(nn.Linear(own, width, dtype=dtype) for _ in range(layers) if loss.hidden)

    def check(self, model: Head, train: EncodedTexts) -> None:
        """Nothing: `distill` checks the labels, and the training data need not have any."""

    def forward(self, model: Head, batch: PackedBatch, features: Tensor | None = None) -> tuple[Tensor, None]:
        if features is None:
            with watched_layers(model, range(len(self.weights.hidden_layers))) as layer_outputs:
                features = read_vectors(model, batch, model.features(batch), layer_outputs)
        last, *inner = torch.split(features, model.config.num_hiddens, 1)
        projected = [layer(x) for layer, x in zip(self.project, (last, *inner), strict=False)]
        outputs = torch.cat([model.head(last), *projected], 1)
        with autocast(outputs.device, False):
            return self._loss(model, batch, at_least_float32(outputs)), None

    def _loss(self, model: Head, batch: PackedBatch, outputs: Tensor) -> Tensor:
        width, weights = model.output.out_features, self.weights
        outputs, targets = self._read(model, batch, outputs)
        scores, vectors = outputs[:, :width], outputs[:, width:]
        logits, teacher_logits = (model.logits(x, batch) for x in (scores, targets[:, :width]))
        if logits is None or teacher_logits is None:
            distance = (scores - targets[:, :width]).square()
        else:
            # Padding has minus infinity on both sides, and the difference would be NaN.
            logits, teacher_logits = (x.clamp(min=-1e30) / weights.temperature for x in (logits, teacher_logits))
            q, p = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
            divergence = F.kl_div(q, p, reduction="none", log_target=True).sum(-1, keepdim=True)
            distance = weights.temperature**2 * divergence.flatten(1)
        parts = [(weights.soft, distance)]
        if len(self.project):
            parts.append((weights.hidden, (vectors - targets[:, width:]).square()))
        if self.targets.by_sequence:
            padding = (_example_index(batch) < 0)[:, None]
            parts = [(weight, x.masked_fill(padding, 0)) for weight, x in parts]
        means = [weight * x.sum() / max(1, x.numel()) for weight, x in parts]  # sentences may be without words
        return model.num_targets(batch) * torch.stack(means).sum() + weights.hard * self._hard(model, batch, scores)

    def _read(self, model: Head, batch: PackedBatch, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the tokens that the head reads, and the teacher's of the same."""
        index, targets = _example_index(batch), self.targets
        if targets.by_sequence:
            if not targets.values.device == self.labels.device == batch.device:  # in the first step
                targets.values, self.labels = targets.values.to(batch.device), self.labels.to(batch.device)
            return outputs, targets.values[index.clamp(min=0)].to(outputs)
        index = index.cpu()
        values = targets.values[ragged_index(targets.begins[index], targets.counts[index])].to(outputs)
        if len(outputs) > len(values):  # a tagger's of all tokens, as in training on a GPU
            tokens = model.token_index(batch.to("cpu"))
            assert tokens is not None
            outputs = outputs[tokens.to(outputs.device)]
        return outputs, values

    def _hard(self, model: Head, batch: PackedBatch, scores: Tensor) -> Tensor | float:
        """The task's own loss, summed over the labelled examples."""
        index, count = _example_index(batch), len(self.labelled)
        if self.targets.by_sequence:
            assert model.ignored is not None
            labels = self.labels[index.clamp(0, count - 1)]
            unlabelled = ((index < 0) | (index >= count)).view(-1, *[1] * (labels.dim() - 1))
            return model.loss(scores, replace(batch, labels=labels.masked_fill(unlabelled, model.ignored)))
        index = index.cpu()
        known = index < count
        if not bool(known.any()):
            return 0.0
        labelled = self.labelled.batch(index[known]).to(scores.device)
        return model.loss(scores[known.repeat_interleave(self.targets.counts[index]).to(scores.device)], labelled)


def _example_index(batch: PackedBatch) -> Tensor:
    assert batch.example_index is not None
    return batch.example_index
