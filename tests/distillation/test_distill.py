"""Distillation: its loss, and learning from unlabelled examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_tasks import NAMES, PIECES, TASKS, questions, scores, teacher, texts, words
from torch import Tensor

from bertnli import (
    BERTClassifier,
    BERTModel,
    BERTRegressor,
    Callback,
    Head,
    PackedBatch,
    TextData,
    WordData,
    WordPieceTokenizer,
    fit,
    score,
)
from bertnli.distillation.distill import distill
from bertnli.distillation.student import make_student, pruned_tokenizer
from bertnli.text.encoded import encoded_texts


def divergence(target: torch.Tensor, score: torch.Tensor, temperature: float) -> float:
    """The Kullback-Leibler divergence of the probabilities at the temperature, times its square."""
    p, q = (target / temperature).softmax(-1), (score / temperature).softmax(-1)
    return temperature**2 * float((p * (p / q).log()).sum())


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_the_loss(task: str) -> None:
    """The loss of a batch is the sum over its examples of the label's loss and the distances of outputs and vectors."""
    torch.manual_seed(1)
    make, without = TASKS[task]
    big, full, data, more = teacher(task).eval(), WordPieceTokenizer(PIECES), make(6), make(4, 9)
    student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32).eval()
    calls: list[Any] = []
    options: dict[str, Any] = {
        "temperature": 3.0,
        "hard": 0.3,
        "soft": 0.7,
        "hidden": 0.2,
        "hidden_layers": [1],
        "epochs": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertnli.distillation.distill.fit", lambda *args, **kwargs: calls.append((args, kwargs)))
        distill(big, full, student, full, data, unlabelled=without(more), **options)
    ((_, examples, _, _), arguments) = calls[0]
    objective = arguments["objective"]
    found: dict[str, Tensor] = {}
    student.encoder.blks[0].register_forward_hook(lambda _, args, out: found.update(student=out))
    big.encoder.blks[1].register_forward_hook(lambda _, args, out: found.update(teacher=out))
    total, apart, units, read = 0.0, 0.0, 0, 0
    for i in range(10):
        one = (data if i < 6 else more)[i % 6 : i % 6 + 1]
        batch = encoded_texts(student.encode(full, one), "one").batch([0])
        own, target = student(batch), big(batch)
        rows = student.token_index(batch)
        rows = torch.arange(len(batch.input_ids)) if rows is None else rows
        n = student.num_targets(batch)
        units += n
        total += 0.3 * float(student.loss(own, batch)) if i < 6 else 0.0
        if task == "regression":
            total += 0.7 * float((own - target).square().sum())
        elif task == "qa":
            total += 0.7 * divergence(target.T, own.T, 3.0) / 2
        elif task == "multilabel":
            p, q = student.logits(target, batch), student.logits(own, batch)
            assert p is not None
            assert q is not None
            total += 0.7 * divergence(p[0], q[0], 3.0)
        else:
            total += 0.7 * divergence(target, own, 3.0)
        last = objective.project[0](student.features(batch)) - big.features(batch)
        inner = objective.project[1](found["student"][rows]) - found["teacher"][rows]
        apart += float(torch.cat([last, inner], 1).square().mean(1).sum())
        read += len(rows)
    total += 0.2 * apart / read * units
    batch = examples.batch([7, 2, 4, 9, 0, 1, 3, 8, 5, 6], example_index=True)
    assert objective.num_targets(student, batch) == units
    assert float(objective(student, batch)[0]) == pytest.approx(total, rel=1e-5)


def test_with_the_hard_loss_alone_it_is_fit() -> None:
    """With soft=hidden=0 a student is trained as without a teacher."""
    big, full, data = teacher(), WordPieceTokenizer(PIECES), texts(80)
    students = []
    for _ in range(2):
        torch.manual_seed(3)
        students.append(make_student(big, torch.arange(len(PIECES)), num_hiddens=32))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "progress": False}
    history = distill(big, full, students[0], full, data, data, hard=1, soft=0, hidden=0, **options)
    encoded = students[1].encode(full, data)
    wanted = fit(students[1], encoded, encoded, **options)
    assert history.losses == pytest.approx(wanted.losses, abs=1e-6)
    assert history.epochs[-1].dev_score == wanted.epochs[-1].dev_score
    assert history.epochs[-1].metric == "accuracy"


def test_a_student_learns_from_unlabelled_examples() -> None:
    """Unlabelled examples bring the student nearer to the teacher on new texts. The teacher does not change."""
    big, full = teacher(), WordPieceTokenizer(PIECES)
    data, dev = texts(500, 1), texts(200, 2)
    fit(big, big.encode(full, data), epochs=4, lr=1e-3, batch_size=16, progress=False)
    before = {name: value.clone() for name, value in big.state_dict().items()}
    wanted = score(big, big.encode(full, dev)).log_softmax(1)
    small, ids = pruned_tokenizer(full, [*data.first, *(data.second or ())])
    distances = []
    for unlabelled in (None, TextData.of(data.first, data.second)):
        torch.manual_seed(0)
        student = make_student(big, ids, num_hiddens=32, num_layers=2)
        options: dict[str, Any] = {
            "unlabelled": unlabelled,
            "epochs": 5,
            "lr": 2e-3,
            "batch_size": 16,
            "progress": False,
        }
        distill(big, full, student, small, data[:16], **options)
        found = score(student, student.encode(small, dev)).log_softmax(1)
        distances.append(float(torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)))
    assert distances[1] < 0.8 * distances[0], distances
    assert all(torch.equal(value, big.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("task", ["tagging", "qa"])
def test_students_of_tokens(task: str) -> None:
    """Unlabelled examples help taggers and question answering too."""
    make, without = TASKS[task]
    big, full = teacher(task), WordPieceTokenizer(PIECES)
    data, dev = make(300, 1), make(100, 2)
    fit(big, big.encode(full, data), epochs=4, lr=2e-3, batch_size=16, progress=False)
    wanted = score(big, big.encode(full, dev))
    distances = []
    for unlabelled in (None, without(data)):
        torch.manual_seed(0)
        student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32, num_layers=2)
        options: dict[str, Any] = {"epochs": 4, "lr": 2e-3, "batch_size": 16, "progress": False, "hidden_layers": [0]}
        history = distill(big, full, student, full, data[:16], dev, unlabelled=unlabelled, **options)
        assert history.epochs[-1].metric == student.metric
        distances.append(float((score(student, student.encode(full, dev)) - wanted).square().mean()))
    assert distances[1] < 0.8 * distances[0], distances


def test_custom_heads_see_only_labels() -> None:
    """The loss of a custom head need not ignore a label."""

    class Huber(BERTRegressor):
        def loss(self, outputs: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
            assert batch.labels is not None
            assert bool(batch.labels.isfinite().all())
            return torch.nn.functional.smooth_l1_loss(outputs, batch.labels.view_as(outputs), reduction="sum")

    big, full, data = Huber(teacher("regression")), WordPieceTokenizer(PIECES), scores(20)
    student = Huber(make_student(big, torch.arange(len(PIECES)), num_hiddens=32))
    more = TextData.of(data.first, data.second)
    history = distill(big, full, student, full, data, unlabelled=more, epochs=1, batch_size=7, progress=False)
    assert all(loss > 0 for loss in history.losses)  # no NaN


def test_targets_on_the_cpu_give_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets beyond the limit of device memory stay on the CPU."""
    big, full, data = teacher(), WordPieceTokenizer(PIECES), texts(30)
    more = TextData.of(data.second or [], data.first)
    losses = []
    for most in (2 << 30, 0):
        monkeypatch.setattr("bertnli.distillation.distill._MAX_DEVICE_BYTES", most)
        torch.manual_seed(0)
        student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
        options: dict[str, Any] = {"unlabelled": more, "epochs": 2, "batch_size": 7, "progress": False}
        losses.append(distill(big, full, student, full, data, **options).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match="cuda_graphs needs a head that reads one token"):
        distill(big, full, student, full, data, cuda_graphs=True)


def test_sentences_without_words() -> None:
    big, full = teacher("tagging"), WordPieceTokenizer(PIECES)
    student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
    data = WordData([[], ["red"], []], [[], [1], []], NAMES)
    losses = distill(big, full, student, full, data, epochs=1, batch_size=1, progress=False).losses
    assert sorted(losses)[:2] == [0, 0]
    assert sorted(losses)[2] > 0


def test_bad_arguments() -> None:
    full, data = WordPieceTokenizer(PIECES), texts(8)
    with pytest.raises(ValueError, match="same task and classes"):
        distill(teacher(), full, BERTRegressor(teacher()), full, data)

    class Doubled(BERTClassifier):
        def forward(self, inputs: Any) -> torch.Tensor:
            return 2 * super().forward(inputs)

    with pytest.raises(ValueError, match="the student has a `forward` of its own"):
        distill(teacher(), full, Doubled(BERTModel(teacher().config), 2, NAMES), full, data)
    with pytest.raises(ValueError, match="train has no labels"):
        distill(teacher(), full, teacher(), full, TextData.of(data.first, data.second))
    for layers, message in (([0, 1, 2], "student has 2 layers before its last"), ([2], "0 to 1 of the teacher, not 2")):
        with pytest.raises(ValueError, match=message):
            distill(teacher(), full, teacher(), full, data, hidden_layers=layers)
    with pytest.raises(ValueError, match="hidden_layers need `hidden`"):
        distill(teacher(), full, teacher(), full, data, hidden_layers=[0], hidden=0)
    for freeze in ("encoder", 3):
        with pytest.raises(ValueError, match="hidden_layers are for layers that learn"):
            distill(teacher(), full, teacher(), full, data, hidden_layers=[0], freeze=freeze)
    with pytest.raises(ValueError, match="cuda_graphs needs a head that reads one token"):
        distill(teacher("tagging"), full, teacher("tagging"), full, words(8), cuda_graphs=True)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            distill(teacher(), full, teacher(), full, data, temperature=temperature)
    finder, asked = teacher("qa"), questions(8)
    small, ids = pruned_tokenizer(full, ["one two"])
    assert len(small.encode("red")) == 3  # of its letters
    with pytest.raises(ValueError, match="prune no token"):
        distill(finder, full, make_student(finder, ids, num_hiddens=32), small, replace(asked, questions=["red"] * 8))


def test_a_run_is_continued_only_with_equal_settings(tmp_path: Path) -> None:
    """The settings are the weights of the loss, the teacher and the labels."""
    full, data = WordPieceTokenizer(PIECES), texts(20)
    other = teacher()
    with torch.no_grad():
        other.output.bias[0] += 1

    def run(big: Head, data: TextData, file: Path, **options: Any) -> Head:
        torch.manual_seed(0)
        student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32, num_layers=2)
        distill(big, full, student, full, data, epochs=2, state_file=file, progress=False, **options)
        return student

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(teacher(), data, file, callbacks=[Callback(on_epoch=stop)])
    for options in ({"temperature": 3.0}, {"hard": 1}, {"hidden": 0}, {"hidden_layers": [1]}):
        with pytest.raises(ValueError, match=r"state\.pt is of a run with other settings"):
            run(teacher(), data, file, **options)
    for big, examples in ((other, data), (teacher(), replace(data, labels=[0] * 20))):
        with pytest.raises(ValueError, match=r"state\.pt is of a run with other settings"):
            run(big, examples, file)
    whole, continued = run(teacher(), data, tmp_path / "whole.pt"), run(teacher(), data, file)
    assert all(torch.equal(value, continued.state_dict()[name]) for name, value in whole.state_dict().items())
