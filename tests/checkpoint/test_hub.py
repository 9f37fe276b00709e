"""Names on the Hugging Face hub, against a server of this process and caches as huggingface_hub lays them out."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from helpers import ROOT
from helpers.checkpoints import make, save
from safetensors.torch import load_file

from bertnli import Model, load_pretrained_model

SHA = "0" * 40
LOAD = """
import sys
from bertnli import load_pretrained_model
for name in sys.argv[2:]:
    try:
        bert, tokenizer = load_pretrained_model(name, folder=sys.argv[1])
        print(bert.config.num_layers, tokenizer.encode("the dog"), bert.provenance)
    except (FileNotFoundError, ValueError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


class Handler(BaseHTTPRequestHandler):
    """What the client asks a hub for; the repository team/NAME is the folder NAME."""

    root: ClassVar[Path]
    sent: ClassVar[list[str]]

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.root / (parts[1] if parts[:1] == ["team"] and len(parts) > 1 else "none")
        files = sorted(str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file())
        file = repository / "/".join(parts[4:]) if parts[2:3] == ["resolve"] else None
        if not repository.is_dir() or (file is not None and not file.is_file()):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if repository.is_dir() else "RepoNotFound")
            self.end_headers()
            return
        if file is not None:
            data = file.read_bytes()
            self.sent.extend([str(file.relative_to(repository))] if body else [])
        elif parts[2:3] == ["tree"]:
            entries = [{"type": "file", "path": n, "size": (repository / n).stat().st_size, "oid": n} for n in files]
            data = json.dumps(entries).encode()
        else:
            data = json.dumps(
                {"id": "/".join(parts[:2]), "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
            ).encode()
        self.send_response(200)
        tag = f'"{abs(hash(path))}"'
        for key, value in {"X-Repo-Commit": SHA, "ETag": tag, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    Handler.root, Handler.sent = tmp_path / "site", []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def load(names: list[str], folder: Path, address: str, offline: bool = False) -> list[str]:
    """What loading each name gives, in a process of its own: the hub's address is read when its client is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder / "cache"), *names],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def loaded(name: str) -> str:
    return f"2 [5, 6] {{'base': '{name}', 'license': 'mit'}}"


def site(tmp_path: Path, name: str) -> Path:
    folder = save(make("BertForSequenceClassification", num_labels=3), tmp_path / "site" / name)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.onnx").write_text("large")
    return folder


def test_one_weight_format_and_a_second_time_without_network(tmp_path: Path, address: str) -> None:
    folder = site(tmp_path, "tiny")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    found, absent = load(["team/tiny", "team/absent"], tmp_path, address)
    assert found == loaded("team/tiny")
    assert absent.startswith(
        "FileNotFoundError team/absent: no such folder, not bert.small or bert.base, and downloading"
    )
    assert Handler.sent[0] == "config.json"
    assert Handler.sent.count("model.safetensors") == 1
    assert not {"pytorch_model.bin", "model.onnx"} & set(Handler.sent)
    Handler.sent.clear()
    assert load(["team/tiny"], tmp_path, address, offline=True) == [loaded("team/tiny")]
    assert not Handler.sent
    found, unknown = load(["team/tiny", "team/unknown"], tmp_path, "http://127.0.0.1:9")  # no server
    assert found == loaded("team/tiny")
    assert unknown.startswith("FileNotFoundError team/unknown: no such folder, ")
    assert "Connection refused" in unknown


def test_what_cannot_be_loaded_is_refused_before_its_weights(tmp_path: Path, address: str) -> None:
    folder = site(tmp_path, "other")
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (site(tmp_path, "empty") / "model.safetensors").unlink()
    other, empty = load(["team/other", "team/empty"], tmp_path, address)
    assert other.startswith("ValueError ")
    assert "config.json has model_type 'roberta', a RoBERTa; bertnli loads BERT, DistilBERT and ELECTRA" in other
    assert "it has none of the files model.safetensors, " in empty
    assert set(Handler.sent) == {"config.json"}


def test_shards_and_modules(tmp_path: Path, address: str) -> None:
    folder = site(tmp_path, "sharded")
    (folder / "model.safetensors").unlink()
    make("BertForSequenceClassification", num_labels=3).save_pretrained(folder, max_shard_size="20KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 2
    (folder / "model-of-another.safetensors").write_text("not in the index")
    # A folder of sentence-transformers whose encoder is in a folder of its own.
    inner = site(tmp_path, "sentences/0_Transformer")
    (inner / "README.md").rename(inner.parent / "README.md")
    kinds = ("Transformer", "Pooling", "Dense")
    entries = [{"type": f"x.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]
    (inner.parent / "modules.json").write_text(json.dumps(entries))
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/other.bin"):
        (inner.parent / name).parent.mkdir(exist_ok=True)
        (inner.parent / name).write_text("{}")
    names = ["team/sharded", "team/sentences"]
    assert load(names, tmp_path, address) == [loaded(name) for name in names]
    sent = {name for name in Handler.sent if name.endswith(".safetensors")}
    assert sent == {*shards, "0_Transformer/model.safetensors", "2_Dense/model.safetensors"}
    assert {"1_Pooling/config.json", "2_Dense/config.json"} <= set(Handler.sent)
    assert "2_Dense/other.bin" not in Handler.sent


def test_a_cache_that_another_program_filled(tmp_path: Path) -> None:
    folder = site(tmp_path, "tiny")
    place = tmp_path / "cache" / "models--team--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / SHA)
    assert load(["team/tiny"], tmp_path, "http://127.0.0.1:9", offline=True) == [loaded("team/tiny")]
    bert, _ = load_pretrained_model(place)  # the cached repository's own folder
    assert bert.provenance == {"base": "team/tiny", "license": "mit"}


class Api:
    """What `push_to_hub` asks of huggingface_hub's HfApi: repositories are folders of `root`."""

    root: ClassVar[Path]
    calls: ClassVar[list[Any]]

    def __init__(self, token: str | None) -> None:
        self.calls.append(token)

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        self.calls.append(private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id: str, name: str) -> bool:
        return (self.root / repo_id / name).exists()

    def hf_hub_download(self, repo_id: str, name: str) -> str:
        return str(self.root / repo_id / name)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, ignore_patterns: list[str]) -> Any:
        self.calls.append(commit_message)
        ignore = shutil.ignore_patterns(*ignore_patterns)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True, ignore=ignore)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("create_repo", "file_exists", "hf_hub_download", "upload_folder"):  # they are called as they are there
        ours, theirs = inspect.signature(getattr(Api, name)), inspect.signature(getattr(huggingface_hub.HfApi, name))
        assert ours.parameters.keys() - {"name"} <= theirs.parameters.keys()
    Api.root, Api.calls = tmp_path / "hub", []
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = Model.from_pretrained(save(make("BertForSequenceClassification", num_labels=3), tmp_path / "model"))
    address = model.push_to_hub("team/tiny", private=True, token="secret")
    assert address == "https://huggingface.co/team/tiny/commit/1"
    assert Api.calls == ["secret", True, "Upload model"]
    pushed = Api.root / "team" / "tiny"
    pairs = [("the dog", "a cat")]
    assert Model.from_pretrained(pushed).score(pairs).tolist() == model.score(pairs).tolist()
    assert (pushed / "README.md").read_text().count("\n# tiny\n") == 1
    (pushed / "README.md").write_text("My own text.")
    model.push_to_hub("team/tiny", format="bertnli", commit_message="Second")
    assert Api.calls[3:] == [None, None, "Second"]
    assert (pushed / "README.md").read_text() == "My own text."
    assert json.loads((pushed / "config.json").read_text())["format"] == "bertnli"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"the Hugging Face hub needs huggingface_hub: pip install 'bertnli\[hub\]'"):
        model.push_to_hub("team/tiny")
