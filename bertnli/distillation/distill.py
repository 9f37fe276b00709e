"""Distillation: a small student learns from a large teacher's outputs and vectors beside the labels.

Sources: Hinton, Vinyals and Dean 2015 (soft labels); Sun et al. 2019 (vectors of the last layer and of inner ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bertnli.distillation.objective import (
    DistillationLoss,
    DistillationObjective,
    TeacherTargets,
    read_vectors,
    watched_layers,
)
from bertnli.inference.predict import check_labels, run_batches, tokens_per_sequence
from bertnli.inference.session import InferenceSession
from bertnli.runtime.cuda_graphs import is_builtin
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts, encoded_texts
from bertnli.text.tokenizer import Tokenizer, Truncation
from bertnli.training.history import History
from bertnli.training.loop import fit
from bertnli.training.options import TrainingOptions
from bertnli.training.resume import fingerprint

_MAX_DEVICE_BYTES = 2 << 30  # of the teacher's targets; more of them stay on the CPU


def distill(
    teacher: Head,
    teacher_tokenizer: Tokenizer,
    student: Head,
    tokenizer: Tokenizer,
    train: Any,
    dev: Any = None,
    options: TrainingOptions | None = None,
    *,
    unlabelled: Any = None,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
    temperature: float = 2.0,
    hard: float = 0.5,
    soft: float = 0.5,
    hidden: float = 0.1,
    hidden_layers: Sequence[int] = (),
    **changes: Any,
) -> History:
    """Train `student` in place, on the labels and on what the teacher says of the same examples.

    The loss is a mean over targets; DistillationLoss says what its weights `hard`, `soft` and `hidden`, `temperature`
    and `hidden_layers` mean. The teacher runs once over all examples, in eval mode; its outputs, and with `hidden` its
    vectors, are kept for each token that its head reads.

    train, dev  what the task's reader gives
    unlabelled  further examples without labels
    max_len     most tokens per sequence (default: the teacher's)
    options     see TrainingOptions; each, and the other arguments of `fit`, can be given by keyword. CUDA graphs need a
                head that reads one token per sequence, and at most 2 GiB of the teacher's outputs and vectors

    Raises ValueError for heads of different tasks or classes, for heads with a `forward` of their own, for layers that
    do not exist or are frozen, for `cuda_graphs=True` where graphs are not possible, and where the student's head would
    read other tokens than the teacher's: that of question answering reads all tokens, which must be the same.
    """
    loss = DistillationLoss(temperature, hard, soft, hidden, tuple(hidden_layers))
    fit_arguments = {name: changes.pop(name) for name in _FIT_ARGUMENTS if name in changes}
    options = (options or TrainingOptions()).changed(changes)
    _check_models(teacher, student, loss, options)
    max_len = min(teacher.sequence_len(max_len), student.config.max_len)
    parts = [data for data in (train, unlabelled) if data is not None]
    seen = [encoded_texts(teacher.encode(teacher_tokenizer, data, max_len, truncation), "") for data in parts]
    read = [encoded_texts(student.encode(tokenizer, data, max_len, truncation), "") for data in parts]
    dev = None if dev is None else student.encode(tokenizer, dev, max_len, truncation)
    check_labels(read[0], "train", student)
    if dev is not None:
        check_labels(encoded_texts(dev, "dev"), "dev", student)
    examples, teacher_examples = _concatenated(read), _concatenated(seen)
    counts = _tokens_read(student, examples, teacher, teacher_examples)

    by_sequence, options = _graph_options(student, teacher, len(examples), loss, options)
    values = _teacher_values(teacher, teacher_examples, loss, options, by_sequence)
    objective = DistillationObjective(student, read[0], TeacherTargets(values, counts, by_sequence), loss)
    assert read[0].labels is not None
    objective.settings["taught"] = fingerprint([*teacher.parameters(), read[0].labels])
    return fit(student, examples, dev, options, objective=objective, **fit_arguments)


_FIT_ARGUMENTS = ("device", "progress", "state_file", "callbacks")


def _check_models(teacher: Head, student: Head, loss: DistillationLoss, options: TrainingOptions) -> None:
    if (student.task, student.label_names) != (teacher.task, teacher.label_names):
        raise ValueError("teacher and student must be heads of the same task and classes")
    for name, model in (("teacher", teacher), ("student", student)):
        if type(model).forward is not Head.forward:
            raise ValueError(f"the {name} has a `forward` of its own; distill calls `features` and `head` instead")
    layers = loss.hidden_layers
    if layers and not len(layers) < student.config.num_layers:
        raise ValueError(f"the student has {student.config.num_layers - 1} layers before its last for hidden_layers")
    if bad := [i for i in layers if not 0 <= i < teacher.config.num_layers - 1]:
        raise ValueError(f"hidden_layers are 0 to {teacher.config.num_layers - 2} of the teacher, not {bad[0]}")
    if layers and not loss.hidden:
        raise ValueError("hidden_layers need `hidden` above 0")
    if layers and options.freeze in ("encoder", student.config.num_layers):
        raise ValueError(f"hidden_layers are for layers that learn, and freeze={options.freeze!r} freezes all")


def _concatenated(parts: Sequence[EncodedTexts]) -> EncodedTexts:
    """The examples of all parts. Labels only if they are labels of tokens, which say which tokens are read."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat([part.lengths for part in parts]).cumsum(0)])
    by_token = [part.labels for part in parts if part.labels is not None and part.labels.shape == part.ids.shape]
    return EncodedTexts(
        torch.cat([part.ids for part in parts]),
        offsets,
        torch.cat([part.first_lens for part in parts]),
        torch.cat(by_token) if len(by_token) == len(parts) else None,
        pad_id=parts[0].pad_id,
        max_len=parts[0].max_len,
    )


def _tokens_read(student: Head, examples: EncodedTexts, teacher: Head, teacher_examples: EncodedTexts) -> Tensor:
    """How many tokens of each example the student's head reads, int64 [N]. ValueError if the teacher's reads others."""
    counts, teacher_counts = tokens_per_sequence(student, examples), tokens_per_sequence(teacher, teacher_examples)
    # Long sentences of words may be split elsewhere into sequences; the words are the same.
    words = examples.labels is not None
    if (counts.sum() != teacher_counts.sum()) if words else not torch.equal(counts, teacher_counts):
        raise ValueError("the student's tokens are not the teacher's: prune no token of the texts (min_freq=1)")
    return counts


def _graph_options(
    student: Head, teacher: Head, num_examples: int, loss: DistillationLoss, options: TrainingOptions
) -> tuple[bool, TrainingOptions]:
    """TeacherTargets.by_sequence, and the options with CUDA graphs turned off if they need that and it is False."""
    graphs = False if options.cuda_graphs is None and not is_builtin(student) else options.cuda_graphs
    width = teacher.output.out_features + bool(loss.hidden) * teacher.config.num_hiddens * (1 + len(loss.hidden_layers))
    ignores = student.ignored is not None and (is_builtin(student) or graphs is True)
    by_sequence = student.pooled and ignores and num_examples * width * 4 <= _MAX_DEVICE_BYTES
    if graphs and not by_sequence:
        raise ValueError(
            "cuda_graphs needs a head that reads one token per sequence and whose loss ignores a label, and at most "
            f"{_MAX_DEVICE_BYTES >> 30} GiB of the teacher's outputs and vectors of all examples"
        )
    return by_sequence, replace(options, cuda_graphs=graphs if by_sequence else False)


def _teacher_values(
    teacher: Head, examples: EncodedTexts, loss: DistillationLoss, options: TrainingOptions, by_sequence: bool
) -> Tensor:
    """TeacherTargets.values, on the teacher's device if `by_sequence`, else on the CPU."""
    with watched_layers(teacher, loss.hidden_layers) as layer_outputs:
        session = InferenceSession(teacher, options.precision)

        def values(batch: PackedBatch) -> Tensor:
            layer_outputs.clear()
            vectors = read_vectors(teacher, batch, session.features(batch), layer_outputs)
            outputs = teacher.head(vectors[:, : teacher.config.num_hiddens])
            both = torch.cat([outputs, vectors] if loss.hidden else [outputs], 1).float()
            return both if by_sequence else both.cpu()

        return run_batches(
            session,
            examples,
            function=values,
            by_sequence=by_sequence and not loss.hidden_layers,  # hooks are not part of a graph
            cuda_graphs=False if options.cuda_graphs is False else None,  # the teacher may be on another device
        )
