"""Locks of files: one writer at a time, and none that a dead process holds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


def try_lock(handle: int) -> bool | None:
    """Lock an open file until its last handle is closed, at the latest when the process ends.

    False if another handle holds the lock, None where the system or the file system has no such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(path: Path, handle: int) -> bool:
    """True if the open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def lock(path: Path, what: object) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; it is removed afterwards, and says who holds it.

    what    what the lock stands for, for the error

    Raises BlockingIOError, naming `what` and the process that holds the lock; OSError where the file cannot be written.
    """
    handle = _acquire(path, what)
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner and is_at(path, handle):  # not a forked child, and not another's file
            path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, what: object) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = try_lock(handle)
            if locked is False or (locked is None and _holder_lives(handle)):
                raise BlockingIOError(
                    f"{what} is in use: {_holder(handle)} writes it; wait until that ends, or name another output"
                )
            if is_at(path, handle):  # else the process before removed it meanwhile
                _say_holder(path, handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _say_holder(path: Path, handle: int) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def _read(handle: int) -> tuple[str, str]:
    pid, _, host = os.pread(handle, 300, 0).decode(errors="replace").strip().partition(" ")
    return pid, host


def _holder(handle: int) -> str:
    pid, host = _read(handle)
    return f"process {pid or 'of unknown number'}" + ("" if host in ("", socket.gethostname()) else f" on {host}")


def _holder_lives(handle: int) -> bool:
    """Whether the process that the file names lives, as far as can be told: where there are no locks."""
    pid, host = _read(handle)
    if not pid.isdigit() or host != socket.gethostname() or os.name != "posix":
        return bool(pid)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
