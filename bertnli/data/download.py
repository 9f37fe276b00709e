"""Downloads: the files that the chapter names, checked and atomic."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from bertnli.data.files import atomic_path, temporary_folder
from bertnli.data.progress import Progress

DATA_URL = "http://d2l-data.s3-accelerate.amazonaws.com/"

#: name -> (address, SHA-1). Add to it as the book does: `DATA_HUB["mine"] = (url, sha1)`.
DATA_HUB: dict[str, tuple[str, str | None]] = {
    "SNLI": ("https://nlp.stanford.edu/projects/snli/snli_1.0.zip", "9fcde07509c7e87ec61c640c1b2753d9041758e4"),
    "wikitext-2": (
        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
        "3c914d17d80b1459be871a5039ac23e752a53cbe",
    ),
    "bert.base": (DATA_URL + "bert.base.torch.zip", "225d66f04cae318b841a13d32af3acc165f253ac"),
    "bert.small": (DATA_URL + "bert.small.torch.zip", "c72329e68a732bef0452e4b96a1c341c8910f81f"),
}


def cache_dir() -> Path:
    """Where downloads go unless told otherwise: `$BERTNLI_CACHE`, or `~/.cache/bertnli`."""
    return Path(os.environ.get("BERTNLI_CACHE", Path.home() / ".cache" / "bertnli"))


def sha1_of(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _address(name: str) -> tuple[str, str | None]:
    """The address of a name of DATA_HUB with its SHA-1, or an address itself."""
    if "://" in name:
        return name, None
    if name not in DATA_HUB:
        raise KeyError(f"{name!r} is neither an address nor one of {sorted(DATA_HUB)}")
    return DATA_HUB[name]


def _has_control(name: str) -> bool:
    return any(c < " " or c == "\x7f" for c in name)


def download(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    sha1_hash: str | None = None,
    *,
    progress: bool = True,
) -> str:
    """Fetch a name of DATA_HUB, or an address (`http://`, `https://`, `file://`), and return the local file's path.

    progress    whether to print what is fetched, and show how far it has come

    A file that is already in `folder` is kept if its SHA-1 is the expected one (or none is known). What arrives is
    checked before it takes its place, so a broken transfer leaves nothing behind.

    Raises KeyError for an unknown name, ValueError for a wrong SHA-1, OSError where the address cannot be read.
    """
    url, known = _address(name)
    sha1_hash = sha1_hash or known
    target = Path(cache_dir() if folder is None else folder) / url.split("/")[-1]
    if target.exists() and (sha1_hash is None or sha1_of(target) == sha1_hash):
        return str(target)
    if progress:
        print(f"downloading {target} from {url}", file=sys.stderr, flush=True)
    with atomic_path(target) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as response, open(temporary, "wb") as file:
                size = int(response.headers.get("Content-Length") or 0)
                with Progress(size, target.name, "B", progress) as shown:
                    while block := response.read(1 << 18):
                        file.write(block)
                        shown.update(len(block))
        except urllib.error.URLError as error:
            raise OSError(f"could not download {url}: {error.reason}") from error
        received = temporary.stat().st_size
        if size and received != size:
            raise OSError(f"could not download {url}: {received} of {size} bytes arrived; try again")
        if sha1_hash is not None and (found := sha1_of(temporary)) != sha1_hash:
            raise ValueError(f"{url} has SHA-1 {found}, expected {sha1_hash}; nothing was kept")
    return str(target)


def download_extract(
    name: str, folder: str | None = None, *, into: str | os.PathLike[str] | None = None, progress: bool = True
) -> str:
    """Download a zip or tar archive, unpack it beside itself, and return the folder that it holds.

    folder    the name of the folder inside the archive; None means the archive's own name without its extension
    into      where to download to; None means `cache_dir()`

    A folder that is there without its archive is taken as it is, without a download. Entries whose names have control
    characters are left out, since Windows cannot create them (SNLI's archive has one).

    Raises ValueError for another kind of file or an unsafe member; otherwise as `download`.
    """
    archive = Path(cache_dir() if into is None else into) / _address(name)[0].split("/")[-1]
    stem, extension = os.path.splitext(archive)
    if extension not in (".zip", ".tar", ".gz", ".tgz"):
        raise ValueError(f"{archive} is not a zip or tar archive")
    result = archive.parent / (folder or Path(stem).name.removesuffix(".tar"))
    if not archive.exists() and result.is_dir() and any(result.iterdir()):
        return str(result)
    download(name, into, progress=progress)
    stamp = archive.with_name(f".{archive.name}.unpacked")
    status = archive.stat()
    identity = f"{status.st_size} bytes of {status.st_mtime_ns} ns"
    if result.exists() and stamp.exists() and stamp.read_text() == identity:
        return str(result)  # unpacked before, from this very archive
    # Unpack aside, then move: an interrupted run leaves no half of a file, and no stamp.
    with temporary_folder(archive.parent) as aside:
        try:
            if extension == ".zip":
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(aside, [name for name in zipped.namelist() if not _has_control(name)])
            else:
                with tarfile.open(archive) as tarred:
                    tarred.extractall(
                        aside, [m for m in tarred.getmembers() if not _has_control(m.name)], filter="data"
                    )
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise ValueError(f"{archive} cannot be unpacked: {error}") from error
        # File by file: what else lies in a folder of the same name is not ours to remove.
        for entry in sorted(aside.rglob("*")):
            place = archive.parent / entry.relative_to(aside)
            if place == archive:
                raise ValueError(f"{archive} holds an entry of its own name")
            if entry.is_dir() and not entry.is_symlink():
                place.mkdir(exist_ok=True)
            else:
                os.replace(entry, place)
    if not result.exists():
        raise ValueError(f"{archive} holds no {result.name}")
    with atomic_path(stamp) as temporary:
        temporary.write_text(identity)
    return str(result)
