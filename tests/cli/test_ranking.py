"""`bertnli rank`, `zero-shot`, `encode` and `info`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.commands import run, tiny_bert

from bertnli import BERTClassifier, BERTEmbedder, BERTRegressor, Model, WordPieceTokenizer, __version__, save_pretrained

WORDS = ["red", "green", "blue", "one", "two", "sport", "politics", "this", "is", "it"]
DOCUMENTS = ["red one", "green", "blue two one", "two", "one one red"]


@pytest.fixture
def tokenizer() -> WordPieceTokenizer:
    torch.manual_seed(0)
    return WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, *WORDS])


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_rank(tokenizer: WordPieceTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One query, or a file of queries: the scores of `Model.rank`, best first."""
    save_pretrained(BERTRegressor(tiny_bert(len(tokenizer))), tmp_path / "model", tokenizer)
    (tmp_path / "docs.txt").write_text("\r\n".join(DOCUMENTS))
    rank = ["rank", "--model", tmp_path / "model"]
    one = ["--query", "one", "--documents", tmp_path / "docs.txt"]
    status, out, err = run(*rank, *one, "--top-k", 3, capsys=capsys)
    assert status == 0, err
    best = Model.from_pretrained(tmp_path / "model").rank("one", DOCUMENTS, 3)
    expected = [{"query": "one", "index": i, "score": score, "document": DOCUMENTS[i]} for i, score in best]
    assert lines(out) == expected
    queries = [{"query": "one", "documents": DOCUMENTS}, {"query": "two", "documents": ["red", "blue"]}]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    status, out, err = run(*rank, "--input", tmp_path / "queries.jsonl", "--top-k", 3, capsys=capsys)
    assert status == 0, err
    assert lines(out)[:3] == expected
    assert [(line["query"], line["document"]) for line in lines(out)[3:]] in (
        [("two", "red"), ("two", "blue")], [("two", "blue"), ("two", "red")],
    )  # fmt: skip
    (tmp_path / "broken.jsonl").write_text(json.dumps(queries[0]) + '\n{"query": "one", "documents": "two"}\n')
    (tmp_path / "gap.txt").write_text("red\n\nblue\n")
    for arguments, message in (
        (["--query", "one"], "give either --query and --documents, or --input; found --query"),
        (["--input", tmp_path / "broken.jsonl"], 'broken.jsonl:2: expected an object with a string "query"'),
        (["--query", "one", "--documents", tmp_path / "gap.txt"], "gap.txt:2: the line is empty"),
    ):
        status, out, err = run(*rank, *arguments, capsys=capsys)
        assert (status, err.count("\n"), message in err) == (2, 1, True), err
    assert len(lines(run(*rank, "--input", tmp_path / "broken.jsonl", capsys=capsys)[1])) == 5  # of the first query


def test_rank_by_a_class(tokenizer: WordPieceTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(BERTClassifier(tiny_bert(len(tokenizer)), 2, ("no", "yes")), tmp_path / "model", tokenizer)
    (tmp_path / "docs.txt").write_text("\n".join(DOCUMENTS))
    rank = ["rank", "--model", tmp_path / "model", "--query", "one", "--documents", tmp_path / "docs.txt"]
    status, _, err = run(*rank, capsys=capsys)
    assert (status, "give label, one of no, yes" in err) == (2, True), err
    scores = [line["score"] for line in lines(run(*rank, "--label", "yes", capsys=capsys)[1])]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert len(scores) == 5


def test_zero_shot(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    """Standard input, in batches, gives what `Model.zero_shot` gives."""
    head = BERTClassifier(tiny_bert(len(tokenizer)), 3, ("entailment", "neutral", "contradiction"))
    save_pretrained(head, tmp_path / "model", tokenizer)
    command = [sys.executable, "-m", "bertnli", "zero-shot", "--model", str(tmp_path / "model"), "--batch-size", "2"]
    command += ["--labels", "sport,politics", "--template", "it is {}"]
    done = subprocess.run(
        command, input="\n".join(DOCUMENTS), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = Model.from_pretrained(tmp_path / "model")
    predictions = model.zero_shot(DOCUMENTS, ["sport", "politics"], "it is {}")
    several = subprocess.run(
        [*command, "--multi-label"], input=DOCUMENTS[0], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (each,) = model.zero_shot(DOCUMENTS[:1], ["sport", "politics"], "it is {}", multi_label=True)
    assert lines(several.stdout)[0]["probabilities"] == pytest.approx(each.probabilities, abs=1e-6)
    for found, expected in zip(lines(done.stdout), predictions, strict=True):
        assert found["label"] == expected.label
        assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


@pytest.mark.parametrize("is_embedder", [False, True])
def test_encode(
    is_embedder: bool, tokenizer: WordPieceTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vectors of `Model.encode`, in the order of the lines, however many are encoded at a time."""
    bert = tiny_bert(len(tokenizer))
    head = BERTEmbedder(bert, pooling="cls", normalize=True) if is_embedder else BERTClassifier(bert)
    head.settings |= {"prompts": {"query": "this "}} if is_embedder else {}
    save_pretrained(head, tmp_path / "model", tokenizer)
    (tmp_path / "docs.txt").write_text("\n".join(DOCUMENTS * 4000))
    encode = ["encode", "--model", tmp_path / "model", "--input", tmp_path / "docs.txt", "--quiet"]
    encode += ["--output", tmp_path / "vectors.npy"]
    if not is_embedder:
        status, _, err = run(*encode, capsys=capsys)
        assert (status, "does not say how to pool its tokens' vectors: give --pooling" in err) == (2, True), err
    options = ["--prompt-name", "query"] if is_embedder else ["--pooling", "max", "--normalize", "--prompt", "it "]
    status, out, err = run(*encode, *options, "--json", capsys=capsys)
    assert status == 0, err
    assert json.loads(out) == {"output": str(tmp_path / "vectors.npy"), "texts": 20000, "width": 8}
    model = Model(head if is_embedder else BERTEmbedder(head, pooling="max"), tokenizer)
    expected = model.encode([("this " if is_embedder else "it ") + text for text in DOCUMENTS], normalize=True)
    found = np.load(tmp_path / "vectors.npy")
    assert (found.shape, found.dtype) == ((20000, 8), np.float32)
    np.testing.assert_allclose(found, np.tile(expected, (4000, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    (tmp_path / "docs.txt").write_text("")
    status, _, err = run(*encode, *options, capsys=capsys)
    assert (status, "docs.txt has no texts" in err) == (2, True), err


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = run("info", "--json", capsys=capsys)
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert (facts["bertnli"], facts["torch"]) == (__version__, torch.__version__)
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["kernels"]["instruction_set"] in ("plain", "avx2", "avx512", "avx512_bf16", "amx")
    assert len(facts["gpus"]) == torch.cuda.device_count()
    status, out, _ = run("info", capsys=capsys)
    assert status == 0
    assert f"torch: {torch.__version__}\n" in out
    assert f"  instruction_set: {facts['kernels']['instruction_set']}\n" in out
    assert "inference_int8: " in out
    assert f"  torch: {torch.get_num_threads()}\n" in out
    isa = facts["kernels"]["instruction_set"]
    monkeypatch.setenv("BERTNLI_ISA", isa)
    assert f"reason: BERTNLI_ISA={isa}" in run("info", capsys=capsys)[1]
