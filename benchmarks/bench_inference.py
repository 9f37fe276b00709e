"""Inference on CPUs beside the engines and libraries of peers/, from padded ids and from strings.

    pytest benchmarks/bench_inference.py [--quick] [-k "ids and small"]

Every contestant has a process of its own, the same weights (one output, random, of seed 0) and SNLI's first pairs.

ids     bertnli runs `score` on encoded pairs, batching included. The peers start from tensors that are padded already,
        in their best shape: sorted by length in eight buckets, each padded to its longest.
text    from pairs of strings to scores. bertnli runs `CrossEncoder.predict`, libraries that take texts
        their own call; an engine gets its ids from `tokenizers`, in buckets of 32 pairs of similar lengths.

One pair has 27 tokens. A contestant must agree with bertnli in float32 before it is timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from common import PAIRS, problem_folder
from peers import load
from runner import Remote, remotes

from bertnli.bench.measure import BATCHES

ENGINES = (
    "transformers",
    "transformers_compiled",
    "torch_dynamic",
    "onnxruntime",
    "openvino",
    "ctranslate2",
    "zentorch",
)
LIBRARIES = (
    *("bertnli_accelerated", "sentence_transformers", "sentence_transformers_onnx", "sentence_transformers_openvino"),
    *("openvino_genai", "vllm", "kjarni", "embed_anything", "llama_cpp"),
)
QUICK = ("transformers", "onnxruntime")  # engines that --quick measures from text
PAUSE = 0.1  # seconds: ONNX Runtime's threads spin for some 30 ms after a call


Field = tuple[str, list[Remote], dict[str, str]]


@contextmanager
def field(model: str, names: Sequence[str], settings: Any) -> Iterator[Field]:
    """The model, the contestants in their processes, and why others are missing."""
    names = [name for name in names if settings.peers is None or name in settings.peers]
    slow = [name for name in names if settings.quick and getattr(load(name), "SLOW_TO_BUILD", False)]
    wanted = [
        (name, p)
        for name in ("bertnli", *names)
        for p in load(name).PRECISIONS
        if name not in slow and settings.precision in (None, p)
    ]
    about = {"threads": settings.threads, "folder": str(problem_folder(model))}
    with remotes(wanted, about) as (contestants, missing):
        missing |= {f"{load(name).NAME} {p}": "left out by --quick" for name in slow for p in load(name).PRECISIONS}
        yield model, contestants, missing


@pytest.fixture(scope="module", params=BATCHES)
def engines(request: pytest.FixtureRequest, settings: Any) -> Iterator[Field]:
    if settings.quick and request.param != "small":
        pytest.skip("left out by --quick")
    with field(request.param, ENGINES, settings) as found:
        yield found


@pytest.fixture(scope="module", params=BATCHES)
def libraries(request: pytest.FixtureRequest, settings: Any) -> Iterator[Field]:
    if settings.quick and request.param != "minilm":
        pytest.skip("left out by --quick")
    with field(request.param, (*(QUICK if settings.quick else ENGINES), *LIBRARIES), settings) as found:
        yield found


@pytest.mark.parametrize("pairs", ["batch", "one"])
def test_scores_of_ids(contest: Any, settings: Any, engines: Field, pairs: str) -> None:
    model, contestants, missing = engines
    count = 1 if pairs == "one" else BATCHES[model] // (4 if settings.quick else 1)
    able, unable = set_work(contestants, "ids", count)
    contest("encoded pairs to scores", able, missing | unable, pause=PAUSE, model=model, pairs=count)


@pytest.mark.parametrize("pairs", [1, 32, PAIRS])
def test_scores_of_text(contest: Any, settings: Any, libraries: Field, pairs: int) -> None:
    model, contestants, missing = libraries
    if settings.quick and pairs == PAIRS:
        pytest.skip("left out by --quick")
    able, unable = set_work(contestants, "text", pairs)
    contest("pairs of strings to scores", able, missing | unable, pause=PAUSE, model=model, pairs=pairs)


def set_work(contestants: list[Remote], source: str, count: int) -> tuple[list[Remote], dict[str, str]]:
    """Tell the contestants what comes next: those that can do it, and why the others cannot."""
    able, unable = [], {}
    for c in contestants:
        try:
            c.ask("work", source, count)
            c.rounds, c.calls = [], []
            able.append(c)
        except RuntimeError as error:
            unable[f"{c.name} {c.precision}"] = str(error)
    return able, unable
