"""Every way to import the names, and the names that are not ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import bertnli
from bertnli import BERTEncoder, BERTModel, d2l

CHAPTER = """
    DATA_HUB DATA_URL download download_extract Vocab tokenize get_tokens_and_segments get_dataloader_workers try_gpu
    try_all_gpus read_snli BERTModel BERTEncoder SNLIBERTDataset BERTClassifier load_pretrained_model train_ch13
    train_batch_ch13 evaluate_accuracy_gpu accuracy Timer Accumulator Animator
"""
NEIGHBOURS = """
    EncoderBlock TransformerEncoderBlock MaskLM NextSentencePred SNLIDataset load_data_snli predict_snli truncate_pad
    load_array tensor use_svg_display set_figsize set_axes
    load_data_wiki train_bert get_bert_encoding _read_wiki _WikiTextDataset _get_batch_loss_bert
"""


def test_every_name_of_the_chapters_is_there() -> None:
    names = (CHAPTER + NEIGHBOURS).split()
    assert set(names) == set(d2l.__all__)
    assert all(hasattr(d2l, name) for name in names)


def test_every_style_of_import_gives_the_same_names() -> None:
    import bertnli.d2l.torch
    from bertnli.d2l import torch as module

    assert module is bertnli.d2l.torch is d2l.torch
    assert set(module.__all__) == set(d2l.__all__)
    assert all(getattr(module, name) is getattr(d2l, name) for name in d2l.__all__)
    assert module.BERTModel is BERTModel


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed d2l package: its file torch.py."""
    (tmp_path / "d2l").mkdir()
    (tmp_path / "d2l" / "__init__.py").touch()
    for name in ("d2l", "d2l.torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    path: Path = tmp_path / "d2l" / "torch.py"
    path.write_text("BERTEncoder = resnet18 = _read_time_machine = 'of the book'\n")
    return path


def test_other_names_are_those_of_an_installed_d2l(book: Path) -> None:
    from bertnli.d2l import torch as module

    assert d2l.resnet18 == module.resnet18 == module._read_time_machine == "of the book"
    assert d2l.BERTEncoder is BERTEncoder
    with pytest.raises(AttributeError, match=r"not 'absent'; the installed d2l does not have it either"):
        _ = d2l.absent
    for name in ("d2l", "d2l.torch"):
        sys.modules.pop(name)


def test_other_names_without_d2l(book: Path) -> None:
    book.write_text("import package_that_is_missing\n")
    with pytest.raises(AttributeError, match=r"'resnet18'; the installed d2l cannot be imported: No module"):
        _ = d2l.resnet18
    book.unlink()
    with pytest.raises(AttributeError, match=r"D2L's BERT chapters, not 'resnet18'; .*\(pip install d2l\)"):
        _ = d2l.resnet18
    assert not hasattr(d2l, "__wrapped__")
    sys.modules.pop("d2l", None)


def test_pyplot_is_there_on_demand() -> None:
    assert d2l.plt.__name__ == "matplotlib.pyplot"
    assert torch.equal(d2l.tensor([1.0]), torch.tensor([1.0]))
    assert bertnli.d2l is d2l
