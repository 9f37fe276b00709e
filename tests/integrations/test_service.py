"""The HTTP service: the model's own results, whatever else is asked meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from helpers import ROOT
from helpers.commands import run
from helpers.tiny_tasks import NAMES, PIECES, WORDS, teacher
from starlette.testclient import TestClient

from bertnli import BERTEmbedder, Model, WordPieceTokenizer, save_pretrained
from bertnli.integrations.service import make_app

TOKENIZER = WordPieceTokenizer(PIECES)
PAIRS = [["red one", "red"], ["green two three", "blue"], ["five", "never reds"]]


def client(task: str = "classification", **settings: Any) -> Iterator[tuple[TestClient, Model]]:
    head = teacher(task) if task != "embedding" else BERTEmbedder(teacher(), pooling="mean")
    model = Model(head, TOKENIZER)
    with TestClient(make_app(model, "tiny", **settings)) as found:
        yield found, model


def assert_same(found: Any, wanted: Any) -> None:
    """Equal but for rounding."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            assert_same(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b)
    else:
        assert found == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


def plain(predictions: list[Any]) -> list[Any]:
    return [asdict(p) if hasattr(p, "__dataclass_fields__") else p for p in predictions]


@pytest.mark.parametrize(
    ("task", "examples"),
    [
        ("classification", [*PAIRS, {"premise": "red", "hypothesis": "one"}]),
        ("classification", ["red one", "two"]),
        ("multilabel", PAIRS),
        ("regression", PAIRS),
        ("tagging", [["red", "one"], {"words": ["two"]}][:1]),
        ("qa", [["red", "one red two"], ["five", "green one"]]),
    ],
)
def test_predictions_are_the_models(task: str, examples: list[Any]) -> None:
    for web, model in client(task):
        answer = web.post("/predict", json={"examples": [e for e in examples if isinstance(e, type(examples[0]))]})
        own = [tuple(e) if isinstance(e, list) and task != "tagging" else e for e in examples]
        own = [e for e in own if isinstance(e, type(own[0]))]
        assert answer.status_code == 200, answer.text
        assert_same(answer.json(), {"predictions": plain(model.predict(own))})
        assert web.post("/predict", json={"examples": []}).json() == {"predictions": []}
        assert web.get("/health").json()["task"] == task


def test_ranking_is_the_models() -> None:
    documents = [" ".join(random.Random(i).choices(WORDS, k=3)) for i in range(20)]
    for web, model in client():
        asked = {"query": "red one", "documents": documents, "top_k": 4, "label": "some"}
        wanted = model.rank("red one", documents, 4, label="some")
        assert_same(web.post("/rank", json=asked).json()["ranking"], [{"index": i, "score": s} for i, s in wanted])
        assert web.post("/rank", json={"query": "red", "documents": [], "label": "some"}).json() == {"ranking": []}
        assert "give label, one of none, some" in web.post("/rank", json={"query": "red", "documents": ["one"]}).text
        assert "one output" in web.post("/rerank", json={"query": "red", "texts": ["one"]}).json()["error"]
    for web, model in client("regression"):
        wanted = model.rank("red one", documents, 20)
        found = web.post("/rank", json={"query": "red one", "documents": documents, "top_k": 20}).json()["ranking"]
        assert_same(found, [{"index": i, "score": s} for i, s in wanted])
        asked = {"query": "red one", "texts": documents, "return_text": True}
        found = web.post("/rerank", json=asked).json()
        assert [row["index"] for row in found] == [i for i, _ in wanted]
        assert [row["text"] for row in found] == [documents[i] for i, _ in wanted]
        np.testing.assert_allclose(
            [row["score"] for row in found], [1 / (1 + np.exp(-s)) for _, s in wanted], atol=1e-5
        )
        found = web.post("/rerank", json=asked | {"raw_scores": True}).json()
        np.testing.assert_allclose([row["score"] for row in found], [s for _, s in wanted], atol=1e-5)


def test_vectors_are_the_models() -> None:
    texts = ["red one", "", "two"]
    for web, model in client("embedding"):
        found = web.post("/encode", json={"texts": texts, "prompt": "red "}).json()["vectors"]
        np.testing.assert_allclose(found, model.encode(texts, prompt="red "), atol=1e-5)
        np.testing.assert_allclose(
            web.post("/embed", json={"inputs": texts}).json(), model.encode(texts, normalize=True), atol=1e-5
        )
        assert len(web.post("/embed", json={"inputs": "red", "truncate": True}).json()) == 1
    for web, _ in client():
        assert "BERTEmbedder" in web.post("/encode", json={"texts": texts}).json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/predict", "{", "not JSON"),
        ("/predict", "[" * 100_000, "not JSON"),
        ("/predict", "[1]", "expected a JSON object; found list"),
        ("/predict", {}, "no 'examples'; it has nothing"),
        ("/predict", {"texts": ["red"]}, "no 'examples'; it has 'texts'"),
        ("/predict", {"examples": ["red"], "label": 1}, "'label', which nothing reads"),
        ("/predict", {"examples": "red"}, "examples must be a list"),
        ("/predict", {"examples": [1]}, ""),
        ("/predict", {"examples": [["red", "one"], "two"]}, "expected 2 parts"),
        ("/predict", {"examples": ["\ud800"]}, "surrogate"),
        ("/predict", {"examples": ["red"] * 9}, "9 examples; a request has at most 8"),
        ("/predict", {"examples": ["red " * 2000]}, "more than 4000 bytes"),
        ("/rank", {"query": "red", "documents": ["a", 1], "label": "some"}, "documents[1] must be a str"),
        ("/rank", {"query": "red", "documents": [], "label": "some", "top_k": True}, "top_k must be an integer"),
        ("/rank", {"query": "red", "documents": ["a"], "label": "some", "top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_a_wrong_request_is_said_what_is_wrong_with_it(path: str, body: Any, message: str) -> None:
    for web, _ in client(max_examples=8, max_bytes=4000 if message != "not JSON" else 1 << 20):
        answer = web.post(path, content=body if isinstance(body, str) else json.dumps(body))
        assert answer.status_code == 400, answer.text
        assert message in answer.json()["error"]
        assert web.get("/nowhere").json() == {"error": "Not Found"}
        assert web.get("/predict").status_code == 405
        assert web.post("/predict", json={"examples": ["red"]}).status_code == 200  # it goes on


def test_concurrent_requests_get_their_own_results() -> None:
    """200 at once, in common batches; a wrong one fails alone."""
    rng = random.Random(0)
    requests = [[[" ".join(rng.choices(WORDS, k=rng.randint(0, 9))), "red"] for _ in range(i % 4)] for i in range(200)]
    requests[50] = [["\ud800", "red"]]
    model = Model(teacher(), TOKENIZER)
    sizes: list[int] = []
    predict = model.predict

    def counted(*parts: Any, **settings: Any) -> Any:
        sizes.append(len(parts[0]))
        return predict(*parts, **settings)

    app = make_app(model, batch_size=32)
    model.predict = counted  # type: ignore[method-assign]

    async def ask() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as web,
        ):
            return await asyncio.gather(*(web.post("/predict", content=json.dumps({"examples": r})) for r in requests))

    answers = asyncio.run(ask())
    assert len(sizes) < 40
    for i, (answer, examples) in enumerate(zip(answers, requests, strict=True)):
        if i == 50:
            assert (answer.status_code, "surrogate" in answer.json()["error"]) == (400, True)
            continue
        wanted = plain(predict([tuple(e) for e in examples])) if examples else []
        assert_same(answer.json(), {"predictions": wanted})


def test_the_command_answers_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM waits for the requests that have begun, and is a success."""
    save_pretrained(teacher(), tmp_path / "model", TOKENIZER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["serve", "--model", str(tmp_path / "model"), "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bertnli", *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(4)]
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        status, _, err = run(*command, capsys=capsys)
        assert (status, f"cannot listen on port {port} of 127.0.0.1" in err) == (2, True)
        for connection in connections:
            connection.request("POST", "/predict", json.dumps({"examples": ["red " * 30] * 1000}))
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        answers = [connection.getresponse() for connection in connections]
        assert [(answer.status, len(json.loads(answer.read())["predictions"])) for answer in answers] == [
            (200, 1000)
        ] * 4
        assert process.wait(30) == 0
    finally:
        process.kill()
        _, err = process.communicate()
        for connection in connections:
            connection.close()
    assert f"on http://127.0.0.1:{port}" in err


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx2.get(url).json()["classes"] == list(NAMES)
            return
        except httpx2.ConnectError:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
