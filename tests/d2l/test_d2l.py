"""D2L's names: a script in the manner of the chapter end to end, and the small helpers against their definitions."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import nn

from bertnli import BERTConfig, BERTModel, Vocab, d2l, read_snli, save_pretrained
from bertnli.data.demo import write_demo_corpus
from bertnli.report import plots

CHAPTER = ROOT / "tests" / "helpers" / "chapter.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """D2L's two archives: generated pairs in SNLI's layout, and a bert.small of random weights."""
    folder = tmp_path_factory.mktemp("site")
    write_demo_corpus(folder / "snli_1.0", seed=1, train=1000, dev=50, test=200)
    premises, hypotheses, _ = read_snli(folder / "snli_1.0", True)
    words = [text.lower().split() for side in (premises, hypotheses) for text in side]
    vocab = Vocab(words, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])
    torch.manual_seed(3)
    save_pretrained(BERTModel(BERTConfig(len(vocab))), folder / "bert.small.torch", vocab, format="d2l")
    for name in ("snli_1.0", "bert.small.torch"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((folder / name).iterdir()):
                archive.write(path, f"{name}/{path.name}")
    return folder


@pytest.mark.parametrize("definitions", ["own", "d2l"])
def test_the_chapter_runs_to_the_final_line(site: Path, tmp_path: Path, definitions: str) -> None:
    (tmp_path / "notebooks").mkdir()
    digests = [
        hashlib.sha1((site / name).read_bytes()).hexdigest() for name in ("snli_1.0.zip", "bert.small.torch.zip")
    ]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", CHAPTER, definitions, *digests, site.as_uri() + "/", "2"],
        cwd=tmp_path / "notebooks", env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["read 1000 examples", "read 200 examples"]
    found = re.fullmatch(r"loss (\d\.\d{3}), train acc (0\.\d{3}), test acc (0\.\d{3})", lines[-2])
    assert found, lines
    assert float(found[1]) < 1.2
    assert re.fullmatch(r"\d+\.\d examples/sec on \[.*\]", lines[-1])
    assert (tmp_path / "data" / "bert.small.torch" / "pretrained.params").exists()  # D2L's ../data


def toy_batches(n: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 5, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(n)]


@pytest.mark.parametrize("batches", [1, 3, 6])
def test_train_ch13_steps_on_the_summed_loss(batches: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net, twin = nn.Linear(5, 3), nn.Linear(5, 3)
    twin.load_state_dict(net.state_dict())
    loss, data = nn.CrossEntropyLoss(reduction="none"), toy_batches(batches)
    trainer = torch.optim.Adam(net.parameters(), lr=0.01)
    animator = d2l.Animator()
    d2l.train_ch13(net, data, data, loss, trainer, 2, [torch.device("cpu")], animator)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    for _ in range(2):
        total = 0.0
        for x, y in data:
            summed = loss(twin(x), y).sum()
            optimizer.zero_grad()
            summed.backward()
            optimizer.step()
            total += summed.item()
    torch.testing.assert_close(net.weight, twin.weight)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"loss {total / (8 * batches):.3f}, train acc ")
    assert trainer.param_groups[0]["fused"] is True
    assert animator.X[2] == [1.0, 2.0]
    assert animator.X[0][-1] == 2.0
    accuracy = sum(d2l.accuracy(net(x), y) for x, y in data) / (8 * batches)
    assert animator.Y[2][-1] == pytest.approx(accuracy)


def test_a_chosen_optimizer_is_left_alone() -> None:
    net = nn.Linear(5, 3)
    for trainer in (
        torch.optim.Adam(net.parameters(), fused=False),
        torch.optim.Adam(net.parameters(), foreach=True),
        torch.optim.Adam(net.parameters(), amsgrad=True),
        torch.optim.SGD(net.parameters(), lr=0.1),
    ):
        before = [{k: v for k, v in g.items() if k != "params"} for g in trainer.param_groups]
        d2l.train_ch13(net, toy_batches(), toy_batches(), nn.CrossEntropyLoss(reduction="none"), trainer, 1)
        assert [{k: v for k, v in g.items() if k != "params"} for g in trainer.param_groups] == before


def test_small_helpers() -> None:
    assert d2l.tokenize(["a b", "c"]) == [["a", "b"], ["c"]]
    assert d2l.tokenize(["ab"], "char") == [["a", "b"]]
    assert d2l.get_tokens_and_segments(["a"], ["b", "c"]) == (
        ["<cls>", "a", "<sep>", "b", "c", "<sep>"],
        [0, 0, 0, 1, 1, 1],
    )
    assert d2l.get_tokens_and_segments(["a"]) == (["<cls>", "a", "<sep>"], [0, 0, 0])
    assert d2l.accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])) == 1.0
    assert d2l.accuracy(torch.tensor([1, 0]), torch.tensor([1, 1])) == 1.0
    assert len(d2l.try_all_gpus()) >= 1
    if not torch.cuda.is_available():
        assert d2l.try_all_gpus() == [d2l.try_gpu()] == [torch.device("cpu")]
    accumulator = d2l.Accumulator(2)
    accumulator.add(1, torch.tensor(2.5))
    accumulator.add(1, 1)
    assert [accumulator[0], accumulator[1]] == [2.0, 3.5]
    accumulator.reset()
    assert accumulator[1] == 0
    timer = d2l.Timer()
    assert timer.stop() >= 0
    assert timer.sum() == timer.avg() == timer.cumsum()[-1]


def test_accuracy_of_a_function() -> None:
    data = toy_batches(2)
    net = nn.Linear(5, 3)
    assert d2l.evaluate_accuracy_gpu(lambda x: net(x), data) == d2l.evaluate_accuracy_gpu(net, data)
    with pytest.raises(ValueError, match="no examples"):
        d2l.evaluate_accuracy_gpu(net, [])


def test_training_goes_on_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plots._warn_of_missing_matplotlib.cache_clear()
    net = nn.Linear(5, 3)
    for _ in range(2):
        trainer = torch.optim.SGD(net.parameters(), lr=0.1)
        animator, loss = d2l.Animator(), nn.CrossEntropyLoss(reduction="none")
        d2l.train_ch13(net, toy_batches(), toy_batches(), loss, trainer, 1, animator=animator)
        assert animator.fig is None
        assert animator.X[2] == [1.0]
    assert caplog.text.count("plots are not drawn: matplotlib is missing") == 1
    assert "test acc" in capsys.readouterr().out
