"""CUDA graphs: padded batches and replayed steps give the results of eager steps.

Without a GPU a repeated step is the function called again on the same input tensors; the capture itself needs one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import SIZES, VOCAB, pairs
from helpers.tiny_tasks import PIECES, TASKS, teacher
from torch import Tensor

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTQuestionAnswering,
    BERTRegressor,
    BERTTagger,
    Callback,
    EncodedTexts,
    Epoch,
    PackedBatch,
    WordPieceTokenizer,
    evaluate,
    fit,
    score,
)
from bertnli.distillation import distill as distillation
from bertnli.distillation.distill import distill
from bertnli.distillation.student import make_student
from bertnli.inference import predict as inference
from bertnli.runtime import cuda_graphs as graphs
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket
from bertnli.tasks.base import Head
from bertnli.training import loop, steps


class AllTokens(BERTTagger):
    """Reads all tokens in training, as a tagger on a GPU does."""

    def token_index(self, batch: PackedBatch) -> Tensor | None:
        return None if self.training else super().token_index(batch)


OUTPUTS = {BERTClassifier: 3, BERTRegressor: 1, BERTTagger: 3, AllTokens: 3, BERTQuestionAnswering: 2}


def model(head: type[Head] = BERTClassifier, original: bool = True, dropout: float = 0.0) -> Head:
    torch.manual_seed(0)
    config = BERTConfig.original if original else BERTConfig
    bert = BERTModel(config(VOCAB, dropout=dropout, **SIZES))
    return head(bert, OUTPUTS[head], dropout=0.0)


def data_for(head: type[Head], count: int = 90) -> EncodedTexts:
    data = pairs(count)
    assert data.labels is not None
    labels = {
        BERTClassifier: data.labels,
        BERTRegressor: data.labels.float(),
        BERTQuestionAnswering: torch.stack([data.labels, data.labels + 1], 1),
    }.get(head, torch.where(data.ids % 3 == 0, -100, data.ids % 3).long())
    return EncodedTexts(data.ids, data.offsets, data.first_lens, labels, pad_id=0, max_len=20)


def results(net: Head, batch: PackedBatch) -> list[Tensor]:
    """The loss, num_correct and all gradients with one seed."""
    net.zero_grad()
    torch.manual_seed(5)
    outputs = net(batch)
    loss, right = net.loss(outputs, batch), net.num_correct(outputs, batch)
    loss.backward()
    found = [loss.detach(), *([] if right is None else [right])]
    return [*found, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("head", OUTPUTS)
def test_padding_of_a_batch_changes_no_result(head: type[Head], original: bool, dropout: float) -> None:
    net, batch = model(head, original, dropout).double(), data_for(head, 9).batch(range(9))
    assert net.ignored is not None
    tokens = len(batch.input_ids)
    wanted = results(net, batch)
    for padded in (
        batch.padded(tokens + 1, 10, net.ignored),
        batch.padded(tokens + 50, 14, net.ignored),
        pad_to_bucket(batch, net.ignored, 20),
    ):
        assert torch.equal(padded.cu_seqlens[:10], batch.cu_seqlens)
        for a, b in zip(results(net, padded), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_batch_is_not_padded_by_sequences_without_tokens() -> None:
    batch = pairs(4).batch(range(4))
    for tokens, sequences in ((0, 1), (2, 3), (5, 0), (-3, -1)):
        with pytest.raises(ValueError, match="more sequences cannot have"):
            batch.padded(len(batch.input_ids) + tokens, 4 + sequences)


def test_buckets_are_few_and_not_much_larger_than_their_batches() -> None:
    generator, sizes = torch.Generator().manual_seed(0), set()
    for _ in range(300):
        lens = torch.randint(8, 60, (32,), generator=generator)
        total = int(lens.sum())
        zeros = torch.zeros(total, dtype=torch.int32)
        bounds = torch.cat([torch.zeros(1), lens.cumsum(0)]).to(torch.int32)
        batch = PackedBatch(zeros, zeros, zeros, bounds, int(lens.max()), torch.zeros(32, dtype=torch.int64))
        padded = pad_to_bucket(batch, -100, 128)
        sizes.add((len(padded.input_ids), len(padded), padded.max_seqlen))
        assert total < len(padded.input_ids) <= 1.0625 * (total + len(padded) - 32)
        assert len(padded) == 38
        assert padded.labels is not None
        assert padded.labels.tolist() == [0] * 32 + [-100] * (len(padded) - 32)
        ends = padded.cu_seqlens.diff()
        assert int(ends.min()) > 0
        assert int(ends.max()) <= padded.max_seqlen == 64
    assert len(sizes) <= 16
    long = replace(batch, max_seqlen=100)
    assert pad_to_bucket(long, -100, 100).max_seqlen == 100  # of a model with no more positions


class OnCPU(CapturedSteps):
    """Replays a step by calling it."""

    made: list[OnCPU] = []  # noqa: RUF012
    repeated = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        OnCPU.made.append(self)

    def _warm_up(self, inputs: PackedBatch) -> tuple[Tensor, ...]:
        return self.step(inputs, self._number)

    def _capture(self, inputs: PackedBatch) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        outputs: list[Tensor] = []

        def replay() -> None:
            self.repeated += 1
            outputs[:] = self.step(inputs, self._number)

        return outputs, replay  # type: ignore[return-value]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> type[OnCPU]:
    monkeypatch.setattr(graphs, "why_not_capturable", lambda *_: None)
    monkeypatch.setattr(steps, "CapturedSteps", OnCPU)
    monkeypatch.setattr(inference, "CapturedSteps", OnCPU)
    monkeypatch.setattr(OnCPU, "made", [])
    return OnCPU


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (BERTClassifier, {"batch_size": 11}),  # the last batch is of 2
        (BERTClassifier, {"batch_tokens": 150, "optimizer": "adam"}),
        (BERTClassifier, {"freeze": 1, "batch_size": 9}),
        (BERTRegressor, {"batch_size": 9}),
        (AllTokens, {"batch_size": 9}),
        (BERTQuestionAnswering, {"batch_size": 9}),
    ],
    ids=str,
)
def test_replayed_steps_are_the_eager_steps(on_cpu: type[OnCPU], head: type[Head], options: dict[str, Any]) -> None:
    """Losses, accuracy and weights of a float64 run equal those of a run without padding and replays."""
    data, arguments = data_for(head), dict(epochs=2, lr=1e-3, weight_decay=0.1, progress=False) | options
    plain, net = (model(head).double() for _ in range(2))
    wanted = fit(plain, data, cuda_graphs=False, **arguments)
    # By default only heads of this package are captured, and AllTokens is not one.
    found = fit(net, data, cuda_graphs=True if head is AllTokens else None, **arguments)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-7)
    assert [e.train_accuracy for e in found.epochs] == [e.train_accuracy for e in wanted.epochs]
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    (captured,) = on_cpu.made
    assert captured.repeated + len(captured._seen) == len(found.losses)
    assert captured.repeated


def taught(task: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any) -> list[float]:
    """The losses of a student that learns from labelled and unlabelled examples of a task."""
    big, full, (make, without) = teacher(task, dropout=0.0), WordPieceTokenizer(PIECES), TASKS[task]
    torch.manual_seed(0)
    student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32, num_layers=2)
    options = dict(epochs=3, lr=1e-3, batch_size=9, progress=False) | options
    big, student = big.to(device, dtype), student.to(dtype)  # fit moves the student
    options["device"] = device
    return distill(
        big, full, student, full, make(60, 1), make(20, 2), unlabelled=without(make(40, 3)), **options
    ).losses


@pytest.mark.parametrize("options", [{}, {"hidden_layers": [1]}, {"hidden": 0, "hard": 1}], ids=str)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_replayed_distillation_is_the_eager_one(
    on_cpu: type[OnCPU], task: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = taught(task, dtype=torch.float64, cuda_graphs=False, **options)
    assert not on_cpu.made
    monkeypatch.setattr(distillation, "run_batches", partial(inference.run_batches, batch_size=3))
    found = taught(task, dtype=torch.float64, **options)
    purposes = {steps.purpose for steps in on_cpu.made if steps.repeated}
    assert purposes == ({"training"} if "hidden_layers" in options else {"training", "inference"})
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_tagger_that_reads_all_tokens_learns_the_same() -> None:
    data = data_for(BERTTagger)
    options: dict[str, Any] = dict(epochs=2, batch_size=9, lr=1e-3, progress=False)
    wanted, found = (fit(model(head).double(), data, **options) for head in (BERTTagger, AllTokens))
    assert found.losses == pytest.approx(wanted.losses, rel=1e-9)
    assert found.epochs[0].train_accuracy == wanted.epochs[0].train_accuracy


def test_a_run_is_continued_with_graphs_or_without(on_cpu: type[OnCPU], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(e: Epoch) -> None:
        if e.epoch == 1:
            raise Stop

    options: dict[str, Any] = dict(epochs=2, batch_size=9, lr=1e-3, progress=False)
    wanted = fit(model().double(), pairs(), cuda_graphs=False, **options).losses
    for first in (False, True):
        file = tmp_path / f"{first}.pt"
        stops = [Callback(on_epoch=stop)]
        with pytest.raises(Stop):
            fit(model().double(), pairs(), state_file=file, cuda_graphs=first, callbacks=stops, **options)
        net = model().double()
        losses = fit(net, pairs(), state_file=file, cuda_graphs=not first, **options).losses
        assert losses == pytest.approx(wanted, rel=1e-7)


def test_a_step_that_cannot_be_captured_is_an_error_that_says_why(
    on_cpu: type[OnCPU], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: OnCPU, inputs: PackedBatch) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        except RuntimeError:
            raise RuntimeError("previous error during capture")  # noqa: B904

    monkeypatch.setattr(on_cpu, "_capture", fail)
    with pytest.raises(RuntimeError, match=r"cuda_graphs=False runs them .*: operation not permitted"):
        fit(model(), pairs(), epochs=1, batch_size=9, progress=False)
    assert fit(model(), pairs(), epochs=1, batch_size=9, progress=False, cuda_graphs=False).losses


def test_moved_parameters_are_captured_again(on_cpu: type[OnCPU]) -> None:
    def move(e: Epoch) -> None:
        if e.epoch == 2:
            for p in net.parameters():
                p.data = p.data.clone()
        if e.epoch == 3:
            net.dropout.p = 0.1

    net = model()
    fit(net, pairs(), epochs=4, batch_size=30, progress=False, callbacks=[Callback(on_epoch=move)])
    assert len(on_cpu.made) == 3


@pytest.mark.parametrize("head", [BERTClassifier, BERTRegressor, BERTTagger, BERTQuestionAnswering])
def test_replayed_inference_is_the_eager_one(on_cpu: type[OnCPU], head: type[Head]) -> None:
    """23 batches, the last one small. Only heads that read one token per sequence use graphs."""
    net, data = model(head).double(), data_for(head)
    wanted = score(net, data, batch_size=90)
    assert not on_cpu.made
    torch.testing.assert_close(score(net, data, batch_size=4), wanted)
    if net.pooled:
        losses = [evaluate(net, data, batch_size=size)["loss"] for size in (4, 90)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(on_cpu.made) == 2 * net.pooled
    assert all(steps.repeated > 3 and steps.purpose == "inference" for steps in on_cpu.made)
    score(net, data, batch_size=4, cuda_graphs=False)
    assert len(on_cpu.made) == 2 * net.pooled


def test_reasons_against_capture() -> None:
    with pytest.raises(ValueError, match=r"one process on a CUDA device and whole steps; found 1 on 'cpu'"):
        fit(model(), pairs(), cuda_graphs=True)
    with pytest.raises(ValueError, match="found 1 on 'cpu'"):
        evaluate(model(), pairs(), batch_size=1, cuda_graphs=True)
    gpu, own = torch.device("cuda"), model()
    own.ignored = None  # type: ignore[misc]
    assert "labels that its loss ignores; BERTClassifier has none" in str(graphs.why_not_capturable(own, gpu, 1, 1))
    for processes, accumulate in ((2, 1), (1, 2)):
        assert "whole steps" in str(graphs.why_not_capturable(model(), gpu, processes, accumulate))
    assert graphs.why_not_capturable(model(), gpu, 1, 1) is None
    hooks: list[Callable[[Any], Any]] = [
        lambda net: net.hidden.register_forward_hook(lambda *_: None),
        lambda net: net.encoder.blks[0].register_full_backward_pre_hook(lambda *_: None),
        lambda net: net.output.bias.register_hook(lambda g: g),
    ]
    for hook in hooks:
        hook(net := model())
        assert "without hooks" in str(graphs.why_not_capturable(net, gpu, 1, 1))


def test_only_heads_of_this_package_are_captured_by_default() -> None:
    gpu = torch.device("cuda")
    assert graphs.use_cuda_graphs(None, model(), gpu)
    assert not graphs.use_cuda_graphs(False, model(), gpu)
    assert not graphs.use_cuda_graphs(None, model(AllTokens), gpu)
    assert graphs.use_cuda_graphs(True, model(AllTokens), gpu)
    assert not graphs.use_cuda_graphs(None, model(), gpu, processes=2)
    with pytest.raises(ValueError, match="for one process"):
        graphs.use_cuda_graphs(True, model(), gpu, processes=2)


# ---- on a GPU ----


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[PackedBatch]:
    """The inputs of each graph that was captured."""
    inputs, capture = [], CapturedSteps._capture

    def noted(self: CapturedSteps, batch: PackedBatch) -> Any:
        inputs.append(batch)
        return capture(self, batch)

    monkeypatch.setattr(CapturedSteps, "_capture", noted)
    return inputs


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_are_the_eager_ones(precision: str, captured: list[PackedBatch]) -> None:
    options: dict[str, Any] = dict(epochs=3, batch_size=9, lr=1e-3, progress=False, device="cuda", precision=precision)
    wanted = fit(model(), pairs(), cuda_graphs=False, **options).losses
    assert not captured
    losses = fit(model(), pairs(), **options).losses
    assert captured
    assert losses == pytest.approx(wanted, abs=1e-3 if precision == "fp32" else 3e-2)
    assert losses[0] > losses[-1]


@pytest.mark.gpu
@pytest.mark.parametrize("head", [BERTClassifier, BERTRegressor])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_inference_is_that_of_the_cpu(head: type[Head], precision: str, captured: list[PackedBatch]) -> None:
    net, data = model(head), data_for(head)
    wanted, figures = score(net, data), evaluate(net, data)
    net.cuda()
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    for size in (4, 90):
        found = score(net, data, batch_size=size, precision=precision)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        assert evaluate(net, data, batch_size=size, precision=precision)["loss"] == pytest.approx(
            figures["loss"], rel=tolerance
        )
    assert captured


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
def test_distillation_on_a_gpu(task: str, captured: list[PackedBatch]) -> None:
    """The losses are those of the CPU. Steps are captured for heads that read one token per sequence."""
    wanted = taught(task)
    assert taught(task, "cuda", cuda_graphs=False) == pytest.approx(wanted, rel=1e-2)
    assert not captured
    assert taught(task, "cuda") == pytest.approx(wanted, rel=1e-2)
    assert bool(captured) == (task in ("classification", "regression"))
    assert taught(task, "cuda", hidden_layers=[1]) == pytest.approx(taught(task, hidden_layers=[1]), rel=1e-2)


@pytest.mark.gpu
def test_graphs_survive_clearing_of_cublas_workspaces() -> None:
    """The matrix product has a long inner dimension, so that cuBLAS splits it and uses a workspace."""
    x, w = torch.randn(64, 1 << 15, device="cuda"), torch.randn(1 << 15, 64, device="cuda")
    batch = pad_to_bucket(pairs(4).batch(range(4)), -100, 20)
    for _ in range(2):  # the second finds the first's
        steps = CapturedSteps(lambda *_: (x @ w, x.bfloat16() @ w.bfloat16()), x.device)
        for _ in range(4):
            found = steps(batch, 1)
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
        torch.testing.assert_close(found[0], (x.double() @ w.double()).float(), rtol=1e-3, atol=1e-1)
        torch.testing.assert_close(found[0], found[1].float(), rtol=2e-2, atol=3)


@pytest.mark.gpu
def test_captured_steps_draw_new_dropout_and_are_fixed_by_the_seed() -> None:
    options: dict[str, Any] = dict(epochs=2, batch_size=9, progress=False, device="cuda", cuda_graphs=True)
    first, second = (fit(model(dropout=0.3), pairs(), lr=1e-3, **options).losses for _ in range(2))
    assert first == pytest.approx(second, abs=1e-4)
    one = pairs(1)
    same = one.batch([0] * 90)  # of one size, and so one graph: losses differ by what is dropped alone
    data = EncodedTexts(
        same.input_ids, same.cu_seqlens.long(), one.first_lens.repeat(90), same.labels, pad_id=0, max_len=20
    )
    losses = fit(model(dropout=0.3), data, lr=0.0, weight_decay=0.0, **options).losses
    assert len(set(losses)) == 20


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("head", [BERTClassifier, BERTRegressor, BERTTagger, BERTQuestionAnswering])
def test_no_step_waits_for_the_gpu(head: type[Head], cuda_graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third step of one size on: the first compiles, the second captures."""
    gather, batches = EncodedTexts.batch, []

    def watched(self: EncodedTexts, rows: Any, **options: bool) -> PackedBatch:
        batches.append(rows)
        torch.cuda.set_sync_debug_mode("error" if len(batches) > 2 else "default")
        return gather(self, rows)

    monkeypatch.setattr(EncodedTexts, "batch", watched)

    def unwatched(x: Any) -> Any:
        """An epoch ends by reading its losses."""
        torch.cuda.set_sync_debug_mode("default")
        return x

    monkeypatch.setattr(loop, "all_reduce_sum", unwatched)
    try:
        options: dict[str, Any] = dict(
            epochs=4, batch_size=90, lr=1e-3, progress=False, device="cuda", cuda_graphs=cuda_graphs
        )
        fit(model(head, dropout=0.1), data_for(head), **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) == 4
