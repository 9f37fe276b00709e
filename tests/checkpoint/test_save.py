"""A checkpoint is saved as a whole: an interrupted save is seen, an impossible one is one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import ROOT

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    from_pretrained,
    save_pretrained,
)
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "run", "##s", "sleep"]
WORDS = ["<pad>", "<cls>", "<sep>", "the", "dog", "runs", "sleeps", "a", "cat"]
SIZES: dict[str, Any] = dict(num_hiddens=64, ffn_num_hiddens=8, num_heads=1, num_layers=1, max_len=8)


class Killed(BaseException):
    """No error that the code under test could handle."""


def wordpiece_model(seed: int, pieces: list[str], lowercase: bool, names: str) -> tuple[Head, Tokenizer]:
    torch.manual_seed(seed)
    bert = BERTModel(BERTConfig.original(len(pieces), **SIZES, pretraining_heads=False))
    return BERTClassifier(bert, 3, list(names)).eval(), WordPieceTokenizer(pieces, lowercase)


def word_model(seed: int, words: list[str]) -> tuple[Head, Tokenizer]:
    torch.manual_seed(seed)
    config = BERTConfig(len(words) + 1, **SIZES, pretraining_heads=False)
    return BERTClassifier(BERTModel(config), 3).eval(), WordTokenizer(Vocab([], reserved_tokens=words))


def what_loads(folder: Path) -> tuple[object, ...] | None:
    """Everything that decides an answer, or None if the folder is refused."""
    try:
        model, tokenizer = from_pretrained(folder)
    except (ValueError, FileNotFoundError):
        return None
    weights = model.state_dict()
    names = getattr(model, "label_names", None)
    return names, tokenizer.encode("The dog runs"), sorted((k, v.sum().item()) for k, v in weights.items())


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Stop the process's work before its change number `step` of a name in a folder."""
    steps = iter(range(10**6))

    def replace(*args: object, original: object = os.replace) -> None:
        if next(steps) == step:
            raise Killed
        original(*args)  # type: ignore[operator]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if not path.name.startswith(".") and next(steps) == step:
            raise Killed
        if path.exists() or not missing_ok:
            os.remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", unlink)
        yield


A = wordpiece_model(1, PIECES, True, "ecn")
SAVES = {
    "labels": (A, wordpiece_model(2, PIECES, True, "nec"), "bertnli", "bertnli"),
    "tokens": (A, wordpiece_model(2, [*PIECES[:5], *PIECES[:4:-1]], True, "ecn"), "bertnli", "bertnli"),
    "case": (A, wordpiece_model(2, PIECES, False, "ecn"), "huggingface", "huggingface"),
    "to huggingface": (A, wordpiece_model(2, PIECES, True, "nec"), "bertnli", "huggingface"),
    "from huggingface": (A, wordpiece_model(2, PIECES, False, "nec"), "huggingface", "bertnli"),
    "words": (word_model(1, WORDS), word_model(2, WORDS[::-1]), "bertnli", "bertnli"),
    "d2l": (word_model(1, WORDS), word_model(2, WORDS[::-1]), "d2l", "d2l"),
    "to d2l": (word_model(1, WORDS), word_model(2, WORDS[::-1]), "bertnli", "d2l"),
    "from d2l": (word_model(1, WORDS), word_model(2, WORDS[::-1]), "d2l", "bertnli"),
}


@pytest.mark.parametrize("case", SAVES)
def test_no_interruption_mixes_two_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    (old, old_tokenizer), (new, new_tokenizer), old_format, new_format = SAVES[case]
    save_pretrained(old, tmp_path / "old", old_tokenizer, format=old_format)
    save_pretrained(new, tmp_path / "new", new_tokenizer, format=new_format)
    legal = [None, what_loads(tmp_path / "old"), what_loads(tmp_path / "new")]
    for step in range(20):
        folder = tmp_path / str(step)
        save_pretrained(old, folder, old_tokenizer, format=old_format)
        try:
            with killed_at(monkeypatch, step):
                save_pretrained(new, folder, new_tokenizer, format=new_format)
        except Killed:
            assert what_loads(folder) in legal, step
        else:
            break
    assert step >= 2
    assert what_loads(folder) == legal[2]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


KILL = """
import os, signal, sys
import bertnli
model, tokenizer = bertnli.from_pretrained(sys.argv[1])
model.label_names = model.label_names[::-1]
replace = os.replace
def then_die(*paths):
    replace(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = then_die
bertnli.save_pretrained(model, sys.argv[1], tokenizer)
"""


def test_a_killed_save_is_named(tmp_path: Path) -> None:
    save_pretrained(A[0], tmp_path, A[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", KILL, str(tmp_path)], env=environment, check=False)
    assert result.returncode == -9
    with pytest.raises(ValueError, match=r"config\.json and vocab\.txt are not of the same save as model\.safetensors"):
        from_pretrained(tmp_path)
    save_pretrained(A[0], tmp_path, A[1])
    from_pretrained(tmp_path)


@pytest.mark.parametrize("format", ["bertnli", "d2l"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, format: str) -> None:
    model, tokenizer = word_model(1, WORDS)
    save_pretrained(model, tmp_path / "out", tokenizer, format=format)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    other, _ = word_model(2, WORDS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write.*(safetensors|params)") as caught:
            save_pretrained(other, tmp_path / "out", tokenizer, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "out") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        save_pretrained(A[0], tmp_path / "file", A[1])


def test_a_compiled_model_is_saved_as_the_model_in_it(tmp_path: Path) -> None:
    head, tokenizer = word_model(0, WORDS)
    compiled: Any = torch.compile(head, backend="eager")
    save_pretrained(compiled, tmp_path / "compiled", tokenizer)
    save_pretrained(head, tmp_path / "plain", tokenizer)
    assert what_loads(tmp_path / "compiled") == what_loads(tmp_path / "plain") is not None


def test_a_model_with_adapters_is_refused(tmp_path: Path) -> None:
    head, tokenizer = word_model(0, WORDS)
    adapted = peft.get_peft_model(head, peft.LoraConfig(target_modules=["W_q"]))
    with pytest.raises(ValueError, match=r"no place for the encoder's blks.0.attention.W_q.*merge_and_unload"):
        save_pretrained(head, tmp_path, tokenizer)
    assert adapted.merge_and_unload() is head
    save_pretrained(head, tmp_path, tokenizer)
