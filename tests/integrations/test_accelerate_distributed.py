"""DistributedDataParallel around an accelerated model: two Gloo processes on the CPU against one plain model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.huggingface_models import make_inputs, make_model
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import BertForSequenceClassification

import bertnli

INPUTS = make_inputs((20, 3, 7, 1, 20, 12, 9, 15))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def make() -> Any:
    return make_model(BertForSequenceClassification, num_labels=3, initializer_range=0.1).train()


def train(model: Any, part: slice) -> list[dict[str, Tensor]]:
    """The gradients of three steps on a part of each batch."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(3):
        optimizer.zero_grad()
        model(**{name: value[part] for name, value in INPUTS.items()}, labels=LABELS[part]).loss.backward()
        gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
        found.append({name: gradient.clone() for name, gradient in gradients.items() if gradient is not None})
        optimizer.step()
    return found


def train_in_group(rank: int, file: str) -> list[dict[str, Tensor]]:
    """As process `rank` of two, which take every second example."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        found = train(DistributedDataParallel(bertnli.accelerate(make())), slice(rank, None, 2))
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.distributed
def test_gradients_of_two_processes_are_those_of_the_plain_model(tmp_path: Path) -> None:
    file, places = str(tmp_path / "group"), os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen([sys.executable, __file__, file], env={**os.environ, "PYTHONPATH": places}) as other:
        found = train_in_group(0, file)
        assert other.wait(60) == 0
    for step, wanted in zip(found, train(make(), slice(None)), strict=True):
        assert step.keys() == wanted.keys()
        for name, gradient in wanted.items():
            if not name.endswith("key.bias"):  # whose gradient is rounding
                torch.testing.assert_close(step[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


if __name__ == "__main__":
    train_in_group(1, sys.argv[1])
