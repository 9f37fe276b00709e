"""A small corpus, and a model trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertnli.cli import main
from bertnli.data.demo import write_demo_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_demo_corpus(folder, seed=2, train=300, dev=60, test=60)
    return folder


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder that `train --scratch` wrote."""
    output = tmp_path_factory.mktemp("trained")
    arguments = ["--scratch", "bert.small", "--train", str(corpus), "--output", str(output), "--epochs", "2"]
    assert main(["train", *arguments, "--lr", "1e-3", "--min-freq", "1", "--quiet"]) == 0
    return output
