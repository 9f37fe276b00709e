"""Attention, row operators, training steps and inference on a GPU against PyTorch's own and Hugging Face.

    python benchmarks/bench_gpu.py [--minutes 6] [--json FILE] [--only models compiled attention rows text]
    python benchmarks/bench_gpu.py --device cpu --tiny        the same code on small sizes, to test it

Sequences have SNLI's lengths and random tokens; nothing is downloaded. Contestants' results are compared before they
are timed, in eval mode or without dropout. A round times each of them once; figures are medians over rounds, ratios are
medians of their times over ours. What does not fit into the minutes is skipped and named, and so is what fails or
differs, which makes the exit status 1. Row by row:

    step        a training step in bf16 autocast with fused AdamW: ours as `fit` takes it, a CUDA graph to which the
                batch is copied from the host each time, and launched kernel by kernel; Hugging Face with SDPA padded to
                128, to the longest row, to the longest row in batches of similar lengths (a quarter of the batch each),
                and compiled, with its own CUDA graphs where it says "graphs"; memory beyond parameters, gradients and
                moments; `launch_ms` is how long the host takes for ours
    logits      the same in inference, ours as `score` takes many batches
    fit         pairs a second in the third epoch of `fit`, after most graphs were made, and with every kernel launched
                by itself; `feed_ms` is how long the host takes to gather a batch and send it off
    attention   ours against SDPA padded to the longest (with a mask), SDPA on nested tensors, torch.nn.attention.varlen
                and FlexAttention over the packed tokens, forward and forward + backward, without and with dropout, each
                in a CUDA graph (or launched, which its name says then); "long": of 130 to 512 tokens a sequence
    rows        ours against torch.compile of PyTorch's expressions, forward + backward, likewise
    text        pairs a second from lists of str to ids on the host, which must keep up with `fit`
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import platform
import re
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from bench_attention import MODELS, snli_lengths  # noqa: E402
from helpers.oracles import PlainD2LClassifier  # noqa: E402

from bertnli import (  # noqa: E402
    BERTClassifier,
    BERTConfig,
    BERTModel,
    EncodedTexts,
    PackedBatch,
    WordPieceTokenizer,
    fit,
    ops,
    read_pairs,
)
from bertnli.checkpoint.huggingface import to_huggingface  # noqa: E402
from bertnli.data.demo import write_demo_corpus  # noqa: E402
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "bert.small": dict(num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1),
    "MiniLM": dict(num_hiddens=384, ffn_num_hiddens=1536, num_heads=12, num_layers=6, dropout=0.1),
    "bert.base": dict(num_hiddens=768, ffn_num_hiddens=3072, num_heads=12, num_layers=12, dropout=0.1),
}
Contestants = dict[str, Callable[[], Any]]
_EACH = 10


class Bench:
    """Times contestants on one device until the minutes are over, and keeps the rows of the table."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.rounds, self.json = torch.device(args.device), args.rounds, args.json
        self.deadline = time.monotonic() + 60 * args.minutes
        self.backend = "eager" if args.tiny else "inductor"  # of torch.compile
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine()
        self.about = dict(device=name, torch=torch.__version__, python=platform.python_version())
        self.rows: list[dict[str, Any]] = []
        self.status = 0

    @contextlib.contextmanager
    def part(self, **about: Any) -> Iterator[None]:
        """What fails inside is a row and a traceback, and the other parts go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail({**about, "fails": _line(error)})

    def fail(self, row: dict[str, Any]) -> None:
        self.status = 1
        self.add(row)

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def add(self, row: dict[str, Any]) -> None:
        """Print a row, and write all rows so far: what has been measured survives a time limit from outside."""
        self.rows.append(row)
        shown = (
            f"{k} {'' if k.endswith(('_ms', '_mib', 'dropout')) else 'x'}{v:.2f}"
            if isinstance(v, float)
            else f"{k} {v}"
            for k, v in row.items()
        )
        print("  ".join(shown), flush=True)
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps({**self.about, "rows": self.rows}, indent=2) + "\n", encoding="utf-8")

    def seconds(self, run: Callable[[], Any], repeats: int) -> float:
        if self.device.type != "cuda":
            begun = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - begun) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def launching(self, run: Callable[[], Any]) -> float:
        """The seconds until the host is free again."""
        times = []
        for _ in range(self.rounds):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        torch.cuda.synchronize()
        return statistics.median(times)

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any] | None:
        """`run` _EACH times over as a CUDA graph: its kernels without their launches. None where that fails."""
        if self.device.type != "cuda":
            return None
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            run()
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(here), torch.cuda.graph(graph):
                for _ in range(_EACH):
                    run()
        except Exception:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def compare(self, work: str, contestants: Contestants, kernels: bool = False, **about: Any) -> None:
        """Add a row: the seconds of "ours", the first contestant, and the others' ratios to it.

        With `kernels`, each is a CUDA graph where it can be, and "launched" is in its name where it cannot.
        """
        row: dict[str, Any] = {"work": work, **about}
        if self.late():
            row["skipped"] = "out of time"
        else:
            ready: dict[str, tuple[Callable[[], Any], int]] = {}  # and how many times it does its work
            for name, run in contestants.items():
                if ready and self.late():  # the others were slow to compile
                    row[name] = "skipped"
                    continue
                try:
                    for _ in range(3):
                        run()
                    graph = self.captured(run) if kernels else None
                    fails = kernels and graph is None and self.device.type == "cuda"
                    ready[f"{name}, launched" if fails and ready else name] = graph or run, _EACH if graph else 1
                except Exception as error:  # a peer that this PyTorch or device lacks is named, not hidden
                    if name == "ours":
                        raise
                    row[name] = f"fails: {_line(error)}"
            # enough repetitions that one timing is many milliseconds, and the host is ahead of the device
            repeats = max(3, min(50, round(0.01 / max(1e-6, self.seconds(ready["ours"][0], 3)))))
            times: dict[str, list[float]] = {name: [] for name in ready}
            for _ in range(self.rounds):
                for name, (run, each) in ready.items():
                    times[name].append(self.seconds(run, repeats) / each)
            row["ours_ms"] = 1e3 * statistics.median(times["ours"])
            if self.device.type == "cuda" and not kernels:
                row["launch_ms"] = 1e3 * self.launching(ready["ours"][0])
            for name in list(ready)[1:]:
                row[name] = statistics.median(t / o for t, o in zip(times[name], times["ours"], strict=True))
        self.add(row)


def _line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}"


# ---- attention ----


def attention(bench: Bench, model: str, lens: list[int], train: bool, p: float, flex: bool = False) -> None:
    heads, width = MODELS.get(model, (8, 128))
    device, dtype, batch = bench.device, torch.bfloat16, len(lens)
    longest, total, scale = max(lens), sum(lens), width**-0.5
    cu = torch.tensor([0, *lens]).cumsum(0).to(torch.int32).to(device)
    qkv = torch.randn(total, 3, heads, width, device=device, dtype=dtype)
    dout = torch.randn(total, heads, width, device=device, dtype=dtype)
    valid = (torch.arange(longest) < torch.tensor(lens)[:, None]).to(device)  # (B, L)

    def padded(x: Tensor) -> Tensor:
        full = x.new_zeros(batch, longest, *x.shape[1:])
        full[valid] = x
        return full

    qkv_padded, dout_padded = padded(qkv), padded(dout)
    mask = valid[:, None, None, :]

    def through(function: Callable[[Tensor], Tensor], x: Tensor, d: Tensor) -> Callable[[], Tensor]:
        if not train:
            return torch.no_grad()(lambda: function(x))
        leaf = x.detach().requires_grad_()

        def run() -> Tensor:
            out = function(leaf)
            torch.autograd.grad(out, leaf, d)
            return out.detach()

        return run

    def sdpa(x: Tensor) -> Tensor:
        q, k, v = x.permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v, mask, p).transpose(1, 2)

    def nested(x: Tensor) -> Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                part.contiguous(), cu.long(), min_seqlen=min(lens), max_seqlen=longest
            )
            for part in x.unbind(1)
        )
        out = scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        return out.transpose(1, 2).values()

    def varlen(x: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(*x.unbind(1), cu, cu, longest, longest)

    def ours(x: Tensor) -> Tensor:  # the kernels themselves, also where `ops` prefers torch.nn.attention.varlen
        seed = torch.randint(0, 2**32, (2,), device=device) if p else None
        return torch.ops.bertnli.varlen_attention_packed(x, cu, longest, p, scale, seed)[0]

    contestants: Contestants = {
        "ours": through(ours, qkv, dout),
        "sdpa padded": through(sdpa, qkv_padded, dout_padded),
    }
    if p == 0:
        contestants |= {"sdpa nested": through(nested, qkv, dout), "torch varlen": through(varlen, qkv, dout)}
        if flex:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            document = torch.repeat_interleave(torch.arange(batch, device=device), cu.diff().long())
            compiled = torch.compile(flex_attention, backend=bench.backend)
            block_mask = create_block_mask(
                lambda b, h, i, j: document[i] == document[j], None, None, total, total, device=str(device)
            )

            def packed(x: Tensor) -> Tensor:
                q, k, v = (part.transpose(0, 1)[None] for part in x.unbind(1))
                return compiled(q, k, v, block_mask=block_mask)[0].transpose(0, 1)

            contestants["flex"] = through(packed, qkv, dout)
        wanted = contestants["ours"]().float()
        for name, run in list(contestants.items())[1:]:
            with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):  # compare() names what fails
                found = run()
                found = found[valid] if name == "sdpa padded" else found
                _same(bench, found, wanted, 3e-2, work="attention", shape=model, batch=batch, contestant=name)
    bench.compare(
        "attention",
        contestants,
        kernels=True,
        shape=model,
        batch=batch,
        tokens=total,
        pass_="both" if train else "forward",
        dropout=p,
    )


# ---- row operators ----


def row_operators(bench: Bench, tokens: int, width: int, inner: int) -> None:
    device, p = bench.device, 0.1
    x = torch.randn(tokens, width, device=device)
    y = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    z = torch.randn(tokens, inner, device=device, dtype=torch.bfloat16)
    row, wide = torch.randn(width, device=device), torch.randn(inner, device=device)
    tables = [torch.randn(n, width, device=device) for n in (30_522, 2, 512)]
    ids = [torch.randint(0, n, (tokens,), device=device, dtype=torch.int32) for n in (30_522, 2, 60)]

    def plain_add_norm(x: Tensor, y: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return F.layer_norm(x + F.dropout(y + v, p), (width,), w, b)

    def plain_bias_act(z: Tensor, b: Tensor) -> Tensor:
        return F.gelu(z + b.to(z.dtype))

    def plain_embed(*tables: Tensor) -> Tensor:
        return sum((F.embedding(i, t) for i, t in zip(ids, tables, strict=True)), start=torch.zeros((), device=device))

    cases: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
        "add_norm": (
            lambda x, y, w, b, v: ops.add_norm(x, y, w, b, 1e-5, p, y_bias=v), plain_add_norm, [x, y, row, row, row]
        ),
        "bias_act": (lambda z, b: ops.bias_act(z, b, "gelu"), plain_bias_act, [z, wide]),
        "embed": (lambda *t: ops.embed(*t, *ids), plain_embed, tables),
    }  # fmt: skip
    for name, (ours, plain, inputs) in cases.items():
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        dout = torch.randn_like(ours(*leaves))

        def both(function: Callable[..., Tensor], leaves: list[Tensor] = leaves, dout: Tensor = dout) -> Any:
            return lambda: torch.autograd.grad(function(*leaves), leaves, dout)

        contestants = {
            "ours": both(ours),
            "torch.compile": both(torch.compile(plain, backend=bench.backend)),
            "eager": both(plain),
        }
        bench.compare("rows", contestants, kernels=True, operator=name, tokens=tokens, width=width)


def _same(bench: Bench, found: Tensor, wanted: Tensor, tolerance: float, **about: Any) -> None:
    try:
        torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)
    except AssertionError as error:
        bench.fail({**about, "differs": " ".join(str(error).split())[:200]})


# ---- models ----


def random_pairs(count: int, vocab_size: int) -> EncodedTexts:
    lens = torch.tensor(snli_lengths(count))
    generator = torch.Generator().manual_seed(0)
    return EncodedTexts(
        torch.randint(5, vocab_size, (int(lens.sum()),), generator=generator, dtype=torch.int32),
        torch.cat([torch.zeros(1, dtype=torch.int64), lens.cumsum(0)]),
        (lens * 2 // 3).to(torch.int32),
        torch.randint(0, 3, (count,), generator=generator),
        pad_id=0,
        max_len=128,
    )


class Model:
    """One contestant: `step` trains on a batch, `logits` are its scores."""

    def __init__(self, bench: Bench, net: nn.Module, forward: Callable[[nn.Module, Any], Tensor]) -> None:
        self.bench, self.net, self.forward = bench, net.to(bench.device), forward
        # A rate of 0 does all of a step's work and leaves the contestants equal.
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, fused=True)

    def captured(self, kind: str, max_len: int) -> Callable[[list[tuple[PackedBatch, Tensor]]], None]:
        """Its "step" or "logits" as a CUDA graph, of a copy of the model; batches lie on the host."""
        net = copy.deepcopy(self.net)
        rate = torch.tensor(0.0, device=self.bench.device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, fused=True, capturable=True)

        def step(batch: PackedBatch, count: Tensor) -> tuple[Tensor, ...]:
            optimizer.zero_grad()
            with self.autocast():
                scores = self.forward(net, batch)
            loss = F.cross_entropy(scores.float(), batch.labels, reduction="sum")
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad()
            return (loss.detach(),)

        @torch.no_grad()
        def logits(batch: PackedBatch, _: Tensor) -> tuple[Tensor, ...]:
            with self.autocast():
                return (self.forward(net, batch),)

        steps = CapturedSteps(step if kind == "step" else logits, self.bench.device)

        def run(parts: list[tuple[PackedBatch, Tensor]]) -> None:
            for batch, labels in parts:
                steps(pad_to_bucket(batch, -100, max_len), len(labels))

        return run

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.bench.device.type, dtype=torch.bfloat16)

    def step(self, parts: list[tuple[Any, Tensor]]) -> None:
        count = sum(len(labels) for _, labels in parts)
        for inputs, labels in parts:
            with self.autocast():
                scores = self.forward(self.net, inputs)
            (F.cross_entropy(scores.float(), labels, reduction="sum") / count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def logits(self, parts: list[tuple[Any, Tensor]]) -> Tensor:
        with self.autocast():
            return torch.cat([self.forward(self.net, inputs) for inputs, _ in parts])

    def memory(self, parts: list[tuple[Any, Tensor]]) -> float:
        """MiB at the peak of a step beyond parameters, gradients and optimizer state."""
        self.step(parts)
        sizes = [p.numel() * p.element_size() for p in self.net.parameters()]
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step(parts)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before - sum(sizes)) / 2**20


def models(bench: Bench, shape: str, batches: list[int], mode: str | None, vocab_size: int, **sizes: Any) -> None:
    """Rows for training and inference of one shape; with a `mode` of torch.compile the peer is compiled too."""
    if bench.late():
        bench.add({"work": "step", "shape": shape, "skipped": "out of time"})
        return
    config = BERTConfig.original(vocab_size, **sizes, max_len=512, pretraining_heads=False)
    torch.manual_seed(0)
    ours = BERTClassifier(BERTModel(config))
    data = random_pairs(max(batches), vocab_size)
    token_ids, segments, lens = data.to_padded(128)
    device = bench.device

    def peer() -> tuple[nn.Module, str]:
        try:
            import transformers
        except ImportError:
            net = PlainD2LClassifier(
                vocab_size, config.num_hiddens, config.ffn_num_hiddens, config.num_heads, config.num_layers,
                config.max_len, dropout=config.dropout, original=True,
            )  # fmt: skip
            net.load_state_dict(ours.state_dict())
            return net, "plain"
        settings = transformers.BertConfig(
            vocab_size=vocab_size, hidden_size=config.num_hiddens, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, intermediate_size=config.ffn_num_hiddens,
            max_position_embeddings=config.max_len, num_labels=3, attn_implementation="sdpa",
        )  # fmt: skip
        net = transformers.BertForSequenceClassification(settings)
        net.load_state_dict(to_huggingface(ours.state_dict(), "classifier"))
        return net, "hf"

    theirs, name = peer()

    def forward_peer(net: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, kinds, lengths = inputs
        if name == "plain":
            return net((ids, kinds, lengths))
        mask = (torch.arange(ids.size(1), device=ids.device) < lengths[:, None]).long()
        return net(input_ids=ids, token_type_ids=kinds, attention_mask=mask).logits

    def padded(rows: Tensor, length: int) -> tuple[Any, Tensor]:
        assert data.labels is not None
        inputs = tuple(x.to(device) for x in (token_ids[rows, :length], segments[rows, :length], lens[rows]))
        return inputs, data.labels[rows].to(device)

    contestants = {"ours": Model(bench, ours, lambda net, batch: net(batch)), name: Model(bench, theirs, forward_peer)}
    for batch in batches:
        rows = torch.arange(batch)
        packed = data.batch(rows).to(device)
        assert packed.labels is not None
        # Batches of similar lengths: four groups of a batch sorted by length, padded to each group's longest.
        groups = torch.tensor_split(rows[torch.argsort(lens[rows])], max(1, min(4, batch // 4)))
        work: dict[str, tuple[str, list[tuple[Any, Tensor]]]] = {
            "ours": ("ours", [(packed, packed.labels)]),
            f"{name} 128": (name, [padded(rows, 128)]),
            f"{name} longest": (name, [padded(rows, int(lens[rows].max()))]),
            f"{name} buckets": (name, [padded(group, int(lens[group].max())) for group in groups]),
        }
        if mode is not None:
            options = {} if bench.backend == "eager" else {"mode": mode}
            contestants["compiled"] = Model(
                bench, theirs, torch.compile(forward_peer, backend=bench.backend, **options)
            )
            label = f"{name} 128 compiled" + (", graphs" if mode == "reduce-overhead" else "")
            work[label] = ("compiled", work[f"{name} 128"][1])
        ours.eval(), theirs.eval()
        wanted = contestants["ours"].logits(work["ours"][1]).float()
        for label in (f"{name} 128", f"{name} longest"):
            found = contestants[name].logits(work[label][1])
            _same(bench, found, wanted, 5e-2, work="logits", shape=shape, batch=batch, contestant=label)
        about: dict[str, Any] = dict(shape=shape, batch=batch, tokens=len(packed.input_ids))
        for kind in ("step", "logits"):
            (ours.train(), theirs.train()) if kind == "step" else (ours.eval(), theirs.eval())
            runs: Contestants = {
                label: (lambda who=who, parts=parts, kind=kind: getattr(contestants[who], kind)(parts))
                for label, (who, parts) in work.items()
            }
            about_step = {}
            if device.type == "cuda" and not bench.late():
                step, host = contestants["ours"].captured(kind, config.max_len), data.batch(rows)
                runs["ours launched"] = runs["ours"]
                runs["ours"] = lambda step=step, host=host: step([(host, host.labels)])
                if kind == "step":
                    about_step["ours_mib"] = contestants["ours"].memory(work["ours"][1])
                    about_step[f"{name}_128_mib"] = contestants[name].memory(work[f"{name} 128"][1])
            bench.compare(kind, runs, **about, **about_step)


def fitting(bench: Bench, shape: str, batch: int, vocab_size: int, **sizes: Any) -> None:
    """The training loop itself."""
    if bench.late():
        bench.add({"work": "fit", "shape": shape, "batch": batch, "skipped": "out of time"})
        return
    data = random_pairs(20 * batch, vocab_size)
    config = BERTConfig.original(vocab_size, **sizes, max_len=512, pretraining_heads=False)
    row: dict[str, Any] = {"work": "fit", "shape": shape, "batch": batch}
    for name, options in {"pairs_per_second": {}, "launched": {"cuda_graphs": False}}.items():
        if options and bench.device.type != "cuda":
            continue
        torch.manual_seed(0)
        model = BERTClassifier(BERTModel(config))
        history = fit(
            model, data, epochs=3, batch_size=batch, precision="bf16", progress=False, device=bench.device, **options
        )
        row[name] = round(history.epochs[2].pairs_per_second)
    times = []
    for i in range(len(data) // batch):
        begun = time.perf_counter()
        data.batch(range(i * batch, (i + 1) * batch)).to(bench.device, non_blocking=True)
        times.append(time.perf_counter() - begun)
    bench.add(row | {"feed_ms": 1e3 * statistics.median(times)})


# ---- text ----


def text(bench: Bench, count: int) -> None:
    """Sentences of the demo's corpus, WordPiece with its words as the vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo_corpus(folder, train=count, dev=10, test=10)
        data = read_pairs(Path(folder, "snli_1.0_train.txt"), columns="text")
    premises, hypotheses = list(data.first), list(data.second)
    words = sorted(set(re.findall(r"\w+|\S", " ".join(premises + hypotheses).lower())))
    tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    times = []
    for _ in range(bench.rounds):
        begun = time.perf_counter()
        pairs = tokenizer.encode_pairs(premises, hypotheses, 128)
        times.append(time.perf_counter() - begun)
    bench.add(
        {
            "work": "text",
            "pairs": len(pairs),
            "tokens": len(pairs.ids),
            "threads": torch.get_num_threads(),
            "pairs_per_second": round(len(pairs) / statistics.median(times)),
        }
    )


PARTS = ("models", "compiled", "attention", "rows", "text")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test this program")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(args.device)
    if device.type == "cpu" and not args.tiny:
        parser.error("no GPU is here; --device cpu goes with --tiny")
    bench = Bench(args)
    print(*(f"{k} {v}" for k, v in bench.about.items()), "; ratios: time over ours", flush=True)

    whole = bench.deadline
    shapes = {"tiny": dict(num_hiddens=32, ffn_num_hiddens=64, num_heads=2, num_layers=2, dropout=0.1)}
    shapes = shapes if args.tiny else dict(reversed(SHAPES.items()))
    vocab_size, sizes = (100, [4]) if args.tiny else (30_522, [512, 64, 16])
    for shape, settings in shapes.items() if "models" in args.only else ():
        bench.deadline = min(whole, time.monotonic() + 60 * args.minutes * 0.2)
        with bench.part(work="step", shape=shape):
            models(bench, shape, sizes, "default" if args.tiny else None, vocab_size, **settings)
        for batch in sizes[: 2 if shape == "bert.small" else 1]:
            with bench.part(work="fit", shape=shape, batch=batch):
                fitting(bench, shape, batch, vocab_size, **settings)
    bench.deadline = whole
    for model in (["MiniLM"] if args.tiny else list(MODELS)) if "attention" in args.only else ():
        for batch in sizes if model == "bert.base" else sizes[:1]:
            flex = not args.tiny and batch == 512 and model == "bert.base"
            for train, p in ((False, 0.0), (True, 0.0), (True, 0.1)):
                with bench.part(work="attention", shape=model, batch=batch, dropout=p):
                    attention(bench, model, sorted(snli_lengths(batch)), train, p, flex)
    for model in ("bert.base", "long, wide") if "attention" in args.only and not args.tiny else ():
        long = torch.randint(130, 513, (40,), generator=torch.Generator().manual_seed(0)).tolist()
        for train, p in ((False, 0.0), (True, 0.0), (True, 0.1)):
            with bench.part(work="attention", shape=model, dropout=p):
                attention(bench, model, long, train, p)
    for tokens in ([16] if args.tiny else [864, 13_800]) if "rows" in args.only else ():
        with bench.part(work="rows", tokens=tokens):
            row_operators(bench, tokens, *((32, 64) if args.tiny else (768, 3072)))
    if "text" in args.only:
        with bench.part(work="text"):
            text(bench, 200 if args.tiny else 20_000)
    if "compiled" in args.only and not args.tiny:  # last, since PyTorch's compiler takes a minute for it
        for shape, batch, mode in (("bert.small", 64, "reduce-overhead"), ("bert.base", 512, "default")):
            with bench.part(work="step", shape=shape):
                models(bench, shape, [batch], mode, vocab_size, **SHAPES[shape])
    return bench.status


if __name__ == "__main__":
    sys.exit(main())
