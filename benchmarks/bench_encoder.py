"""A training step and inference beside `transformers` and the book's padded model, in one process, measured in turn.

    python benchmarks/bench_encoder.py [--shapes minilm small] [--batch 32] [--precision fp32 bf16] [--rounds 9]
    python benchmarks/bench_encoder.py --notebook      the book's loop around the book's own classes, and around ours
    python -m pytest benchmarks/bench_encoder.py --benchmark-only

Every contestant has the same weights and the same pairs of the real SNLI training file (generated pairs where it is
absent); equal logits are verified before anything is timed. A round times each contestant once on the same batch, right
after a step of its own: else the first thing it did would be to give back to the system what the one before it has
freed, a tenth of a second for the book's. A ratio is the median over rounds of its time over ours. Dropout is on; the
optimizer's step is included in training.

    ours               `fit`'s step: our AdamW, whose cost on the embedding table goes with the rows touched
    ours, torch AdamW  the same model under torch's fused AdamW on a dense gradient (and autocast for bf16)
    hf buckets         transformers, SDPA, rows sorted by length and run eight together for the gradient of the
                       whole batch; fused AdamW, in the precision of the row (bf16 by autocast)
    hf buckets, default AdamW   the same under `torch.optim.AdamW(parameters)`
    hf longest         padded to the longest row of the batch; fused AdamW
    hf 128             padded to 128 as in the book; fused AdamW
    d2l 128            the book's own modules in float32, padded to 128; Adam as the book has it

The shape `book` is bert.small as the book has it, without LayerNorm on the embeddings, which transformers cannot run.

The floor is the time of the matrix products that a step cannot do without, measured in every round right after ours:
those of every layer but the last for all tokens (`book`: query, key and value of the first layer for the distinct
tokens, segments and positions), of the last for the rows that are read, its keys and values not projected; once forward
and twice backward, by PyTorch's kernels or our own, whichever are faster. `share` is the median over rounds of floor /
ours.
`memory` is the largest growth of the process during a step beyond parameters, gradients and optimizer state (each
contestant in a process of its own).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.oracles import PlainD2LClassifier  # noqa: E402

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, WordTokenizer, d2l, ops, read_pairs  # noqa: E402
from bertnli.checkpoint.huggingface import to_huggingface  # noqa: E402
from bertnli.data.demo import write_demo_corpus  # noqa: E402
from bertnli.data.texts import TextData  # noqa: E402
from bertnli.encoder.config import SIZES  # noqa: E402
from bertnli.training.adam import Adam  # noqa: E402
from bertnli.training.loop import _optimizer, flushed_denormals, lazily  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data")) / "snli_1.0"
SHAPES: dict[str, dict[str, Any]] = {
    "small": SIZES["bert.small"],
    "book": SIZES["bert.small"],
    "minilm": dict(num_hiddens=384, ffn_num_hiddens=1536, num_heads=12, num_layers=6, dropout=0.1, max_len=512),
    "base": SIZES["bert.base"],
}
ROWS_AT_A_TIME = 8


@cache
def texts() -> TextData:
    path = DATA / "snli_1.0_train.txt"
    return read_pairs(path if path.exists() else write_demo_corpus(ROOT / "runs" / "bench") / "snli_1.0_train.txt")


@cache
def tokenizer() -> WordTokenizer:
    return WordTokenizer.from_texts([*texts().first, *(texts().second or ())], 1)


@cache
def pairs() -> EncodedTexts:
    data = texts()
    return tokenizer().encode_pairs(data.first, data.second, labels=data.labels)


class Contestant:
    """One model with its optimizer: `step(rows)` trains on them, `logits(rows)` are theirs in ascending order."""

    def __init__(
        self,
        net: nn.Module,
        forward: Callable[[Tensor], Tensor],
        precision: str,
        optimizer: torch.optim.Optimizer | None = None,
        buckets: bool = False,
    ) -> None:
        self.net, self.forward, self.precision, self.buckets = net, forward, precision, buckets
        self.optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

    def groups(self, rows: Tensor) -> list[Tensor]:
        if not self.buckets:
            return [rows]
        return list(torch.split(rows[torch.argsort(pairs().lengths[rows])], ROWS_AT_A_TIME))

    def cast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, rows: Tensor) -> None:
        self.net.train()
        labels = pairs().labels
        assert labels is not None
        for group in self.groups(rows):
            with self.cast():
                logits = self.forward(group)
            (cross_entropy(logits.float(), labels[group], reduction="sum") / len(rows)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        self.net.eval()
        groups = self.groups(rows)
        return torch.cat([self.forward(group).float() for group in groups])[torch.argsort(torch.cat(groups))]


class Ours(Contestant):
    """`fit`'s step."""

    def __init__(self, net: BERTClassifier, precision: str) -> None:
        optimizer = _optimizer(net, "adamw", 1e-6, 0.01, None)
        super().__init__(net, lambda rows: net(pairs().batch(rows)), precision, optimizer)

    def step(self, rows: Tensor) -> None:
        assert isinstance(self.optimizer, Adam)
        torch.ops.bertnli.keep_memory(True)  # for this contestant's steps only
        self.optimizer.catch_up(self.net.encoder.token_embedding.weight, pairs().batch(rows).input_ids)  # type: ignore
        super().step(rows)
        torch.ops.bertnli.keep_memory(False)

    def cast(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)  # `lazily` has lowered the matrices


def contestant(name: str, shape: str, precision: str) -> Contestant:
    """A contestant with the weights of seed 0."""
    data, sizes = pairs(), SHAPES[shape]
    vocab_size = int(data.ids.max()) + 1
    torch.manual_seed(0)
    original = shape != "book"
    config = (BERTConfig.original if original else BERTConfig)(vocab_size, **sizes, pretraining_heads=False)
    net = BERTClassifier(BERTModel(config))
    if name == "ours":
        return Ours(net, precision)
    if name == "ours, torch AdamW":
        return Contestant(net, lambda rows: net(data.batch(rows)), precision)
    token_ids, segments, lens = data.to_padded(128)
    if name == "d2l 128":
        plain = PlainD2LClassifier(
            vocab_size, sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_heads"], sizes["num_layers"],
            sizes["max_len"], dropout=sizes["dropout"], original=original,
        )  # fmt: skip
        plain.load_state_dict(net.state_dict())
        adam = torch.optim.Adam(plain.parameters(), lr=1e-6)
        return Contestant(plain, lambda rows: plain((token_ids[rows], segments[rows], lens[rows])), "fp32", adam)
    import transformers

    theirs_config = transformers.BertConfig(
        vocab_size=vocab_size, hidden_size=config.num_hiddens, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, intermediate_size=config.ffn_num_hiddens,
        max_position_embeddings=config.max_len, num_labels=3, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(theirs_config)
    theirs.load_state_dict(to_huggingface(net.state_dict(), "classifier"))

    def forward(rows: Tensor) -> Tensor:
        length = 128 if name == "hf 128" else int(lens[rows].max())
        mask = (torch.arange(length) < lens[rows, None]).long()
        ids, kinds = token_ids[rows, :length], segments[rows, :length]
        logits: Tensor = theirs(input_ids=ids, token_type_ids=kinds, attention_mask=mask).logits
        return logits

    default = torch.optim.AdamW(theirs.parameters(), lr=1e-6) if name.endswith("default AdamW") else None
    return Contestant(theirs, forward, precision, default, buckets="buckets" in name)


NAMES = ["ours", "ours, torch AdamW", "hf buckets", "hf buckets, default AdamW", "hf longest", "hf 128", "d2l 128"]


def floor(shape: str, rows: Tensor, precision: str) -> float:
    """Seconds of the matrix products of a step on these rows: forward, and twice as many flops backward."""
    sizes, packed = SHAPES[shape], pairs().batch(rows)
    h, f, layers = sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_layers"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = projected = len(packed.input_ids)
    if shape == "book":
        projected = len(torch.unique(packed.input_ids)) + 2 + packed.max_seqlen
    total = 0.0
    torch.ops.bertnli.keep_memory(True)  # as in a step
    for depth, inner, outer, times in [
        (projected, h, 3 * h, 1),
        (tokens, h, 3 * h, layers - 2),
        *((tokens, i, o, layers - 1) for i, o in ((h, h), (h, f), (f, h))),
        # Of the last layer: query, absorbed query, context to value, output, FFN
        *((len(rows), i, o, 1) for i, o in ((h, h), (h, h), (h, h), (h, h), (h, f), (f, h))),
    ]:
        if not times:
            continue
        x, w, y = (torch.randn(s).to(dtype) for s in ((depth, inner), (outer, inner), (depth, outer)))
        total += times * sum(min(_seconds(run) for run in runs for _ in range(3)) for runs in products(x, w, y))
    torch.ops.bertnli.keep_memory(False)
    return total


def products(x: Tensor, w: Tensor, y: Tensor) -> list[list[Callable[[], Any]]]:
    """x w^T, y w and y^T x, by PyTorch's kernels and, where training takes them, by ours."""
    out = [torch.empty_like(t) for t in (y, x, w)]
    theirs: list[Callable[[], Any]] = [
        lambda: torch.mm(x, w.t(), out=out[0]),
        lambda: torch.mm(y, w, out=out[1]),
        lambda: torch.mm(y.t(), x, out=out[2]),
    ]
    linear, backward = torch.ops.bertnli.linear, torch.ops.bertnli.linear_backward
    own: list[Callable[[], Any]] = [
        lambda: linear(x, w, None),
        lambda: backward(y, None, w),
        lambda: backward(y, x, None),
    ]
    return [[a, b] if ops.own_products(x.dtype) else [a] for a, b in zip(theirs, own, strict=True)]


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def entered(c: Contestant) -> Any:
    return lazily(c.net, c.optimizer, c.precision == "bf16") if isinstance(c, Ours) else nullcontext()  # type: ignore


def compare(shape: str, batch: int, precision: str, rounds: int, names: list[str], warmup: int = 2) -> dict[str, float]:
    """Seconds (ours, the floor) and ratios (peers), medians over the rounds."""
    order = torch.randperm(len(pairs()), generator=torch.Generator().manual_seed(1))
    batches = [order[i * batch : (i + 1) * batch] for i in range(min(rounds + warmup, len(order) // batch))]
    field = {name: contestant(name, shape, precision) for name in names}
    sample = batches[0][:16]
    wanted = field["ours"].logits(sample)
    for name, c in field.items():
        torch.testing.assert_close(c.logits(sample), wanted, rtol=1e-3, atol=1e-4, msg=f"{name} differs")
    # Our sizes repeat: a few steps meet most of them, as a run of thousands soon has.
    with entered(field["ours"]):
        for rows in torch.split(order[: 40 * batch] if batch <= 32 else order[: 8 * batch], batch):
            field["ours"].step(rows)
        seconds: dict[str, list[float]] = {name: [] for name in field}
        floors = []
        for i, rows in enumerate(batches):
            for name, c in field.items():
                if len(field) > 1:
                    c.step(rows)
                begun = time.perf_counter()
                c.step(rows)
                if i >= warmup:
                    seconds[name].append(time.perf_counter() - begun)
                    if name == "ours":
                        floors.append(floor(shape, rows, precision))
    ours = statistics.median(seconds["ours"])
    share = statistics.median(least / o for least, o in zip(floors, seconds["ours"], strict=True))
    tokens = int(statistics.median(len(pairs().batch(rows).input_ids) for rows in batches[warmup:]))
    ratios = {
        name: statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True))
        for name, times in seconds.items()
        if name != "ours"
    }
    return {"ours_s": ours, "floor_s": statistics.median(floors), "share": share, "tokens": tokens, **ratios}


def memory(name: str, shape: str, batch: int, precision: str) -> float:
    """MB: the growth of this process's peak in a step, less gradients and (first step's) optimizer state."""
    c = contestant(name, shape, precision)
    order = torch.randperm(len(pairs()), generator=torch.Generator().manual_seed(1))
    with entered(c):
        c.step(order[:8])  # state, code and small buffers are there
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
        before = _status("VmRSS")
        c.step(order[8 : 8 + batch])
        grown = _status("VmHWM") - before
    gradients = sum(p.numel() * p.element_size() for p in c.net.parameters() if p.requires_grad)
    return (grown - (0 if isinstance(c, Ours) else gradients)) / 1e6


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


class Padded(torch.utils.data.Dataset[Any]):
    """The chapter's dataset: padded rows, taken one by one."""

    def __init__(self) -> None:
        self.tensors = pairs().to_padded(128)

    def __getitem__(self, i: int) -> Any:
        labels = pairs().labels
        assert labels is not None
        return tuple(t[i] for t in self.tensors), labels[i]

    def __len__(self) -> int:
        return len(pairs())


class OnFirstToken(nn.Module):
    """The chapter's classifier over a `d2l.BERTModel`."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.encoder, self.hidden = bert.encoder, bert.hidden
        self.output = nn.Linear(bert.config.num_hiddens, 3)

    def forward(self, inputs: Any) -> Tensor:
        encoded: Tensor = self.encoder(*inputs[:2], inputs[2].flatten())
        result: Tensor = self.output(self.hidden(encoded[:, 0, :]))
        return result


def notebook(batch: int, steps: int) -> dict[str, float]:
    """Pairs a second of the chapter's loop: all of the book, the changed import alone, and its own definitions gone."""
    vocab_size = int(pairs().ids.max()) + 1
    sizes = (vocab_size, 256, 512, 4, 2, 0.1)

    def run(net: nn.Module, data: Any, fused: bool | None = None) -> float:
        loader = torch.utils.data.DataLoader(data, batch, sampler=range(batch * (steps + 1)))
        trainer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=fused)  # which `train_ch13` does
        loss = nn.CrossEntropyLoss(reduction="none")
        begun = 0.0
        for i, (x, y) in enumerate(loader):
            if i == 1:
                begun = time.perf_counter()
            d2l.train_batch_ch13(net, x, y, loss, trainer, [torch.device("cpu")])
        return batch * steps / (time.perf_counter() - begun)

    torch.manual_seed(0)
    book = PlainD2LClassifier(vocab_size, 256, 512, 4, 2, 512, dropout=0.1)
    mine = d2l.BERTClassifier(d2l.BERTModel(*sizes, max_len=512))
    own = OnFirstToken(d2l.BERTModel(*sizes, max_len=512))
    for net in (mine, own):
        net.load_state_dict(book.state_dict())
    inputs = [t[:8] for t in pairs().to_padded(128)]
    wanted = book.eval()(inputs)
    for net in (mine, own):
        torch.testing.assert_close(net.eval()(inputs), wanted, rtol=1e-3, atol=1e-4)
    table = {"the book": run(book, Padded())}
    with flushed_denormals():  # as in `train_ch13`
        table["changed import"] = run(own, Padded(), fused=True)
        data = d2l.SNLIBERTDataset((texts().first, texts().second or (), texts().labels or ()), 128, tokenizer())
        table["definitions deleted"] = run(mine, data, fused=True)
    return table


@pytest.mark.parametrize("name", NAMES)
def test_small(benchmark: Any, name: str) -> None:
    benchmark.group = "bert.small, batch 64, fp32"
    rows = torch.randperm(len(pairs()), generator=torch.Generator().manual_seed(1))[:64]
    c = contestant(name, "small", "fp32")
    with entered(c):
        benchmark.pedantic(c.step, (rows,), warmup_rounds=1, rounds=3)


def machine(threads: int | None = None) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = cpu.get("model name", platform.machine())
    family = f" (family {cpu['cpu family']})" if "cpu family" in cpu else ""  # servers hide the rest of the name
    threads = threads or torch.get_num_threads()
    return f"{model}{family}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, {ops.cpu_isa()} kernels"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "minilm"])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    precisions = ["fp32", "bf16"]
    # `fit` does not train in bfloat16 on a CPU that is slow at it.
    fast = precisions if ops.cpu_multiplies_bf16() else precisions[:1]
    parser.add_argument("--precision", nargs="+", choices=precisions, default=fast)
    parser.add_argument("--against", nargs="*", choices=NAMES[1:], default=NAMES[1:])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--notebook", type=int, metavar="STEPS", help="the chapter's loop instead, so many steps")
    parser.add_argument("--memory", action="store_true", help="peak memory of a step instead")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)  # --memory's process of its own
    parser.add_argument("--json", type=Path, help="append the figures here, one JSON object a line")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    if args.one:
        print(memory(args.one, args.shapes[0], args.batch[0], args.precision[0]))
        return
    if "book" in args.shapes and any(name.startswith("hf") for name in args.against):
        parser.error("transformers has no model of the shape book: --against 'ours, torch AdamW' 'd2l 128'")
    print(machine())
    results: list[dict[str, Any]] = []
    if args.notebook:
        torch.set_flush_denormal(False)
        for batch in args.batch:
            results.append({"work": "notebook", "batch": batch, **notebook(batch, args.notebook)})
            print(json.dumps(results[-1]), flush=True)
    for shape in args.shapes if not args.notebook else []:
        for batch in args.batch:
            for precision in args.precision:
                row: dict[str, Any] = {"shape": shape, "batch": batch, "precision": precision}
                if args.memory:
                    for name in ["ours", *args.against]:
                        command = [sys.executable, __file__, "--one", name, "--shapes", shape, "--batch", str(batch)]
                        out = subprocess.run([*command, "--precision", precision], capture_output=True, check=True)
                        row[name] = float(out.stdout.split()[-1])
                    row["work"] = "memory, MB"
                    print(json.dumps(row), flush=True)
                else:
                    row["work"] = "training"
                    row |= compare(shape, batch, precision, args.rounds, ["ours", *args.against])
                    ratios = "  ".join(f"{name} x{row[name]:.2f}" for name in args.against)
                    times = f"ours {row['ours_s'] * 1e3:8.1f} ms, {row['share']:.0%} of it the floor"
                    print(f"{shape:7} batch {batch:4} {precision} {times}   {ratios}", flush=True)
                results.append(row)
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            for row in results:
                file.write(json.dumps({"machine": machine(), **row}) + "\n")


if __name__ == "__main__":
    main()
