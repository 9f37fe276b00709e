"""Fixtures of the tokenizers' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.texts import Real, reference

from bertnli.text.wordpiece import WordPieceTokenizer


@pytest.fixture(scope="session")
def minilm_tokens(minilm_dir: Path) -> list[str]:
    return (minilm_dir / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="session")
def real(minilm_tokens: list[str]) -> Real:
    return WordPieceTokenizer(minilm_tokens), reference(minilm_tokens)
