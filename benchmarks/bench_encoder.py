"""A training step and inference beside `transformers` and the book's padded model, in one process, measured in turn.

    python benchmarks/bench_encoder.py [--shapes minilm small] [--batch 32] [--rounds 9] [--json FILE]
    python -m pytest benchmarks/bench_encoder.py --benchmark-only

Every contestant has the same weights and the same pairs of the real SNLI training file (generated pairs where it is
absent); equal logits are verified before anything is timed. A round times each contestant once on the same batch; a
ratio is the median over rounds of its time over ours. Dropout is on and fused AdamW's step is included in training.

    hf 128       transformers, SDPA, padded to 128 as in the book
    hf longest   padded to the longest row of the batch
    hf buckets   rows sorted by length and run eight at a time for the gradient of the whole batch
    d2l 128      the book's own modules (bert.small's shape only)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracles import PlainD2LClassifier  # noqa: E402

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedPairs, WordTokenizer, read_pairs  # noqa: E402
from bertnli.checkpoint import _to_huggingface  # noqa: E402
from bertnli.cli import SIZES, _book_vocab  # noqa: E402
from bertnli.demo import write_demo_corpus  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data")) / "snli_1.0"
SHAPES: dict[str, dict[str, Any]] = {
    "small": SIZES["bert.small"],
    "minilm": dict(num_hiddens=384, ffn_num_hiddens=1536, num_heads=12, num_layers=6, dropout=0.1, max_len=512),
    "base": SIZES["bert.base"],
}
ROWS_AT_A_TIME = 8


@cache
def pairs() -> EncodedPairs:
    path = DATA / "snli_1.0_train.txt"
    if not path.exists():
        path = write_demo_corpus(ROOT / "runs" / "bench") / "snli_1.0_train.txt"
    data = read_pairs(path)
    return WordTokenizer(_book_vocab(data, 1)).encode_pairs(data.premises, data.hypotheses, labels=data.labels)


class Contestant:
    """One model with its optimizer: `step(rows)` trains on them, `logits(rows)` are theirs in ascending order."""

    def __init__(self, net: nn.Module, forward: Callable[[Tensor], list[tuple[Tensor, Tensor]]]) -> None:
        self.net, self.forward = net, forward
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

    def step(self, rows: Tensor) -> None:
        self.net.train()
        self.optimizer.zero_grad()
        labels = pairs().labels
        assert labels is not None
        for logits, chosen in self.forward(rows):
            (cross_entropy(logits, labels[chosen], reduction="sum") / len(rows)).backward()
        self.optimizer.step()

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        self.net.eval()
        parts = self.forward(rows)
        return torch.cat([p for p, _ in parts])[torch.argsort(torch.cat([c for _, c in parts]))]


def contestants(shape: str, rows: Tensor) -> dict[str, Contestant]:
    """Ours and its peers, equal in logits on `rows`."""
    import transformers

    data = pairs()
    vocab_size = int(data.ids.max()) + 1
    torch.manual_seed(0)
    config = BERTConfig.original(vocab_size, **SHAPES[shape], pretraining_heads=False)
    ours = BERTClassifier(BERTModel(config))
    found = {"ours": Contestant(ours, lambda rows: [(ours(data.batch(rows)), rows)])}
    theirs_config = transformers.BertConfig(
        vocab_size=vocab_size, hidden_size=config.num_hiddens, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, intermediate_size=config.ffn_num_hiddens,
        max_position_embeddings=config.max_len, num_labels=3, attn_implementation="sdpa",
    )  # fmt: skip
    state = _to_huggingface(ours.state_dict())
    token_ids, segments, lens = data.to_padded(128)

    def padded(net: nn.Module, pad: str) -> Callable[[Tensor], list[tuple[Tensor, Tensor]]]:
        def forward(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
            groups = [rows]
            if pad == "buckets":
                groups = list(torch.split(rows[torch.argsort(lens[rows])], ROWS_AT_A_TIME))
            results = []
            for group in groups:
                length = 128 if pad == "128" else int(lens[group].max())
                mask = (torch.arange(length) < lens[group, None]).long()
                ids, kinds = token_ids[group, :length], segments[group, :length]
                results.append((net(input_ids=ids, token_type_ids=kinds, attention_mask=mask).logits, group))
            return results

        return forward

    for pad in ("128", "longest", "buckets"):
        net = transformers.BertForSequenceClassification(theirs_config)
        net.load_state_dict(state)
        found[f"hf {pad}"] = Contestant(net, padded(net, pad))
    if shape == "small":
        sizes = SHAPES[shape]
        plain = PlainD2LClassifier(
            vocab_size, sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_heads"], sizes["num_layers"],
            sizes["max_len"], dropout=sizes["dropout"], original=True,
        )  # fmt: skip
        plain.load_state_dict(ours.state_dict())
        found["d2l 128"] = Contestant(
            plain, lambda rows: [(plain((token_ids[rows], segments[rows], lens[rows])), rows)]
        )
    sample = rows[:16]
    wanted = found["ours"].logits(sample)
    for name, contestant in found.items():
        torch.testing.assert_close(contestant.logits(sample), wanted, rtol=1e-3, atol=1e-4, msg=f"{name} differs")
    return found


def compare(shape: str, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds (ours) and ratios (peers), medians over the rounds."""
    order = torch.randperm(len(pairs()), generator=torch.Generator().manual_seed(1))
    batches = order[: batch * (rounds + 1)].view(rounds + 1, batch)
    field = contestants(shape, batches[0])
    table: dict[str, dict[str, float]] = {}
    for work in ("step", "logits"):
        seconds: dict[str, list[float]] = {name: [] for name in field}
        for i, rows in enumerate(batches):
            for name, contestant in field.items():
                begun = time.perf_counter()
                getattr(contestant, work)(rows)
                if i:  # the first round warms up
                    seconds[name].append(time.perf_counter() - begun)
        ratios = {
            name: statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True))
            for name, times in seconds.items()
        }
        table["training" if work == "step" else "inference"] = {"ours_s": statistics.median(seconds["ours"]), **ratios}
    return table


@pytest.mark.parametrize("name", ["ours", "hf 128", "hf longest", "hf buckets", "d2l 128"])
@pytest.mark.parametrize("work", ["step", "logits"])
def test_small(benchmark: Any, work: str, name: str) -> None:
    benchmark.group = f"bert.small, batch 64, {work}"
    rows = torch.randperm(len(pairs()), generator=torch.Generator().manual_seed(1))[:64]
    benchmark.pedantic(getattr(contestants("small", rows)[name], work), (rows,), warmup_rounds=1, rounds=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "minilm"])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    results = []
    for shape in args.shapes:
        for batch in args.batch:
            for work, row in compare(shape, batch, args.rounds).items():
                results.append({"shape": shape, "batch": batch, "work": work, **row})
                ratios = "  ".join(
                    f"{name} x{value:.2f}" for name, value in row.items() if name not in ("ours_s", "ours")
                )
                print(f"{shape:7} batch {batch:4} {work:9} ours {row['ours_s'] * 1e3:8.1f} ms   {ratios}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
