"""The HTTP service: requests of one pair each, one after the other and 32 at once, without a network between.

    pytest benchmarks/bench_service.py [--quick]

bertnli               `make_app`, which computes concurrent requests in common batches
bertnli, one by one   the same app with batches of one example
CrossEncoder          an app of Starlette's that calls sentence-transformers for each request, in one thread

All score the same pairs of SNLI with the same weights (MiniLM's size, random, one output).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from common import problem_folder
from problem import Problem

from bertnli import Model
from bertnli.bench.machine import versions_of
from bertnli.bench.race import Contestant

pytest.importorskip("starlette")

from bertnli.integrations.service import make_app

REQUESTS = 64  # of a call


def cross_encoder_app(folder: str) -> Any:
    from sentence_transformers import CrossEncoder
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    model, thread = CrossEncoder(folder, device="cpu"), ThreadPoolExecutor(1)

    async def rerank(request: Request) -> JSONResponse:
        values = await request.json()
        pairs = [(values["query"], text) for text in values["texts"]]
        call = asyncio.get_running_loop().run_in_executor(thread, lambda: model.predict(pairs, show_progress_bar=False))
        return JSONResponse([{"index": i, "score": float(score)} for i, score in enumerate(await call)])

    return Starlette(routes=[Route("/rerank", rerank, methods=["POST"])])


async def post(app: Any, path: str, body: bytes) -> Any:
    """The answer of an ASGI app."""
    sent: list[dict[str, Any]] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(parts, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "headers": headers,
    }
    scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("a", 80), "client": ("b", 1)}
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@contextmanager
def running(app: Any) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in which the app is started."""
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())
    try:
        yield loop
    finally:
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
        loop.close()


def requests_of(
    app: Any, loop: asyncio.AbstractEventLoop, bodies: list[bytes], at_once: int
) -> Callable[[], list[float]]:
    """The scores of all requests, so many at once."""

    async def ask() -> list[float]:
        waiting, scores = list(enumerate(bodies)), [0.0] * len(bodies)

        async def client() -> None:
            while waiting:
                i, body = waiting.pop()
                scores[i] = (await post(app, "/rerank", body))[0]["score"]

        await asyncio.gather(*(client() for _ in range(at_once)))
        return scores

    return lambda: loop.run_until_complete(ask())


@pytest.mark.parametrize("at_once", [1, 32])
def test_requests(contest: Any, at_once: int) -> None:
    folder = problem_folder("minilm")
    texts = Problem(folder).pairs(REQUESTS).texts
    bodies = [json.dumps({"query": a, "texts": [b], "raw_scores": True}).encode() for a, b in texts]
    apps = {
        "bertnli": make_app(Model.from_pretrained(folder, device="cpu")),
        "bertnli, one by one": make_app(Model.from_pretrained(folder, device="cpu"), batch_size=1),
    }
    missing = {}
    versions = versions_of(("sentence-transformers",))
    if versions:
        apps["CrossEncoder"] = cross_encoder_app(str(folder))
    else:
        missing["CrossEncoder fp32"] = "sentence-transformers is not installed"
    with ExitStack() as stack:
        contestants = [
            Contestant(
                name,
                "fp32",
                requests_of(app, stack.enter_context(running(app)), bodies, at_once),
                versions=versions if name == "CrossEncoder" else {},
            )
            for name, app in apps.items()
        ]
        contest("requests of one pair to scores", contestants, missing, requests=REQUESTS, at_once=at_once)
