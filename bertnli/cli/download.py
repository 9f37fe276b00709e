"""`bertnli download`."""

from __future__ import annotations

from types import SimpleNamespace

from bertnli.data.download import download_extract


def download(args: SimpleNamespace) -> None:
    print(download_extract(args.name, into=args.folder))
