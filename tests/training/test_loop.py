"""The training loop against a plain PyTorch loop, and its options one by one."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.evaluations import accuracies, pretend
from helpers.oracles import PlainD2LClassifier
from helpers.tiny_models import SIZES, VOCAB, classifier, pairs
from torch import Tensor
from torch.nn.functional import cross_entropy

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    Callback,
    EncodedTexts,
    Epoch,
    PackedBatch,
    evaluate,
    fit,
    score,
)
from bertnli.text.batch import split_batches
from bertnli.training.adam import Adam


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
def test_split_batches_by_tokens(seed: int) -> None:
    """Each example is in one batch, in order. Batches are full and within the budget, except single longer examples."""
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
    """Each example is in one batch per epoch, and the order depends on seed and epoch. The rate falls to 0 over
    all steps, though epochs have different numbers of batches."""
    data = pairs()
    taken: list[Tensor] = []
    rates: list[float] = []
    whole_batch, whole_step = EncodedTexts.batch, Adam.step

    def batch(self: EncodedTexts, rows: Tensor) -> PackedBatch:
        taken.append(rows)
        return whole_batch(self, rows)

    def step(self: Adam) -> None:
        rates.append(self.param_groups[0]["lr"] / 1e-3)
        whole_step(self)

    monkeypatch.setattr(EncodedTexts, "batch", batch)
    monkeypatch.setattr(Adam, "step", step)
    orders = []
    for seed in (3, 3, 4):
        taken.clear()
        rates.clear()
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
    """Steps of three batches of at most 40 tokens, against the same examples in one batch."""
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
    callbacks = [Callback(on_epoch=seen.append)]
    history = fit(net, train, dev, epochs=6, batch_size=16, lr=2e-3, progress=False, callbacks=callbacks)
    assert seen == history.epochs
    accuracies = [e.dev_score for e in history.epochs]
    assert max(a for a in accuracies if a is not None) > 0.9
    assert history.best_epoch == accuracies.index(max(accuracies)) + 1  # type: ignore[type-var]
    assert evaluate(net, dev)["accuracy"] == pytest.approx(max(accuracies))  # type: ignore[type-var]
    assert not net.training


def test_keeping_the_best_epoch_means_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.5, 0.9, 0.7])
    states: list[dict[str, torch.Tensor]] = []

    def figures(model: BERTClassifier) -> dict[str, float]:
        states.append(copy.deepcopy(model.state_dict()))
        return {"loss": 1.0, "accuracy": next(accuracies)}

    pretend(monkeypatch, figures)
    net = classifier()
    history = fit(net, pairs(), pairs(9), epochs=3, progress=False)
    assert history.best_epoch == 2
    assert all(torch.equal(value, states[1][name]) for name, value in net.state_dict().items())


def test_a_score_that_is_undefined_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    for scores, best in (([math.nan, -0.5, math.nan], 2), ([math.nan, math.nan, math.nan], None)):
        pretend(monkeypatch, accuracies(scores))
        assert fit(classifier(), pairs(), pairs(9), epochs=3, progress=False).best_epoch == best


def test_pretraining_heads_stay_bit_equal() -> None:
    net = classifier(dropout=0.1)
    before = {name: copy.deepcopy(module.state_dict()) for name, module in net.carried.items()}
    assert set(before) == {"mlm", "nsp"}
    assert not any(name.startswith(("mlm", "nsp")) for name, _ in net.named_parameters())
    fit(net, pairs(), epochs=1, lr=1e-2, weight_decay=0.5, progress=False)
    for module, state in before.items():
        assert all(torch.equal(value, state[name]) for name, value in net.carried[module].state_dict().items())


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
    with pytest.raises(ValueError, match=r"train has a sequence of .* max_len is 10"):
        fit(short, data)
    with pytest.raises(ValueError, match="labels from 0 to 3; the model has 3"):
        fit(classifier(), pairs(classes=4))
    with pytest.raises(ValueError, match="train is empty"):
        fit(classifier(), data[:0])
    with pytest.raises(TypeError, match="train must be EncodedTexts"):
        fit(classifier(), [1, 2])  # type: ignore[arg-type]


def test_other_state_is_restored() -> None:
    """Random generators, denormals, and `requires_grad` of parameters that the caller froze."""
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
    """A custom head's too. The weight decay is so large that all other parameters shrink."""
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
def test_divergence_ends_the_run(original: bool, tmp_path: Path) -> None:
    net, state = classifier(original), tmp_path / "state.pt"
    with pytest.raises(
        ValueError,
        match=r"NaN or infinite in .*epoch \d.*: training diverged\. Lower the learning rate \(--lr, now 1e\+30\)",
    ):
        fit(net, pairs(), epochs=4, lr=1e30, max_grad_norm=None, progress=False, state_file=state)
