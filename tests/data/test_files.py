"""Locks and temporary files: one writer at a time, and nothing left of killed processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from bertnli import load_examples
from bertnli.data import locks
from bertnli.data.files import atomic_path, check_space, temporary_folder
from bertnli.data.locks import lock
from bertnli.data.tensors import write_tensors

HOLD = """
import sys, time
from pathlib import Path
from bertnli.data.files import atomic_path, temporary_folder
from bertnli.data.locks import lock
from bertnli.data.tensors import write_tensors

folder = Path(sys.argv[1])
with lock(folder / ".lock", folder), atomic_path(folder / "x.bin") as path, temporary_folder(folder) as aside:
    path.write_bytes(b"half")
    (aside / "inner").write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds a lock, a temporary file and a temporary folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_process_and_dies_with_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(BlockingIOError, match=f"{tmp_path} is in use: process {process.pid} writes it"):
            lock(tmp_path / ".lock", tmp_path).__enter__()
        with atomic_path(tmp_path / "x.bin") as path:  # a live process's temporary files stay
            path.write_bytes(b"whole")
        assert len(list(tmp_path.glob(".*.bertnli.tmp"))) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (tmp_path / ".other.tmp").touch()
    with lock(tmp_path / ".lock", tmp_path), atomic_path(tmp_path / "y.bin") as path:
        path.write_bytes(b"whole")
        assert len(list(tmp_path.glob(".*.bertnli.tmp"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp", "x.bin", "y.bin"]


def test_a_process_excludes_itself(tmp_path: Path) -> None:
    with lock(tmp_path / "a" / ".lock", "a"):
        with pytest.raises(BlockingIOError, match=f"a is in use: process {os.getpid()} writes it"):
            lock(tmp_path / "a" / ".lock", "a").__enter__()
        with lock(tmp_path / ".lock", "b"):
            pass
    with lock(tmp_path / "a" / ".lock", "a"):
        pass
    assert list((tmp_path / "a").iterdir()) == []


def test_without_locks_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a lock file counts while the process that it names lives."""
    monkeypatch.setattr(locks, "fcntl", None)
    test_a_process_excludes_itself(tmp_path)
    with subprocess.Popen(["true"]) as process:
        pass
    (tmp_path / ".lock").write_text(f"{process.pid} {os.uname().nodename}\n")
    with lock(tmp_path / ".lock", "b"):
        pass
    (tmp_path / ".lock").write_text("1 elsewhere\n")
    with pytest.raises(BlockingIOError, match="process 1 on elsewhere"):
        lock(tmp_path / ".lock", "b").__enter__()


def test_a_forked_child_leaves_the_lock(tmp_path: Path) -> None:
    held = lock(tmp_path / ".lock", "a")
    held.__enter__()
    child = os.fork()
    if child == 0:
        held.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").exists()
    with pytest.raises(BlockingIOError, match="in use"):
        lock(tmp_path / ".lock", "a").__enter__()
    held.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["torch", "safetensors", "text"])
def test_libraries_write_into_the_locked_file(tmp_path: Path, kind: str) -> None:
    """They do not replace it, so that its lock says whether it is in use."""
    with atomic_path(tmp_path / "x") as path:
        before = path.stat().st_ino
        if kind == "torch":
            torch.save({"a": torch.zeros(3)}, path)
        elif kind == "safetensors":
            write_tensors(path, {"a": torch.zeros(3)}, {})
        else:
            path.write_text("x")
        assert path.stat().st_ino == before


def test_too_little_space(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(OSError, match=r"too little space: \d+ MB free, 1000000000000 MB needed") as caught:
        check_space(tmp_path, 10**18)
    assert caught.value.errno == errno.ENOSPC


def test_temporary_folders_go(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as aside:
        (aside / "x").touch()
    assert list(tmp_path.iterdir()) == []


def test_other_columns_are_advised_once(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\tb\tverdict\nx\ty\tno\n")
    advice = r"found the columns 'a', 'b', 'verdict'; name other columns: --text-columns a --label-column verdict \("
    with pytest.raises(ValueError, match=advice):
        load_examples(tmp_path / "x.txt")
