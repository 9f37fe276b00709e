"""The pairs and the models of the training benchmarks, and one training step of each contestant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from common import MODELS, ROOT, SNLI, huggingface_inputs, padded_d2l
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, WordTokenizer, read_pairs
from bertnli.data.demo import write_demo_corpus
from bertnli.data.texts import TextData
from bertnli.training.optimizer import make_optimizer
from bertnli.training.options import TrainingOptions
from bertnli.training.steps import EagerStep, Objective

SHAPES = {**MODELS, "d2l": MODELS["small"]}
NAMES = [
    *("bertnli", "bertnli, torch AdamW", "hf buckets", "hf buckets, default AdamW", "hf longest", "hf 128", "d2l 128"),
]
BUCKET = 8  # sequences that "hf buckets" pads together
MAX_LEN = 128


@cache
def texts() -> TextData:
    """SNLI's training pairs; generated pairs where SNLI is absent."""
    path = SNLI / "snli_1.0_train.txt"
    return read_pairs(path if path.exists() else write_demo_corpus(ROOT / "runs" / "bench") / "snli_1.0_train.txt")


@cache
def tokenizer() -> WordTokenizer:
    return WordTokenizer.from_texts([*texts().first, *(texts().second or ())], 1)


@cache
def encoded() -> EncodedTexts:
    data = texts()
    return tokenizer().encode_pairs(data.first, data.second, labels=data.labels)


def build_model(shape: str) -> BERTClassifier:
    """A classifier with the weights of seed 0: D2L's variant for the shape `d2l`, else the original BERT's."""
    config = BERTConfig if shape == "d2l" else BERTConfig.original
    torch.manual_seed(0)
    return BERTClassifier(BERTModel(config(int(encoded().ids.max()) + 1, **SHAPES[shape], pretraining_heads=False)))


class Contestant:
    """One model with its optimizer. `index` [B] selects examples of `encoded()`.

    `forward(index)` gives logits [B, 3]. With `buckets`, a step accumulates gradients over groups of similar lengths.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        precision: str,
        optimizer: torch.optim.Optimizer | None = None,
        buckets: bool = False,
    ) -> None:
        self.model, self.forward, self.precision, self.buckets = model, forward, precision, buckets
        self.optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def groups(self, index: Tensor) -> list[Tensor]:
        if not self.buckets:
            return [index]
        return list(torch.split(index[torch.argsort(encoded().lengths[index])], BUCKET))

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    @contextmanager
    def training(self) -> Iterator[None]:
        """The state in which steps are taken."""
        yield

    def step(self, index: Tensor) -> None:
        """One training step, dropout and optimizer included."""
        self.model.train()
        labels = encoded().labels
        assert labels is not None
        for group in self.groups(index):
            with self.autocast():
                logits = self.forward(group)
            (cross_entropy(logits.float(), labels[group], reduction="sum") / len(index)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def logits(self, index: Tensor) -> Tensor:
        """Logits [B, 3] in eval mode; `index` ascends."""
        self.model.eval()
        groups = self.groups(index)
        return torch.cat([self.forward(group).float() for group in groups])[torch.argsort(torch.cat(groups))]


class Bertnli(Contestant):
    """The step of `bertnli.fit`, without clipping as all contestants."""

    def __init__(self, model: BERTClassifier, precision: str) -> None:
        options = TrainingOptions(batch_size=1 << 20, lr=1e-6, max_grad_norm=None, precision=precision)
        objective = Objective()
        self.training_optimizer = make_optimizer(model, objective, options)
        super().__init__(
            model, lambda index: model(encoded().batch(index)), precision, self.training_optimizer.optimizer
        )
        self.fit_step = EagerStep(model, objective, encoded(), self.training_optimizer, options)

    @contextmanager
    def training(self) -> Iterator[None]:
        with self.training_optimizer.epoch():
            yield

    def step(self, index: Tensor) -> None:
        torch.ops.bertnli.keep_memory(True)  # only in this contestant's steps
        self.model.train()
        self.fit_step(index)
        torch.ops.bertnli.keep_memory(False)


def contestant(name: str, shape: str, precision: str) -> Contestant:
    """One of NAMES, with the weights of `build_model`."""
    data, model = encoded(), build_model(shape)
    if name == "bertnli":
        return Bertnli(model, precision)
    if name == "bertnli, torch AdamW":
        return Contestant(model, lambda index: model(data.batch(index)), precision)
    token_ids, segments, lens = data.to_padded(MAX_LEN)
    if name == "d2l 128":
        padded = padded_d2l(model)
        adam = torch.optim.Adam(padded.parameters(), lr=1e-6)
        return Contestant(padded, lambda i: padded((token_ids[i], segments[i], lens[i])), "fp32", adam)

    from peers.transformers import equal_model  # transformers is needed by these contestants only

    peer = equal_model(model)

    def forward(index: Tensor) -> Tensor:
        length = MAX_LEN if name == "hf 128" else int(lens[index].max())
        inputs = huggingface_inputs(token_ids[index, :length], segments[index, :length], lens[index])
        logits: Tensor = peer(**inputs).logits
        return logits

    default = torch.optim.AdamW(peer.parameters(), lr=1e-6) if name.endswith("default AdamW") else None
    return Contestant(peer, forward, precision, default, buckets="buckets" in name)
