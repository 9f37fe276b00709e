"""An HTTP service of a model (extra `serve`): concurrent requests are computed in common batches.

    uvicorn.run(make_app(bertnli.Model.from_pretrained("runs/tuned")))

POST, with JSON objects in and out; an error is {"error": message} with status 400:

/predict   {"examples": [text, [premise, hypothesis], {"premise": ..., "hypothesis": ...}, ...]}
           {"predictions": [...]}
/rank      {"query": text, "documents": [text, ...], "top_k": 10, "label": class}
           {"ranking": [{"index": number, "score": number}, ...]}
/encode    {"texts": [text, ...], "prompt": text, "prompt_name": name, "normalize": false}
           {"vectors": [[number, ...], ...]}
/rerank    {"query": text, "texts": [text, ...], "raw_scores": false, "return_text": false}
           [{"index": number, "score": number}, ...]
/embed     {"inputs": text or [text, ...], "normalize": true, "prompt_name": name}
           [[number, ...], ...]

GET /health says which model runs. /rerank and /embed are those of Hugging Face's Text Embeddings Inference.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import bertnli
from bertnli.data.arguments import positive, strings
from bertnli.data.extras import from_extra
from bertnli.model import Model, check_ranking_label, ranking
from bertnli.tasks.convert import parts_of
from bertnli.tasks.embedding import BERTEmbedder

with from_extra("serve", "the service"):
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

_log = logging.getLogger("bertnli")
Parts = Sequence[Sequence[Any]]
Function = Callable[..., Any]  # of parts; its results can be sliced


@dataclass
class _Job:
    """A request's examples, as the parts that `function` takes, and where the results go."""

    function: Function
    parts: Parts
    result: asyncio.Future[Any]


class Batcher:
    """Computes the examples of concurrent requests in common batches, in one thread.

    size     examples of a batch, from which on it waits for no further requests
    window   seconds to wait for them, if some are being read
    """

    def __init__(self, size: int, window: float) -> None:
        self.size, self.window = size, window
        self.num_reading = 0  # requests that have begun and are not yet waiting
        self._waiting: list[_Job] = []
        self._arrived = asyncio.Event()

    async def __call__(self, function: Function, parts: Parts) -> Any:
        """function(*parts), one result an example. Raises what it raises."""
        job = _Job(function, parts, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        return await job.result

    async def run(self) -> None:
        """Compute until cancelled."""
        with ThreadPoolExecutor(1, "bertnli-model") as thread:
            while True:
                await self._arrived.wait()
                if self.num_reading and sum(len(job.parts[0]) for job in self._waiting) < self.size:
                    await asyncio.sleep(self.window)
                self._arrived.clear()
                jobs, self._waiting = self._waiting, []
                alike: dict[tuple[Function, int], list[_Job]] = {}
                for job in jobs:
                    alike.setdefault((job.function, len(job.parts)), []).append(job)
                for group in alike.values():
                    await self._compute(group, thread)

    async def _compute(self, jobs: list[_Job], thread: ThreadPoolExecutor) -> None:
        jobs = [job for job in jobs if not job.result.done()]  # a client may have gone
        parts = [[x for job in jobs for x in job.parts[i]] for i in range(len(jobs[0].parts))] if jobs else []
        try:
            found = await asyncio.get_running_loop().run_in_executor(thread, jobs[0].function, *parts) if jobs else []
        except Exception as error:
            if len(jobs) == 1:
                _give(jobs[0], error)
                return
            half = len(jobs) // 2  # of one request's texts, which must not spoil the others
            await self._compute(jobs[:half], thread)
            await self._compute(jobs[half:], thread)
            return
        begin = 0
        for job in jobs:
            end = begin + len(job.parts[0])
            _give(job, found[begin:end])
            begin = end


def _give(job: _Job, result: Any) -> None:
    if job.result.done():
        return
    if isinstance(result, Exception):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)


def make_app(
    model: Model,
    name: str = "model",
    *,
    batch_size: int = 64,
    window: float = 0.002,
    max_examples: int = 1024,
    max_bytes: int = 4 << 20,
) -> Starlette:
    """The service as an ASGI application.

    name           of the model, for /health
    batch_size     examples that are computed at a time
    window         seconds that an example waits for those of other requests, while some are being read
    max_examples   examples of a request at most
    max_bytes      bytes of a request at most
    """
    service = _Service(model, name, batch_size, Batcher(batch_size, window), max_examples, max_bytes)
    model.head.eval()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(service.batcher.run())
        yield
        task.cancel()

    endpoints = (service.predict, service.rank, service.encode, service.rerank, service.embed)
    routes = [Route(f"/{f.__name__}", service.answer(f), methods=["POST"]) for f in endpoints]
    routes.append(Route("/health", service.health, methods=["GET"]))
    handlers: Any = {HTTPException: lambda _, error: _error(error.detail, error.status_code)}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


def _error(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": message}, status)


class _Service:
    def __init__(
        self, model: Model, name: str, batch_size: int, batcher: Batcher, max_examples: int, max_bytes: int
    ) -> None:
        self.model, self.name, self.batch_size, self.batcher = model, name, batch_size, batcher
        self.max_examples, self.max_bytes = max_examples, max_bytes

    def answer(self, endpoint: Callable[[dict[str, Any]], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        """Read a request, and answer with what `endpoint` gives for its object, or with an error."""

        async def answered(request: Request) -> Response:
            self.batcher.num_reading += 1
            try:
                values = await self._read(request)
            except ValueError as error:
                return _error(str(error))
            finally:
                self.batcher.num_reading -= 1
            try:
                return JSONResponse(await endpoint(values))
            except (ValueError, TypeError) as error:
                return _error(str(error))
            except Exception:
                _log.exception("a request to %s failed", request.url.path)
                return _error("internal error", 500)

        return answered

    async def _read(self, request: Request) -> dict[str, Any]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_bytes:
                raise ValueError(f"the request has more than {self.max_bytes} bytes")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the request is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object; found {type(values).__name__}")
        return values

    async def health(self, _: Request) -> Response:
        head = self.model.head
        facts = {"status": "ok", "model": self.name, "task": head.task, "classes": head.label_names}
        return JSONResponse(facts | {"precision": self.model.precision, "version": bertnli.__version__})

    async def predict(self, values: dict[str, Any]) -> Any:
        examples = _take(values, "examples", list)
        _check_rest(values)
        self._check_count(examples, "examples")
        if not examples:
            return {"predictions": []}
        found = await self.batcher(self._predictions, parts_of(examples, self.model.head))
        return {"predictions": [asdict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in found]}

    async def rank(self, values: dict[str, Any]) -> Any:
        query, documents = _take(values, "query", str), strings(_take(values, "documents", list), "documents")
        top_k, label = positive(_take(values, "top_k", int, 10), "top_k"), _take(values, "label", str, None)
        _check_rest(values)
        names = self.model.head.label_names or ()
        check_ranking_label(self.model.head, label)
        if not documents:
            return {"ranking": []}
        scores = np.asarray(await self._pairs(self._scores, query, documents), np.float32)
        return {"ranking": _rows(ranking(scores[:, names.index(label)] if label in names else scores, top_k))}

    async def encode(self, values: dict[str, Any]) -> Any:
        texts = _take(values, "texts", list)
        prompt, prompt_name = _take(values, "prompt", str, None), _take(values, "prompt_name", str, None)
        normalize = _take(values, "normalize", bool, False)
        _check_rest(values)
        return {"vectors": await self._vectors(texts, prompt, prompt_name, normalize)}

    async def rerank(self, values: dict[str, Any]) -> Any:
        query, texts = _take(values, "query", str), strings(_take(values, "texts", list), "texts")
        raw, with_text = _take(values, "raw_scores", bool, False), _take(values, "return_text", bool, False)
        if self.model.head.output.out_features != 1:
            raise ValueError("rerank needs a model of one output; rank by a class with /rank")
        outputs = await self._pairs(self._outputs, query, texts)
        scores = torch.stack([*outputs])[:, 0] if len(outputs) else torch.zeros(0)
        rows = _rows(ranking((scores if raw else scores.sigmoid()).numpy()))
        return [row | {"text": texts[row["index"]]} for row in rows] if with_text else rows

    async def embed(self, values: dict[str, Any]) -> Any:
        inputs = _take(values, "inputs", (str, list))
        normalize, prompt_name = _take(values, "normalize", bool, True), _take(values, "prompt_name", str, None)
        return await self._vectors([inputs] if isinstance(inputs, str) else inputs, None, prompt_name, normalize)

    async def _pairs(self, function: Function, query: str, documents: list[str]) -> Any:
        self._check_count(documents, "documents")
        return await self.batcher(function, [[query] * len(documents), documents]) if documents else []

    async def _vectors(
        self, texts: list[str], prompt: str | None, prompt_name: str | None, normalize: bool
    ) -> list[list[float]]:
        head = self.model.head
        if not isinstance(head, BERTEmbedder):
            raise ValueError(f"sentence vectors need a BERTEmbedder; this is a {type(head).__name__}")
        texts = strings(texts, "texts")
        self._check_count(texts, "texts")
        prefix = head.prompt(prompt_name) if prompt is None else prompt
        if not texts:
            return []
        rows = await self.batcher(self._outputs, [[prefix + text for text in texts] if prefix else texts])
        vectors = torch.stack([*rows])
        return (F.normalize(vectors, dim=1) if normalize else vectors).tolist()

    def _check_count(self, examples: Sequence[Any], name: str) -> None:
        if len(examples) > self.max_examples:
            raise ValueError(f"{len(examples)} {name}; a request has at most {self.max_examples}")

    # Functions of a batch, in the model's thread.

    def _predictions(self, *parts: Any) -> Any:
        return self.model.predict(*parts, batch_size=self.batch_size)

    def _scores(self, *parts: Any) -> Any:
        return self.model.score(*parts, batch_size=self.batch_size)

    def _outputs(self, *parts: Any) -> Tensor:
        return self.model._outputs(parts, self.batch_size)


_REQUIRED = object()


def _take(values: dict[str, Any], name: str, kind: Any, default: Any = _REQUIRED) -> Any:
    """Remove and return a value of a request. Raises ValueError if it is missing or of another type."""
    value = values.pop(name, default)
    if value is _REQUIRED:
        raise ValueError(f"the request has no {name!r}; it has {', '.join(map(repr, values)) or 'nothing'}")
    if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = {str: "a string", list: "a list", int: "an integer", bool: "true or false"}
        raise ValueError(f"{name} must be {' or '.join(names[k] for k in kinds)}; found {value!r:.60}")
    return value


def _check_rest(values: dict[str, Any]) -> None:
    if values:
        raise ValueError(f"the request has {', '.join(map(repr, values))}, which nothing reads")


def _rows(ranked: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"index": index, "score": score} for index, score in ranked]
