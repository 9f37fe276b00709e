"""Training steps, inference and `fit` on a GPU, beside transformers (D2L's padded modules where it is absent)."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import padded_d2l, seconds, snli_lengths
from torch import Tensor, nn

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, PackedBatch, fit
from bertnli.bench.transformers import equal_model, inputs_of
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket
from gpu.bench import Bench, Contestants

MAX_LEN = 128
Part = tuple[Any, Tensor]  # a model's inputs, and labels [B]


def random_pairs(count: int, vocab_size: int) -> EncodedTexts:
    """Pairs of SNLI's lengths with random tokens and labels."""
    lens = torch.tensor(snli_lengths(count))
    generator = torch.Generator().manual_seed(0)
    return EncodedTexts(
        torch.randint(5, vocab_size, (int(lens.sum()),), generator=generator, dtype=torch.int32),
        torch.cat([torch.zeros(1, dtype=torch.int64), lens.cumsum(0)]),
        (lens * 2 // 3).to(torch.int32),
        torch.randint(0, 3, (count,), generator=generator),
        pad_id=0,
        max_len=MAX_LEN,
    )


class Contestant:
    """A model: `step` trains on the parts of a batch, `logits` scores them."""

    def __init__(self, bench: Bench, model: nn.Module, forward: Callable[[nn.Module, Any], Tensor]) -> None:
        self.bench, self.model, self.forward = bench, model.to(bench.device), forward
        # At a learning rate of 0 a step does all of its work, and the contestants stay equal.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.bench.device.type, dtype=torch.bfloat16)

    def step(self, parts: list[Part]) -> None:
        count = sum(len(labels) for _, labels in parts)
        for inputs, labels in parts:
            with self.autocast():
                logits = self.forward(self.model, inputs)
            (F.cross_entropy(logits.float(), labels, reduction="sum") / count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def logits(self, parts: list[Part]) -> Tensor:
        with self.autocast():
            return torch.cat([self.forward(self.model, inputs) for inputs, _ in parts])

    def captured(self, work: str, max_len: int) -> Callable[[PackedBatch], None]:
        """bertnli's "step" or "logits" as a CUDA graph of a copy of the model; batches lie on the host."""
        model = copy.deepcopy(self.model)
        rate = torch.tensor(0.0, device=self.bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=True)

        def step(batch: PackedBatch, count: Tensor) -> tuple[Tensor, ...]:
            optimizer.zero_grad()
            with self.autocast():
                logits = self.forward(model, batch)
            loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad()
            return (loss.detach(),)

        @torch.no_grad()
        def logits(batch: PackedBatch, _: Tensor) -> tuple[Tensor, ...]:
            with self.autocast():
                return (self.forward(model, batch),)

        steps = CapturedSteps(step if work == "step" else logits, self.bench.device)

        def run(batch: PackedBatch) -> None:
            steps(pad_to_bucket(batch, -100, max_len), len(batch))

        return run

    def memory(self, parts: list[Part]) -> float:
        """MiB at the peak of a step beyond parameters, gradients and optimizer state."""
        self.step(parts)
        gradients = sum(p.numel() * p.element_size() for p in self.model.parameters())
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step(parts)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20


def peer_of(model: BERTClassifier) -> tuple[str, nn.Module, Callable[[nn.Module, Any], Tensor]]:
    """A peer of equal weights: its name, its model, and its forward of (ids, segments, lengths)."""
    try:
        return "hf", equal_model(model), lambda peer, inputs: peer(**inputs_of(*inputs)).logits
    except ImportError:
        return "d2l", padded_d2l(model), lambda padded, inputs: padded(inputs)


class Comparison:
    """bertnli and the peer at one model size; with a `compile_mode` the peer is compiled too."""

    def __init__(self, bench: Bench, shape: str, config: BERTConfig, examples: int, compile_mode: str | None) -> None:
        self.bench, self.shape, self.config = bench, shape, config
        torch.manual_seed(0)
        model = BERTClassifier(BERTModel(config))
        self.peer, peer, forward = peer_of(model)
        self.models = (model, peer)
        self.contestants = {
            "bertnli": Contestant(bench, model, lambda m, batch: m(batch)),
            self.peer: Contestant(bench, peer, forward),
        }
        self.compiled = ""
        if compile_mode is not None:
            self.compiled = f"{self.peer} 128 compiled" + ", graphs" * (compile_mode == "reduce-overhead")
            options = {} if bench.compiler == "eager" else {"mode": compile_mode}
            compiled = torch.compile(forward, backend=bench.compiler, **options)
            self.contestants[self.compiled] = Contestant(bench, peer, compiled)
        self.data = random_pairs(examples, config.vocab_size)
        self.padded = self.data.to_padded(MAX_LEN)

    def padded_part(self, index: Tensor, length: int) -> Part:
        """The examples `index` [B], padded to `length` on the device."""
        ids, segments, lens = self.padded
        inputs = (ids[index, :length], segments[index, :length], lens[index])
        assert self.data.labels is not None
        return tuple(x.to(self.bench.device) for x in inputs), self.data.labels[index].to(self.bench.device)

    def work(self, batch: int) -> dict[str, tuple[str, list[Part]]]:
        """The first `batch` examples for each contestant: label to (contestant, parts of the batch)."""
        index, lens = torch.arange(batch), self.padded[2]
        packed = self.data.batch(index).to(self.bench.device)
        assert packed.labels is not None
        # Buckets: the batch sorted by length, in four groups that are padded to their longest.
        buckets = torch.tensor_split(index[torch.argsort(lens[index])], max(1, min(4, batch // 4)))
        work: dict[str, tuple[str, list[Part]]] = {
            "bertnli": ("bertnli", [(packed, packed.labels)]),
            f"{self.peer} 128": (self.peer, [self.padded_part(index, MAX_LEN)]),
            f"{self.peer} longest": (self.peer, [self.padded_part(index, int(lens[index].max()))]),
            f"{self.peer} buckets": (self.peer, [self.padded_part(b, int(lens[b].max())) for b in buckets]),
        }
        if self.compiled:
            work[self.compiled] = (self.compiled, work[f"{self.peer} 128"][1])
        return work

    def run(self, batch: int) -> None:
        """Add the rows of training and inference."""
        work = self.work(batch)
        tokens = len(work["bertnli"][1][0][0].input_ids)
        about: dict[str, Any] = dict(shape=self.shape, batch=batch)
        for model in self.models:
            model.eval()
        expected = self.contestants["bertnli"].logits(work["bertnli"][1])
        for label in (f"{self.peer} 128", f"{self.peer} longest"):
            logits = self.contestants[self.peer].logits(work[label][1])
            self.bench.check_close(logits, expected, 5e-2, work="logits", contestant=label, **about)
        about["tokens"] = tokens
        for kind in ("step", "logits"):
            for model in self.models:
                model.train(kind == "step")
            runs: Contestants = {
                label: partial(getattr(self.contestants[name], kind), parts) for label, (name, parts) in work.items()
            }
            memory = {}
            if self.bench.device.type == "cuda" and not self.bench.out_of_time():
                step = self.contestants["bertnli"].captured(kind, self.config.max_len)
                host_batch = self.data.batch(torch.arange(batch))
                runs["bertnli launched"] = runs["bertnli"]
                runs["bertnli"] = partial(step, host_batch)
                if kind == "step":
                    memory["bertnli_mib"] = self.contestants["bertnli"].memory(work["bertnli"][1])
                    memory[f"{self.peer}_128_mib"] = self.contestants[self.peer].memory(work[f"{self.peer} 128"][1])
            self.bench.compare(kind, runs, **about, **memory)


def models(bench: Bench, shape: str, config: BERTConfig, batches: list[int], compile_mode: str | None) -> None:
    """Add rows for training and inference at one model size."""
    if not bench.out_of_time(work="step", shape=shape):
        comparison = Comparison(bench, shape, config, max(batches), compile_mode)
        for batch in batches:
            comparison.run(batch)


def fitting(bench: Bench, shape: str, config: BERTConfig, batch: int) -> None:
    """Add a row for `fit`: pairs a second in the third epoch, by CUDA graphs and launched."""
    row: dict[str, Any] = {"work": "fit", "shape": shape, "batch": batch}
    if bench.out_of_time(**row):
        return
    data = random_pairs(20 * batch, config.vocab_size)
    for name, graphs in {"pairs_per_second": None, "launched": False}.items():
        if name == "launched" and bench.device.type != "cuda":
            continue
        torch.manual_seed(0)
        history = fit(
            BERTClassifier(BERTModel(config)), data, epochs=3, batch_size=batch, precision="bf16", progress=False,
            device=bench.device, cuda_graphs=graphs,
        )  # fmt: skip
        row[name] = round(history.epochs[2].pairs_per_second)

    def feed(start: int) -> None:
        data.batch(range(start, start + batch)).to(bench.device, non_blocking=True)

    feeds = [seconds(partial(feed, start)) for start in range(0, len(data), batch)]
    bench.add(row | {"feed_ms": 1e3 * statistics.median(feeds)})
