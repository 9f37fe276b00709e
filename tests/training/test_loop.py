"""The training loop against a plain one, and each of its options against what it promises."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracles import PlainD2LClassifier
from torch.nn.functional import cross_entropy

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    EncodedTexts,
    Epoch,
    PackedBatch,
    evaluate,
    fit,
    ops,
    score,
)
from bertnli.text.batch import split_batches
from bertnli.training import loop as train
from bertnli.training.adam import Adam
from bertnli.training.loop import kept_memory

VOCAB = 40
SIZES = dict(num_hiddens=24, ffn_num_hiddens=40, num_heads=3, num_layers=3, max_len=20)


def pairs(n: int = 90, seed: int = 0, classes: int = 3) -> EncodedTexts:
    """Random rows whose label can be learnt: it is decided by whether a token of the first text returns."""
    g = torch.Generator().manual_seed(seed)
    rows, first = [], []
    labels = torch.randint(0, classes, (n,), generator=g)
    for label in labels.tolist():
        p = torch.randint(4, VOCAB - 3, (int(torch.randint(2, 9, (1,), generator=g)),), generator=g)
        h = torch.randint(4, VOCAB - 3, (int(torch.randint(2, 7, (1,), generator=g)),), generator=g)
        h[0] = VOCAB - 1 - label
        rows.append(torch.cat([torch.tensor([1]), p, torch.tensor([2]), h, torch.tensor([2])]).int())
        first.append(len(p) + 2)
    lengths = torch.tensor([0] + [len(r) for r in rows])
    return EncodedTexts(
        torch.cat(rows), lengths.cumsum(0), torch.tensor(first, dtype=torch.int32), labels, pad_id=0, max_len=20
    )


def classifier(original: bool = False, dropout: float = 0.0, seed: int = 0) -> BERTClassifier:
    torch.manual_seed(seed)
    make = BERTConfig.original if original else BERTConfig
    return BERTClassifier(BERTModel(make(VOCAB, dropout=dropout, **SIZES)))


def plain_twin(net: BERTClassifier, original: bool = False) -> PlainD2LClassifier:
    twin = PlainD2LClassifier(VOCAB, 24, 40, 3, 3, 20, dropout=0.0, original=original)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("original", [False, True])
def test_fit_is_the_plain_padded_loop(original: bool, dtype: torch.dtype) -> None:
    """The same seeds, the same steps, dropout off: the loss of every step is that of a padded PyTorch loop."""
    data, net = pairs(), classifier(original).to(dtype)
    twin = plain_twin(net, original).to(dtype)
    history = fit(net, data, epochs=5, batch_size=9, lr=1e-3, weight_decay=0.1, seed=11, progress=False)
    matrices = [p for k, p in twin.named_parameters() if p.dim() > 1]
    vectors = [p for k, p in twin.named_parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    steps, step = 5 * 10, 0
    token_ids, segments, valid_lens = data.to_padded()
    wanted = []
    assert data.labels is not None
    for epoch in range(5):
        torch.manual_seed(11 * 1_000_003 + epoch)
        for rows in torch.randperm(90).split(9):
            rise = int(steps * 0.06)
            factor = (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * factor
            loss = cross_entropy(twin((token_ids[rows], segments[rows], valid_lens[rows])), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
            step += 1
            wanted.append(loss.item())
    assert history.losses == pytest.approx(wanted, abs=1e-7 if dtype == torch.float64 else 1e-3)
    assert wanted[-1] < wanted[0] - 0.1
    assert history.epochs[0].train_loss == pytest.approx(sum(wanted[:10]) / 10, rel=1e-3)


def test_accumulation_is_one_larger_batch() -> None:
    data = pairs(50)
    losses = []
    for batch_size, accumulate in ((16, 1), (4, 4), (8, 2)):
        net = classifier().double()
        losses.append(fit(net, data, epochs=2, batch_size=batch_size, accumulate=accumulate, progress=False).losses)
    assert len(losses[0]) == 2 * math.ceil(50 / 16)
    assert losses[1] == pytest.approx(losses[0], abs=1e-9)
    assert losses[2] == pytest.approx(losses[0], abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_cut_by_tokens(seed: int) -> None:
    """No row is lost, moved or taken twice; a batch is full, and none is above the budget but a single longer row."""
    generator = torch.Generator().manual_seed(seed)
    count, budget = (int(torch.randint(*bounds, (), generator=generator)) for bounds in ((0, 200), (1, 150)))
    lengths = torch.randint(1, 60, (300,), generator=generator)
    rows = torch.randperm(300, generator=generator)[:count]
    batches = split_batches(rows, lengths, None, budget)
    assert torch.equal(torch.cat(batches), rows)
    assert all(len(batch) for batch in batches) or (len(batches), count) == (1, 0)
    for batch, after in pairwise([*batches, rows[:0]]):
        assert int(lengths[batch].sum()) <= budget or len(batch) == 1
        if len(after):
            assert int(lengths[batch].sum()) + int(lengths[after[0]]) > budget


def test_training_by_a_budget_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is in one batch an epoch, in an order that seed and epoch decide; the learning rate ends at its last
    step, whatever number of batches each epoch has."""
    data, taken, rates = pairs(), [], []
    whole_batch, whole_step = EncodedTexts.batch, Adam.step
    monkeypatch.setattr(EncodedTexts, "batch", lambda self, rows: taken.append(rows) or whole_batch(self, rows))
    monkeypatch.setattr(Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"] / 1e-3) or whole_step(self))
    orders = []
    for seed in (3, 3, 4):
        taken.clear(), rates.clear()
        losses = fit(classifier(), data, epochs=3, batch_tokens=50, lr=1e-3, seed=seed, progress=False).losses
        assert len(losses) == len(taken) == len(rates)
        assert all(int(data.lengths[rows].sum()) <= 50 for rows in taken)
        assert torch.equal(torch.cat(taken).sort().values, torch.arange(90).repeat_interleave(3))
        orders.append(torch.cat(taken))
        rise = int(len(losses) * 0.06)
        wanted = [(i + 1) / (rise + 1) for i in range(rise)]
        wanted += [(len(losses) - i) / (len(losses) - rise) for i in range(rise, len(losses))]
        assert rates == pytest.approx(wanted)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][:90], orders[0][90:180])


def test_accumulation_of_batches_by_tokens_is_one_larger_batch() -> None:
    """Steps of three batches of at most 40 tokens, against the same rows in one batch each."""
    data, steps = pairs(50), []
    for epoch in range(2):
        torch.manual_seed(epoch)
        batches = split_batches(torch.randperm(50), data.lengths, None, 40)
        steps += [torch.cat(batches[i : i + 3]) for i in range(0, len(batches), 3)]
    net, plain = classifier().double(), classifier().double()
    losses = fit(net, data, epochs=2, batch_tokens=40, accumulate=3, lr=1e-3, progress=False).losses
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    wanted, labels = [], data.labels
    assert labels is not None
    for step, rows in enumerate(steps):
        rise = int(len(steps) * 0.06)
        factor = (step + 1) / (rise + 1) if step < rise else (len(steps) - step) / (len(steps) - rise)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        loss = cross_entropy(plain(data.batch(rows)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        wanted.append(loss.item())
    assert losses == pytest.approx(wanted, abs=1e-5)


@pytest.fixture
def multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this CPU is fast at."""
    monkeypatch.setattr(ops, "cpu_multiplies_bf16", lambda: True)


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16_is_near_fp32_and_leaves_float32(original: bool, accumulate: int) -> None:
    """Matrices and activations are rounded to eight bits, not what the optimizer moves."""
    data, losses = pairs(), []
    for precision in ("fp32", "bf16"):
        net = classifier(original)
        before = dict(net.named_parameters())
        options = dict(epochs=4, batch_size=9, accumulate=accumulate, lr=1e-3, precision=precision, progress=False)
        losses.append(fit(net, data, **options).losses)  # type: ignore[arg-type]
        assert all(p is before[name] and p.dtype == torch.float32 for name, p in net.named_parameters())
        assert not net.encoder.token_embedding.sparse
        with pytest.raises(ZeroDivisionError):
            fit(net, data, **{**options, "on_epoch": lambda _: 1 // 0})  # type: ignore[arg-type]
        assert all(p is before[name] for name, p in net.named_parameters())
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1] != losses[0]


def test_a_seed_fixes_the_run() -> None:
    runs = [
        fit(classifier(dropout=0.2), pairs(), epochs=2, batch_size=16, seed=seed, progress=False).losses
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_it_learns_and_keeps_the_best_epoch() -> None:
    train, dev = pairs(600, seed=1), pairs(200, seed=2)
    net = classifier(dropout=0.1)
    seen: list[Epoch] = []
    history = fit(net, train, dev, epochs=6, batch_size=16, lr=2e-3, progress=False, on_epoch=seen.append)
    assert seen == history.epochs
    accuracies = [e.dev_score for e in history.epochs]
    assert max(a for a in accuracies if a is not None) > 0.9
    assert history.best_epoch == accuracies.index(max(accuracies)) + 1  # type: ignore[type-var]
    assert evaluate(net, dev)["accuracy"] == pytest.approx(max(accuracies))  # type: ignore[type-var]
    assert not net.training


def test_keeping_the_best_epoch_means_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from bertnli.training import loop as module

    accuracies = iter([0.5, 0.9, 0.7])
    kept: list[dict[str, torch.Tensor]] = []

    def pretend(model: BERTClassifier, *_: object, **__: object) -> dict[str, float]:
        kept.append(copy.deepcopy(model.state_dict()))
        return {"loss": 1.0, "accuracy": next(accuracies)}

    monkeypatch.setattr(module, "evaluate", pretend)
    net = classifier()
    history = fit(net, pairs(), pairs(9), epochs=3, progress=False)
    assert history.best_epoch == 2
    assert all(torch.equal(value, kept[1][name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("freeze", ["embeddings", 0, 1, 2, "encoder", 3])
def test_what_is_frozen_stays_and_runs_in_eval_mode(freeze: str | int) -> None:
    net = classifier(dropout=0.5)
    before = copy.deepcopy(net.state_dict())
    fit(net, pairs(), epochs=2, batch_size=16, lr=1e-2, freeze=freeze, progress=False)
    depth = {"embeddings": 0, "encoder": 3}.get(freeze, freeze) if isinstance(freeze, str) else freeze
    for name, value in net.state_dict().items():
        layer = int(name.split(".")[2]) if name.startswith("encoder.blks") else -1
        frozen = name.startswith("encoder.") and layer < depth
        if not name.endswith("W_k.bias"):  # without influence: it stays anyway, but for rounding
            assert torch.equal(value, before[name]) == frozen, name


def test_what_is_frozen_has_no_backward_pass() -> None:
    for freeze, low in ((0, 0), (2, 2), ("embeddings", 0), ("encoder", 3)):
        net = classifier(dropout=0.5)
        seen: list[bool] = []
        for block in net.encoder.blks:
            block.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out.requires_grad))
        fit(net, pairs(16), epochs=1, batch_size=16, freeze=freeze, progress=False)  # type: ignore[arg-type]
        assert seen == [False] * low + [True] * (3 - low)


@pytest.mark.parametrize("freeze", ["encoder", 3])
def test_a_wholly_frozen_encoder_is_run_once(freeze: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features are the same as when the encoder runs at every step, in eval mode."""
    data = pairs()
    cached, layered, large = (classifier(dropout=0.5) for _ in range(3))
    calls = []
    whole = BERTClassifier.features
    monkeypatch.setattr(BERTClassifier, "features", lambda self, batch: calls.append(len(batch)) or whole(self, batch))
    losses = fit(cached, data, epochs=3, batch_size=16, lr=1e-2, freeze=freeze, progress=False).losses
    assert sum(calls) == len(data)
    # The same by hand: the encoder runs at every step, in eval mode.
    layered.encoder.requires_grad_(False)
    layered.encoder.train = lambda mode=True: layered.encoder  # type: ignore[method-assign, assignment]
    layered.encoder.eval()
    for module in layered.encoder.modules():
        module.training = False
    wanted = fit(layered, data, epochs=3, batch_size=16, lr=1e-2, progress=False).losses
    assert sum(calls) > 3 * len(data)
    assert losses == pytest.approx(wanted, abs=1e-5)
    # As if what it gives were too much to keep.
    monkeypatch.setattr(train, "_MOST_FEATURES", len(data) * large.config.num_hiddens * 4 - 1)
    calls.clear()
    losses = fit(large, data, epochs=3, batch_size=16, lr=1e-2, freeze=freeze, progress=False).losses
    assert sum(calls) == 3 * len(data)
    assert losses == pytest.approx(wanted, abs=1e-5)


def test_a_head_that_does_more_than_head_does_it_on_a_frozen_encoder_too() -> None:
    class Doubled(BERTClassifier):
        def forward(self, inputs: Any) -> torch.Tensor:
            return 2 * super().forward(inputs)

    def losses(kind: type[BERTClassifier]) -> list[float]:
        torch.manual_seed(0)
        net = kind(BERTModel(BERTConfig(VOCAB, dropout=0.0, **SIZES)))
        return fit(net, pairs(), epochs=1, batch_size=16, lr=1e-2, freeze="encoder", progress=False).losses

    twice, once = losses(Doubled), losses(BERTClassifier)
    assert twice[0] != pytest.approx(once[0], abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_model_is_whole(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = classifier()
    parameters = dict(net.named_parameters())
    units, calls = BERTClassifier.num_targets, []

    def interrupt(self: BERTClassifier, batch: PackedBatch) -> int:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return units(self, batch)

    monkeypatch.setattr(BERTClassifier, "num_targets", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(net, pairs(), epochs=1, batch_size=16, precision=precision, progress=False)
    assert not any(m.training for m in net.modules())
    assert not net.encoder.token_embedding.sparse
    assert all(p is parameters[name] and p.requires_grad for name, p in net.named_parameters())


def test_a_score_of_another_kind_of_number_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BERTClassifier, "metrics", lambda *_: {"accuracy": np.float32(0.5)})
    options = dict(batch_size=16, progress=False, state_file=tmp_path / "state.pt")
    history = fit(classifier(), pairs(), pairs(), epochs=1, **options)  # type: ignore[arg-type]
    assert type(history.epochs[0].dev_score) is float
    again = fit(classifier(), pairs(), pairs(), epochs=1, **options)  # type: ignore[arg-type]
    assert again.losses == history.losses


def test_pretraining_heads_stay_bit_equal() -> None:
    net = classifier(dropout=0.1)
    before = {name: copy.deepcopy(module.state_dict()) for name, module in net.carried.items()}
    assert set(before) == {"mlm", "nsp"}
    assert not any(name.startswith(("mlm", "nsp")) for name, _ in net.named_parameters())
    fit(net, pairs(), epochs=1, lr=1e-2, weight_decay=0.5, progress=False)
    for module, state in before.items():
        assert all(torch.equal(value, state[name]) for name, value in net.carried[module].state_dict().items())


@pytest.mark.parametrize("batches", [{"batch_size": 16}, {"batch_tokens": 200, "accumulate": 2}], ids=str)
def test_an_interrupted_run_continues_where_it_was(tmp_path: Path, batches: dict[str, int]) -> None:
    data, dev = pairs(), pairs(30, seed=5)
    options = dict(epochs=4, lr=1e-3, progress=False, **batches)
    whole = classifier(dropout=0.2)
    wanted = fit(whole, data, dev, **options)  # type: ignore[arg-type]
    file = tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stop(e: Epoch) -> None:
        if e.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(classifier(dropout=0.2), data, dev, state_file=file, on_epoch=stop, **options)  # type: ignore[arg-type]
    assert file.exists()
    with pytest.raises(ValueError, match="other lr; remove it"):
        fit(classifier(dropout=0.2), data, dev, state_file=file, **{**options, "lr": 1.0})  # type: ignore[arg-type]
    net = classifier(dropout=0.2, seed=99)
    history = fit(net, data, dev, state_file=file, **options)  # type: ignore[arg-type]
    assert history.losses == wanted.losses
    assert [e.dev_score for e in history.epochs] == [e.dev_score for e in wanted.epochs]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in net.state_dict().items())
    assert list(tmp_path.iterdir()) == [file]


def test_whether_this_cpu_multiplies_bf16() -> None:
    found = ops.cpu_multiplies_bf16()
    assert isinstance(found, bool)
    assert found or torch.backends.cpu.get_cpu_capability() != "AVX512"


def test_bf16_on_a_cpu_that_is_slow_at_it_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cpu_multiplies_bf16", lambda: False)
    nets, data = [classifier(), classifier()], pairs(60)
    losses = [
        fit(net, data, epochs=1, precision=precision, progress=False).losses
        for net, precision in zip(nets, ("fp32", "bf16"), strict=True)
    ]
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("multiplies_bf16")
def test_bf16_follows_fp32() -> None:
    data = pairs(300)
    exact, rough = classifier(), classifier()
    wanted = fit(exact, data, epochs=2, batch_size=32, lr=1e-3, progress=False).losses
    losses = fit(rough, data, epochs=2, batch_size=32, lr=1e-3, precision="bf16", progress=False).losses
    assert losses == pytest.approx(wanted, abs=0.03)
    assert losses != wanted
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    torch.testing.assert_close(score(rough, data, precision="bf16"), score(rough, data), atol=0.05, rtol=0.05)


def test_figures_of_evaluation() -> None:
    net, data = classifier(), pairs(100)
    figures = evaluate(net, data, batch_size=7)
    scores = score(net, data, batch_size=100)
    guess, labels = scores.argmax(1), data.labels
    assert labels is not None
    assert figures["accuracy"] == pytest.approx(float((guess == labels).float().mean()))
    assert figures["loss"] == pytest.approx(float(cross_entropy(scores, labels)), rel=1e-5)
    for i in range(3):
        for j in range(3):
            assert figures["confusion"][i][j] == int(((labels == i) & (guess == j)).sum())
        hits = figures["confusion"][i][i]
        assert figures["per_class"][str(i)]["recall"] == pytest.approx(hits / int((labels == i).sum()))
        assert figures["per_class"][str(i)]["precision"] == pytest.approx(hits / max(1, int((guess == i).sum())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 500}, "warmup must be a share of the steps"),
        ({"warmup": -0.1}, "warmup must be a share of the steps"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"precision": "int4"}, "precision must be one of"),
        ({"freeze": "half"}, "freeze must be None"),
        ({"freeze": 4}, "0 to 3 layers"),
        ({"epochs": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"batch_tokens": 0}, "must be at least 1"),
        ({"batch_size": 8, "batch_tokens": 100}, "either batch_size=8 examples or batch_tokens=100"),
        ({"freeze": True}, "freeze must be None"),
        ({"max_grad_norm": -0.5}, "max_grad_norm must be at least 0"),
        ({"seed": 2**60}, "seed must lie"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(classifier(), pairs(), progress=False, **options)  # type: ignore[arg-type]


def test_bad_data() -> None:
    data = pairs()
    bare = EncodedTexts(data.ids, data.offsets, data.first_lens, pad_id=0, max_len=20)
    for call in (lambda: fit(classifier(), bare), lambda: evaluate(classifier(), bare)):
        with pytest.raises(ValueError, match="no labels"):
            call()
    reals = EncodedTexts(data.ids, data.offsets, data.first_lens, torch.rand(90), pad_id=0, max_len=20)
    with pytest.raises(ValueError, match=r"labels of torch.float32; classes are integers"):
        fit(classifier(), reals)
    with pytest.raises(ValueError, match="the evaluated data is empty"):
        evaluate(classifier(), data[:0])
    with pytest.raises(ValueError, match="dev is empty"):
        fit(classifier(), data, data[:0])
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            score(classifier(), data, batch_size=batch_size)
    torch.manual_seed(0)
    short = BERTClassifier(BERTModel(BERTConfig(VOCAB, **{**SIZES, "max_len": 10})))
    with pytest.raises(ValueError, match=r"train has a row of .* max_len is 10"):
        fit(short, data)
    with pytest.raises(ValueError, match="labels from 0 to 3; the model has 3"):
        fit(classifier(), pairs(classes=4))
    with pytest.raises(ValueError, match="train is empty"):
        fit(classifier(), data[:0])
    with pytest.raises(TypeError, match="train must be EncodedTexts"):
        fit(classifier(), [1, 2])  # type: ignore[arg-type]


def test_the_rest_is_left_as_it_was() -> None:
    """Generators, denormals, and what the caller froze himself, which stays frozen and is not thawed."""
    net = classifier()
    net.encoder.token_embedding.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    table = net.encoder.token_embedding.weight.clone()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    for freeze in (None, 1):
        fit(net, pairs(), epochs=1, lr=1e-2, freeze=freeze, progress=False)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(net.encoder.token_embedding.weight, table)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == flags
    assert all(p.grad is None for p in net.parameters())
    assert float(torch.tensor(1e-39) * 1) > 0
    torch.set_flush_denormal(True)
    try:
        fit(net, pairs(), epochs=1, progress=False)
        assert float(torch.tensor(1e-39) * 1) == 0
    finally:
        torch.set_flush_denormal(False)


def test_decay_spares_biases_and_layer_norms() -> None:
    """Also those of a head of one's own: at a learning rate that gradients cannot match, the others shrink."""
    net = classifier(original=True)
    net.hidden = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.LayerNorm(24), torch.nn.Tanh())
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.where(p == 0, 0.1, p))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fit(net, pairs(32), epochs=1, batch_size=32, lr=1e-6, warmup=0, weight_decay=1e5, progress=False)
    for name, p in net.named_parameters():
        shrunk = float((p.detach() / before[name]).median())
        spared = name.endswith("bias") or "ln" in name or "norm" in name or name.startswith("hidden.1")
        assert shrunk == pytest.approx(1.0 if spared else 0.9, abs=0.01), name


@pytest.mark.parametrize("original", [False, True])
def test_a_loss_that_is_no_number_ends_the_run(original: bool, tmp_path: Path) -> None:
    net, state = classifier(original), tmp_path / "state.pt"
    with pytest.raises(ValueError, match=r"no finite number in epoch \d: training has diverged; .* below lr=1e\+30"):
        fit(net, pairs(), epochs=4, lr=1e30, max_grad_norm=None, progress=False, state_file=state)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    options = dict(epochs=1, batch_size=16, progress=False, state_file=file)
    fit(classifier(), pairs(), **options)  # type: ignore[arg-type]
    done = fit(classifier(), pairs(), **options)  # type: ignore[arg-type]
    assert len(done.epochs) == 1
    with pytest.raises(ValueError, match="other train; remove it"):
        fit(classifier(), pairs(seed=9), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other dev"):
        fit(classifier(), pairs(), pairs(9), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other model"):
        fit(classifier(dropout=0.1), pairs(), **options)  # type: ignore[arg-type]
    for content in (b"junk", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.pt is not the state of a training run"):
            fit(classifier(), pairs(), **options)  # type: ignore[arg-type]
    torch.save({"weights": 1}, file)
    with pytest.raises(ValueError, match="is not the state"):
        fit(classifier(), pairs(), **options)  # type: ignore[arg-type]


def test_kept_memory_is_handed_out_once_and_given_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def churn(seed: int) -> None:
        """Tensors of all sizes, freed in any order: none writes where another lies."""
        draw = random.Random(seed)
        alive: list[tuple[torch.Tensor, int]] = []
        for i in range(400):
            if alive and draw.random() < 0.45:
                x, value = alive.pop(draw.randrange(len(alive)))
                assert bool((x == value).all())
            else:
                alive.append((torch.full((int(10 ** draw.uniform(0, 5.5)),), i + 1000 * seed), i + 1000 * seed))
        assert all(bool((x == value).all()) for x, value in alive)

    def churn_here(seed: int) -> None:
        with kept_memory():
            churn(seed)

    with kept_memory():
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(churn_here, range(8)))
            if sys.platform == "linux":  # another thread's memory is not from here
                theirs, mine = threads.submit(torch.ones, 3_000_000).result(), torch.ones(3_000_000)
                ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
                places = [range(int(a, 16), int(b, 16)) for a, b in ranges]
                kept = next(r for r in places if mine.data_ptr() in r)
                assert theirs.data_ptr() not in kept
                del theirs, mine
        if sys.platform == "linux":
            place = torch.ones(3_000_000).data_ptr()
            assert torch.ones(3_000_000).data_ptr() == place
        with kept_memory():
            outlives = torch.rand(1_000_000)
        copy = outlives.clone()
        torch.ones(50_000_000)
        before = resident() if sys.platform == "linux" else 0
    assert torch.equal(outlives, copy)
    if sys.platform == "linux":
        assert before - resident() > 150e6
    del outlives
    assert float(torch.ones(1_000_000).sum()) == 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is the C library's")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kept_memory_after_fork() -> None:
    """A child finds no lock taken by a thread that it does not have."""
    running = True

    def churn() -> None:
        with kept_memory():
            while running:
                torch.empty(100_000)

    with kept_memory(), ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            threads.submit(churn)
        try:
            for _ in range(30):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    torch.empty(100_000)
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            running = False
