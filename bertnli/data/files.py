"""Files: checks of a path, text read line by line, files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from bertnli.data.locks import is_at, try_lock

JSON_LINES = {".jsonl", ".json-lines", ".jsonlines", ".ndjson", ".json"}  # suffixes of files with one object a line


def check_file(path: Path) -> None:
    """Raise IsADirectoryError or FileNotFoundError where `path` is not a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")


@contextmanager
def unchanged(file: IO[Any], path: Path) -> Iterator[None]:
    """Run the block, which reads a file that was just opened. Raises ValueError if the file changed meanwhile."""

    def version() -> object:
        status = os.fstat(file.fileno())
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def check() -> None:
        if version() != opened:
            raise ValueError(f"{path}: the file changed while it was read; read it again once it is complete")

    opened = version()
    try:
        yield
    except ValueError:
        check()  # a better reason
        raise
    check()


@contextmanager
def open_text(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file with their line ends; a byte order mark is skipped.

    Raises what `check_file` does, and ValueError naming line and byte where the file is not UTF-8, and where it changes
    while it is read.
    """
    check_file(path)
    with open(path, encoding="utf-8-sig", newline="") as file, unchanged(file, path):
        try:
            yield iter(file)
        except UnicodeDecodeError as error:
            with open(path, "rb") as binary:
                for _ in decoded_lines(binary, path):  # the error above counts bytes from the begin of a chunk
                    pass
            raise ValueError(f"{path} is not UTF-8: {error}") from None


def decoded_lines(file: Iterable[bytes], where: object) -> Iterator[str]:
    """The lines of UTF-8 bytes with their line ends; a byte order mark is skipped.

    where    the bytes' source, for errors. Raises ValueError naming line and byte.
    """
    position = 0
    for number, line in enumerate(file, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}:{number}: byte 0x{line[error.start]:02x} at position {position + error.start} is not UTF-8; "
                "save the text as UTF-8"
            ) from None
        position += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises ValueError naming the file where it is not JSON."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for JSON of this kind") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's `object_pairs_hook`. Raises ValueError where an object has a key twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key of {[key for key, _ in pairs]} is repeated")
    return values


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` when the block succeeds, removed when it fails.

    Raises OSError naming `path` where it cannot be written.
    """
    path = Path(path)
    with atomic_paths(path.parent, [path.name]) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(folder: Path, names: Sequence[str], remove: Sequence[str] = ()) -> Iterator[list[Path]]:
    """Temporary paths for the files `names` of the folder, which change together.

    When the block succeeds, all are on the disk before the first takes its name. Then the files `remove` go, and the
    new ones take their names in the order given. When it fails, the temporary files are removed. Those of a process
    that was killed are removed by the next call for the same folder.
    """
    path, temporaries = folder, list[tuple[Path, int]]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        for name in names:
            path = folder / name
            temporaries.append(_temporary(partial(tempfile.mkstemp, _SUFFIX, _prefix(name), folder)))
        path = folder / ", ".join(names)
        yield [new for new, _ in temporaries]
        umask = os.umask(0)
        os.umask(umask)
        for name, (new, _) in zip(names, temporaries, strict=True):
            path = folder / name
            new.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
            _sync(new)
        for name in remove:
            path = folder / name
            path.unlink(missing_ok=True)
        for name, (new, _) in zip(names, temporaries, strict=True):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            os.replace(new, path)
        _sync(folder)
    except OSError as error:
        own = tuple(map(_prefix, names))
        if error.errno is None or not (error.filename is None or Path(str(error.filename)).name.startswith(own)):
            raise  # of another file, or worded already
        raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(path)) from error
    finally:
        for new, handle in temporaries:
            new.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Run the block, in which a library writes what will be `path`. Its errors become OSError naming `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    except (RuntimeError, SafetensorError) as error:  # a full disk, as torch and safetensors say it
        raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that is removed after the block; that of a killed process is removed by the next call."""
    _remove_abandoned(parent)

    def make() -> tuple[int, str]:
        name = tempfile.mkdtemp(_SUFFIX, ".folder.", parent)
        return os.open(name, os.O_RDONLY), name

    path, handle = _temporary(make)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


# The name of a temporary file or folder ends so, and the process that uses it holds its lock.
_SUFFIX = ".bertnli.tmp"


def _temporary(make: Callable[[], tuple[int, str]]) -> tuple[Path, int]:
    """What `make` makes and opens, locked."""
    while True:
        handle, name = make()
        if try_lock(handle) is not False and is_at(Path(name), handle):
            return Path(name), handle
        os.close(handle)  # another process took it for an abandoned one


def _prefix(name: str) -> str:
    """How the temporary file of `name`, which may be within a folder, begins."""
    return f".{name.replace('/', '-')}."


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders of processes that were killed."""
    for path in folder.glob(f".*{_SUFFIX}"):
        try:
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        except OSError:  # another process has just removed it, or it is another user's
            continue
        try:
            if try_lock(handle):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def check_space(folder: Path, size: int) -> None:
    """Raise OSError if the disk of the folder, which exists, has less than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            errno.ENOSPC, f"too little space: {free / 1e6:.0f} MB free, {size / 1e6:.0f} MB needed", str(folder)
        )


def _sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # other systems cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
