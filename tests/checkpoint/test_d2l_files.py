"""D2L's weights as people have them: nested in a dict, with prefixes, with fewer positions asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bertnli import BERTConfig, BERTModel, Vocab, d2l, load_pretrained_model, save_pretrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocab = Vocab(["a", "b"], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])
    config = BERTConfig(len(vocab), num_hiddens=64, ffn_num_hiddens=8, num_heads=1, max_len=16)
    save_pretrained(BERTModel(config), tmp_path, vocab, format="d2l")
    return tmp_path


def nested(state: dict[str, Any]) -> dict[str, Any]:
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3, "args": {"lr": 0.1}}


@pytest.mark.parametrize("wrap", [nested, lambda state: {"model": state, "optimizer": {"state": {}}}])
def test_nested_weights(folder: Path, wrap: Any) -> None:
    state = torch.load(folder / "pretrained.params")
    torch.save(wrap(state), folder / "pretrained.params")
    bert, vocab = d2l.load_pretrained_model(folder)
    assert all(torch.equal(value, state[name]) for name, value in bert.state_dict().items())
    assert len(vocab) == 7


def test_two_models_in_one_file_are_refused(folder: Path) -> None:
    state = torch.load(folder / "pretrained.params")
    torch.save({"student": state, "teacher": state}, folder / "pretrained.params")
    with pytest.raises(ValueError, match=r"pretrained\.params: student is a .*dict; expected a tensor"):
        d2l.load_pretrained_model(folder)


def test_max_len(folder: Path) -> None:
    positions = torch.load(folder / "pretrained.params")["encoder.pos_embedding"]
    bert = load_pretrained_model(folder, max_len=12)[0]
    assert bert.config.max_len == 12
    assert torch.equal(bert.encoder.pos_embedding, positions[:, :12])
    with pytest.raises(ValueError, match=r"max_len=17, but encoder\.pos_embedding in .* has 16"):
        load_pretrained_model(folder, max_len=17)
