"""Where a checkpoint is: a folder, a name of DATA_HUB, or a name on the Hugging Face hub, of which only what is read is
downloaded; and uploading one."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from bertnli.checkpoint import sentence_transformers
from bertnli.checkpoint.card import CARD, is_own_card
from bertnli.checkpoint.files import WEIGHTS, read_object
from bertnli.checkpoint.huggingface import check_config
from bertnli.data import download as downloads
from bertnli.data.arguments import path_of
from bertnli.data.extras import from_extra

_SMALL = (
    *("config.json", "vocab.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "README.md", *sentence_transformers.FILES),
)


def find_folder(name: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> Path:
    """The checkpoint's folder: `name` itself (of a repository in huggingface_hub's cache, models--TEAM--NAME, the files
    of its main branch), or where a name of DATA_HUB or of the Hugging Face hub was downloaded.

    folder: where downloads go. Raises FileNotFoundError if `name` is none of these, and ValueError, before weights are
    downloaded, for a config.json on the hub of a model that cannot be loaded.
    """
    path, text = path_of(name, "the checkpoint"), str(name)
    if path.is_dir():
        return _snapshot(path)
    if text in downloads.DATA_HUB:
        return Path(downloads.download_extract(text, into=folder))
    if path.is_absolute() or text.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise FileNotFoundError(f"{name}: no such folder")
    try:
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise FileNotFoundError(
            f"{name}: no such folder, and not bert.small or bert.base; to download it from the Hugging Face hub, "
            "pip install 'bertnli[hub]'"
        ) from None
    try:
        return _download(text, None if folder is None else Path(folder))
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: no such folder, not bert.small or bert.base, and downloading it from the Hugging Face hub "
            f"failed: {error}"
        ) from error


def _snapshot(folder: Path) -> Path:
    reference = folder / "refs" / "main"
    if not folder.name.startswith("models--") or not reference.is_file():
        return folder
    return folder / "snapshots" / reference.read_text(encoding="utf-8").strip()


def upload(folder: Path, repo_id: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Upload a folder to a repository of the Hugging Face hub, which is made if there is none, and give the address of
    the commit. A model card that bertnli did not write stays as it is there.

    Raises ImportError without `bertnli[hub]`, and what huggingface_hub raises, such as HfHubHTTPError without access.
    """
    with from_extra("hub", "the Hugging Face hub"):
        from huggingface_hub import HfApi
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    kept = []
    if api.file_exists(repo_id, CARD):
        card = Path(api.hf_hub_download(repo_id, CARD))
        kept = [] if is_own_card(card) else [CARD]
    done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=kept)
    return str(done.commit_url)


def _download(name: str, cache: Path | None) -> Path:
    """The configuration first; then, if the model can be loaded, one format of its weights and the other files."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(name)
    except RepositoryNotFoundError:
        raise
    except Exception as error:  # no network, which each version of the client says by another class
        try:  # what was downloaded before; without the pattern the client would miss files that are not needed
            return Path(snapshot_download(name, cache_dir=cache, local_files_only=True, allow_patterns=["config.json"]))
        except OSError:
            raise OSError(str(error)) from error
    names = {entry.rfilename for entry in info.siblings or ()}
    fetch: Any = partial(hf_hub_download, name, cache_dir=cache)
    prefix, modules = "", list[str]()
    if sentence_transformers.FILES[0] in names:
        root = Path(fetch(sentence_transformers.FILES[0])).parent
        folders = [folder.relative_to(root).parts for _, folder in sentence_transformers.modules(root)]
        prefix, *modules = ("".join(f"{part}/" for part in parts) for parts in folders)
    if f"{prefix}config.json" in names:
        path = Path(fetch(f"{prefix}config.json"))
        settings = read_object(path)
        if settings.get("format") != "bertnli":
            check_config(settings, path)
    weights = next((file for file in (*WEIGHTS, "pretrained.params") if prefix + file in names), None)
    if weights is None:
        raise FileNotFoundError(f"it has none of the files {', '.join(WEIGHTS)}")
    wanted = [*_SMALL, *(prefix + file for file in (*_SMALL, weights))]
    for module in modules:
        wanted += [f"{module}config.json", *[module + file for file in WEIGHTS if module + file in names][:1]]
    if weights.endswith(".index.json"):
        shards = read_object(Path(fetch(prefix + weights))).get("weight_map")
        wanted += sorted({f"{prefix}{file}" for file in shards.values()}) if isinstance(shards, dict) else []
    return Path(snapshot_download(name, cache_dir=cache, allow_patterns=wanted))
