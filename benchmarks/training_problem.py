"""The pairs, the models and the loops of bench_training.py.

python benchmarks/training_problem.py NAME MODEL PAIRS PRECISION        bytes that a step of that loop needs
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import torch
from common import padded_d2l, snli

from bertnli import BERTClassifier, EncodedTexts, WordTokenizer
from bertnli.bench import transformers
from bertnli.bench.measure import classifier
from bertnli.bench.training import BertnliLoop, PlainLoop, shuffled

MAX_LEN = 128
NAMES = ("bertnli", "bertnli, torch AdamW")
OF_TRANSFORMERS = ("transformers, buckets", "transformers, plain AdamW", "transformers, longest", "transformers, 128")


@cache
def tokenizer() -> WordTokenizer:
    data = snli("train")
    return WordTokenizer.from_texts([*data.first, *(data.second or ())], 1)


@cache
def encoded() -> EncodedTexts:
    """SNLI's training pairs."""
    data = snli("train")
    assert data.second is not None
    return tokenizer().encode_pairs(data.first, data.second, labels=data.labels)


def model_of(shape: str) -> BERTClassifier:
    """A classifier with the weights of seed 0: D2L's variant for the shape `d2l`, else the original BERT's."""
    size = "small" if shape == "d2l" else shape
    return classifier(size, int(encoded().ids.max()) + 1, d2l=shape == "d2l")


def loop_of(name: str, shape: str, precision: str) -> PlainLoop:
    """The loop of a contestant, with the weights of `model_of`."""
    data, model = encoded(), model_of(shape)
    if name == "bertnli":
        return BertnliLoop(model, data, precision)
    if name == "bertnli, torch AdamW":
        return PlainLoop(model, data, lambda index: model(data.batch(index)), precision)
    if name == "D2L (float32)":
        token_ids, segments, lens = data.to_padded(MAX_LEN)
        padded = padded_d2l(model)
        adam = torch.optim.Adam(padded.parameters(), lr=1e-6)
        return PlainLoop(padded, data, lambda i: padded((token_ids[i], segments[i], lens[i])), "fp32", adam)
    peer = transformers.equal_model(model)
    forward = transformers.forward_of(peer, data, MAX_LEN if name == "transformers, 128" else None)
    plain = torch.optim.AdamW(peer.parameters(), lr=1e-6) if name == "transformers, plain AdamW" else None
    return PlainLoop(peer, data, forward, precision, plain, name in OF_TRANSFORMERS[:2])


def memory(name: str, shape: str, batch: int, precision: str) -> int:
    """Bytes: the growth of this process's peak in a step, less gradients; optimizer state exists before."""
    loop = loop_of(name, shape, precision)
    order = torch.cat(shuffled(encoded(), batch + 8, 1))
    loop.step(order[:8])  # optimizer state, code and small buffers
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    loop.step(order[8:])
    growth = status("VmHWM") - before
    gradients = sum(p.numel() * p.element_size() for p in loop.model.parameters() if p.requires_grad)
    return growth - (0 if isinstance(loop, BertnliLoop) else gradients)


def status(name: str) -> int:
    """Bytes of an entry of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    print(memory(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
