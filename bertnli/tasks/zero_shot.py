"""Classification into classes that a model was not trained on, by natural language inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bertnli.data.arguments import string, strings
from bertnli.tasks.classification import Prediction

Labels = str | Sequence[str] | Sequence[Sequence[str]]


def labels_of_texts(labels: Labels, num_texts: int) -> list[list[str]]:
    """The labels of each text: the same of all, be it a list or a string with commas, or a list for each text.

    Raises ValueError for no labels, equal ones, and for another number of lists than texts.
    """
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    labels = list(labels)
    if labels and not any(isinstance(label, str) for label in labels):
        if len(labels) != num_texts:
            raise ValueError(f"labels are {len(labels)} lists for {num_texts} texts; give one list, or one a text")
        found = [strings(some, f"labels[{i}]") for i, some in enumerate(labels)]
    else:
        found = [strings(labels, "labels")] * num_texts
    for i, some in enumerate(found):
        if not some or len(set(some)) < len(some):
            raise ValueError(f"the labels of text {i} must be one or more, all different; found {some}")
    return found


def make_pairs(texts: Sequence[str], labels: Sequence[Sequence[str]], template: str) -> list[list[str]]:
    """Premises and hypotheses: each text with each of its labels in the template.

    Raises ValueError for a template without a place for the label.
    """
    if string(template, "template").format("x") == template:
        raise ValueError(f"template must have {{}} in the label's place; found {template!r}")
    premises = [text for text, some in zip(texts, labels, strict=True) for _ in some]
    hypotheses = {label: template.format(label) for some in labels for label in some}
    return [premises, [hypotheses[label] for some in labels for label in some]]


def entailment_columns(label_names: Sequence[str] | None) -> tuple[int, int]:
    """The columns of entailment and of its opposite: the classes whose names begin so, for the opposite else the first
    or, if that is entailment, the last, as transformers' pipeline has it.

    Raises ValueError for a model without such a class.
    """
    names = [name.lower() for name in label_names or ()]
    entailment = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
    if entailment is None or len(names) < 2:
        raise ValueError(
            f"zero_shot needs a classifier with a class named entailment; its classes are {', '.join(names)}"
        )
    other = len(names) - 1 if entailment == 0 else 0
    return entailment, next((i for i, name in enumerate(names) if name.startswith("contra")), other)


def zero_shot_predictions(
    outputs: Tensor, labels: Sequence[Sequence[str]], columns: tuple[int, int], multi_label: bool
) -> list[Prediction]:
    """A prediction for each text.

    outputs        float32 [pairs, C], of `make_pairs`
    columns        of entailment and of its opposite
    multi_label    whether each label has a probability of its own, entailment against its opposite; one label has in
                   any case. Else the probabilities are the softmax of entailment over the text's labels
    """
    entailment, opposite = columns
    predictions = []
    for some, logits in zip(labels, outputs.split([len(some) for some in labels]), strict=True):
        if multi_label or len(some) == 1:
            probabilities = torch.sigmoid(logits[:, entailment] - logits[:, opposite])
        else:
            probabilities = logits[:, entailment].softmax(0)
        best = int(probabilities.argmax())
        predictions.append(Prediction(some[best], best, dict(zip(some, probabilities.tolist(), strict=True))))
    return predictions
