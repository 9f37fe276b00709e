"""Training in two Gloo processes on the CPU against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertnli import BERTClassifier, BERTConfig, BERTModel, Callback, EncodedTexts, fit
from bertnli.runtime.distributed import broadcast_from_rank_0, rank_and_size, shard
from bertnli.training.callbacks import Step

ROOT = Path(__file__).resolve().parents[2]


def pairs(count: int = 45) -> EncodedTexts:
    generator = torch.Generator().manual_seed(0)
    lens = torch.randint(4, 30, (count,), generator=generator)
    return EncodedTexts(
        torch.randint(5, 60, (int(lens.sum()),), generator=generator, dtype=torch.int32),
        torch.cat([torch.zeros(1, dtype=torch.int64), lens.cumsum(0)]),
        (lens // 2).to(torch.int32),
        torch.randint(0, 3, (count,), generator=generator),
        pad_id=0,
        max_len=32,
    )


def train(folder: Path, **options: Any) -> dict[str, Any]:
    """Train in float64 without dropout. The last of the steps of 22 pairs has one pair, fewer than processes."""
    torch.manual_seed(0)
    sizes = dict(num_hiddens=16, ffn_num_hiddens=32, num_heads=2, num_layers=2, dropout=0.0, max_len=32)
    model = BERTClassifier(BERTModel(BERTConfig.original(60, **sizes))).double()
    stop_after, stop_at = options.pop("stop_after", None), options.pop("stop_at", None)

    def on_step(step: Step) -> None:
        if step.step == stop_at:
            raise KeyboardInterrupt

    def on_epoch(epoch: Any) -> None:
        if epoch.epoch == stop_after:
            raise KeyboardInterrupt

    settings: dict[str, Any] = dict(epochs=2, accumulate=2, lr=1e-3, progress=False)
    settings["callbacks"] = [Callback(on_step=on_step, on_epoch=on_epoch)]
    settings |= {} if "batch_tokens" in options else {"batch_size": 11}
    try:
        history = fit(model, pairs(), pairs(20), state_file=folder / "state.pt", **settings | options)
    except KeyboardInterrupt:
        return {}
    weights = {name: p.detach().tolist() for name, p in model.named_parameters()}
    figures = [[e.train_loss, e.train_accuracy, e.dev_loss, e.dev_score] for e in history.epochs]
    return {"losses": history.losses, "figures": figures, "weights": weights}


def in_two_processes(folder: Path, *arguments: str, program: tuple[str, ...] = (__file__,)) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("losses", "figures"):
        torch.testing.assert_close(torch.tensor(a[key]), torch.tensor(b[key]), rtol=1e-9, atol=1e-11)
    for name, value in a["weights"].items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(b["weights"][name]), rtol=1e-6, atol=1e-9)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen": {"freeze": "encoder"},
    "tokens": {"batch_tokens": 100},
    "fewer": {"stop_after": 1},  # continued by one process
    "more": {},  # begun by one process
    "inside": {},  # begun, up to within an epoch
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The runs of two processes: their folder and results."""
    folder = tmp_path_factory.mktemp("runs")
    for name in RUNS:
        (folder / name).mkdir()
    train(folder / "more", stop_after=1)
    in_two_processes(folder)
    return folder, json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["plain", "frozen", "tokens"])
def test_two_processes_train_as_one(runs: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    assert_equal(runs[1][name], train(tmp_path, **RUNS[name]))


def test_a_run_continues(runs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Between epochs also with another number of processes."""
    folder, results = runs
    whole = train(tmp_path)
    assert_equal(train(folder / "fewer"), whole)
    assert_equal(results["more"], whole)
    assert_equal(results["inside"], whole)


def test_the_command_in_two_processes(tmp_path: Path) -> None:
    rows = "\n".join(f"a man number {i}\ta woman number {i % 3}\t{'ab'[i % 2]}" for i in range(24))
    (tmp_path / "train.tsv").write_text("one\ttwo\tlabel\n" + rows + "\n", encoding="utf-8")
    options = "--scratch bert.small --train train.tsv --dev train.tsv --text-columns one,two --labels a,b --min-freq 1"
    arguments = ["train", *options.split(), "--output", "out", "--epochs", "1", "--batch-size", "8", "--quiet"]
    output = in_two_processes(tmp_path, *arguments, program=("-m", "bertnli"))
    assert output.count("epoch 1:") == 1
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors", "metrics.jsonl"}
    assert (tmp_path / "out" / "training_state.pt").exists()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_shards_are_balanced_by_tokens(size: int, count: int) -> None:
    lengths = torch.randint(1, 100, (200,), generator=torch.Generator().manual_seed(count))
    rows = torch.randperm(200)[:count]
    parts: list[Tensor] = [shard(rows, lengths, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat(parts).sort().values, rows.sort().values)
    numbers, tokens = [len(p) for p in parts], [int(lengths[p].sum()) for p in parts]
    assert max(numbers) - min(numbers) <= 1
    assert max(tokens) - min(tokens) <= int(lengths.max())
    for part in parts:  # in their order
        places = [rows.tolist().index(row) for row in part.tolist()]
        assert places == sorted(places)


def test_without_a_group_there_is_one_process() -> None:
    assert rank_and_size() == (0, 1)
    assert broadcast_from_rank_0(lambda: 5) == 5


if __name__ == "__main__":
    from bertnli.runtime.distributed import process_group

    with process_group() as rank:
        train(Path("inside"), stop_at=3, save_steps=2)
        results = {name: train(Path(name), **options) for name, options in RUNS.items()}
        if rank == 0:
            Path("results.json").write_text(json.dumps(results))
