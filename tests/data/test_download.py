"""Downloads from a local server and from file:// addresses: checked, atomic, resumable by doing nothing."""

from __future__ import annotations

import hashlib
import http.server
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertnli import d2l
from bertnli.data import download as hub
from bertnli.data.files import atomic_path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with mini.zip, which holds mini/a.txt and mini/b/c.txt."""
    folder = tmp_path / "site"
    folder.mkdir()
    with zipfile.ZipFile(folder / "mini.zip", "w") as archive:
        archive.writestr("mini/a.txt", "alpha")
        archive.writestr("mini/b/c.txt", "gamma")
    return folder


@pytest.fixture
def server(site: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the requests that it has had. A path ending in `.cut` promises more bytes than it sends."""
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(site))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            requests.append(self.path)
            if self.path.endswith(".cut"):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"short")
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()
        thread.join()


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def test_a_checked_file_is_fetched_once(server: tuple[str, list[str]], site: Path, tmp_path: Path) -> None:
    address, requests = server
    for _ in range(2):
        path = hub.download(f"{address}/mini.zip", tmp_path / "to", sha1(site / "mini.zip"), progress=False)
        assert Path(path).read_bytes() == (site / "mini.zip").read_bytes()
    assert requests == ["/mini.zip"]
    # A damaged copy is noticed and fetched anew.
    Path(path).write_bytes(b"damaged")
    hub.download(f"{address}/mini.zip", tmp_path / "to", sha1(site / "mini.zip"), progress=False)
    assert Path(path).read_bytes() == (site / "mini.zip").read_bytes()
    assert len(requests) == 2
    assert Path(path).stat().st_mode & 0o777 == 0o666 & ~os_umask()


def os_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("name", "digest", "error"),
    [
        ("mini.zip", "0" * 40, "expected 0000"),
        ("none.zip", None, "File not found"),
        ("half.cut", None, "arrived|5 of 1000"),
    ],
)
def test_what_is_not_whole_leaves_nothing(
    server: tuple[str, list[str]], tmp_path: Path, name: str, digest: str | None, error: str
) -> None:
    with pytest.raises((ValueError, OSError), match=error):
        hub.download(f"{server[0]}/{name}", tmp_path / "to", digest, progress=False)
    assert list((tmp_path / "to").iterdir()) == []


def test_names_and_file_addresses(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hub.DATA_HUB, "mini", ((site / "mini.zip").as_uri(), sha1(site / "mini.zip")))
    monkeypatch.setenv("BERTNLI_CACHE", str(tmp_path / "cache"))
    folder = Path(hub.download_extract("mini", progress=False))
    assert folder == tmp_path / "cache" / "mini"
    assert (folder / "a.txt").read_text() == "alpha"
    assert (folder / "b" / "c.txt").read_text() == "gamma"
    # A second call neither downloads nor unpacks.
    (folder / "a.txt").write_text("kept")
    assert hub.download_extract("mini", progress=False) == str(folder)
    assert (folder / "a.txt").read_text() == "kept"
    assert hub.download_extract("mini", "mini", progress=False) == str(folder)
    with pytest.raises(KeyError, match="neither an address nor one of"):
        hub.download("nothing")
    with pytest.raises(ValueError, match="holds no other"):
        hub.download_extract("mini", "other", progress=False)
    for name in ("packed.tar.gz", "packed.tgz"):
        with tarfile.open(site / name, "w:gz") as archive:
            archive.add(folder, "packed")
        found = Path(hub.download_extract((site / name).as_uri(), into=tmp_path / name, progress=False))
        assert (found / "a.txt").read_text() == "alpha"


def test_a_folder_that_is_named_from_here(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.download_extract((site / "mini.zip").as_uri(), into="to", progress=False) == str(Path("to", "mini"))
    assert Path("to", "mini", "a.txt").read_text() == "alpha"


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"bad\.zip cannot be unpacked"):
        hub.download_extract((tmp_path / "bad.zip").as_uri(), into=tmp_path / "to", progress=False)
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["bad.zip"]
    (tmp_path / "a.csv").write_bytes(b"1")
    with pytest.raises(ValueError, match="not a zip or tar"):
        hub.download_extract((tmp_path / "a.csv").as_uri(), into=tmp_path / "to", progress=False)


def test_the_books_files_are_registered() -> None:
    assert hub.DATA_HUB["SNLI"][1] == "9fcde07509c7e87ec61c640c1b2753d9041758e4"
    assert hub.DATA_HUB["bert.small"][0].endswith("/bert.small.torch.zip")


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as path:
        path.write_text(str(1 // 0))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_fetched_is_said(
    server: tuple[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hub.download(f"{server[0]}/mini.zip", tmp_path)
    assert capsys.readouterr() == ("", f"downloading {path} from {server[0]}/mini.zip\n")
    hub.download(f"{server[0]}/mini.zip", tmp_path)
    hub.download(f"{server[0]}/mini.zip", tmp_path / "other", progress=False)
    assert capsys.readouterr() == ("", "")


def test_an_unpacked_folder_needs_no_network(
    tmp_path: Path, site: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.DATA_HUB, "mini", (f"{server[0]}/mini.zip", None))
    folder = Path(hub.download_extract("mini", into=tmp_path))
    (tmp_path / "mini.zip").unlink()
    requests = len(server[1])
    assert hub.download_extract("mini", into=tmp_path) == str(folder)
    assert len(server[1]) == requests
    for path in folder.iterdir():
        path.unlink() if path.is_file() else None
    (folder / "b" / "c.txt").unlink()
    (folder / "b").rmdir()
    assert (Path(hub.download_extract("mini", into=tmp_path)) / "a.txt").exists()  # an empty folder is none


@pytest.mark.parametrize("name", ["icon.zip", "icon.tar.gz"])
def test_names_with_control_characters_are_left_out(name: str, site: Path, tmp_path: Path) -> None:
    """SNLI's archive has `Icon\\r`, which Windows cannot create."""
    names = ["icon/a.txt", "icon/Icon\r", "icon/\x7f/b.txt", "icon/é.txt"]
    if name.endswith(".zip"):
        with zipfile.ZipFile(site / name, "w") as zipped:
            for member in names:
                zipped.writestr(member, "x")
    else:
        with tarfile.open(site / name, "w:gz") as tarred:
            for member in names:
                tarred.addfile(tarfile.TarInfo(member))
    found = Path(hub.download_extract((site / name).as_uri(), "icon", into=tmp_path))
    assert sorted(path.name for path in found.iterdir()) == ["a.txt", "é.txt"]


def test_both_editions_keywords(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = (site / "mini.zip").as_uri()
    monkeypatch.setitem(d2l.DATA_HUB, "mini", (address, None))
    for i, path in enumerate((
        d2l.download(url=address, folder=tmp_path / "0"),
        d2l.download("mini", cache_dir=tmp_path / "1"),
        d2l.download(name="mini", cache_dir=tmp_path / "2"),
        d2l.download(address, tmp_path / "3", None),
    )):  # fmt: skip
        assert Path(path) == tmp_path / str(i) / "mini.zip"
    with pytest.raises(TypeError, match="one of name and url"):
        d2l.download()
    with pytest.raises(TypeError, match="folder and cache_dir"):
        d2l.download("mini", folder=tmp_path, cache_dir=tmp_path)
