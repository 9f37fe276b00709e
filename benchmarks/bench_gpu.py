"""Attention, row operators, training steps and inference on a GPU beside PyTorch's own and transformers.

    python benchmarks/bench_gpu.py [--minutes 6] [--json FILE] [--only models compiled attention rows text]
    python benchmarks/bench_gpu.py --device cpu --tiny        the same code on small sizes, to test it

Sequences have SNLI's lengths and random tokens; nothing is downloaded. Results of the contestants are compared before
they are timed, in eval mode or without dropout. Contestants alternate: figures are medians over rounds, ratios are
medians of (a contestant's time / bertnli's time). Work that does not fit into the minutes is named as skipped. Work
that fails or differs is named too, and makes the exit status 1. Work of a row:

    step        a training step in bf16 autocast with fused AdamW. bertnli: a CUDA graph as in `fit`, to which the batch
                is copied from the host, and launched kernel by kernel. transformers with SDPA ("hf"): padded to 128, to
                the longest of the batch, in four buckets of similar lengths, and compiled (", graphs": with its CUDA
                graphs). `_mib`: memory beyond parameters, gradients and optimizer state; `launch_ms`: time of the host
    logits      the same in inference, bertnli as in `score` of many batches
    fit         pairs a second in the third epoch of `fit`, by CUDA graphs, and launched kernel by kernel; `feed_ms`:
                time of the host to gather a batch and send it
    attention   bertnli beside SDPA padded to the longest (with a mask), SDPA on nested tensors,
                torch.nn.attention.varlen and FlexAttention on packed tokens: forward, forward and backward, without and
                with dropout, each as a CUDA graph; "long": sequences of 130 to 512 tokens
    rows        add_norm, bias_act and embed beside torch.compile of PyTorch's expressions, forward and backward
    text        pairs a second from lists of str to ids on the host
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from common import MODELS, seconds, snli_lengths
from gpu.attention import attention
from gpu.bench import Bench
from gpu.models import fitting, models
from gpu.operators import row_operators

from bertnli import BERTConfig, WordPieceTokenizer, read_pairs
from bertnli.data.demo import write_demo_corpus

PARTS = ("models", "compiled", "attention", "rows", "text")
PASSES = ((False, 0.0), (True, 0.0), (True, 0.1))  # whether backward too, and dropout
TINY = dict(num_hiddens=32, ffn_num_hiddens=64, num_heads=2, num_layers=2, dropout=0.1, max_len=512)


def config_of(sizes: dict[str, float], vocab_size: int) -> BERTConfig:
    return BERTConfig.original(vocab_size, **sizes, pretraining_heads=False)


def run_models(bench: Bench, tiny: bool) -> None:
    """Steps, logits and `fit`, the largest model first; each model gets a fifth of the time."""
    end = bench.deadline
    share = (end - time.monotonic()) / 5
    vocab_size, batches = (100, [4]) if tiny else (30_522, [512, 64, 16])
    for shape, sizes in {"tiny": TINY}.items() if tiny else reversed(MODELS.items()):
        config = config_of(sizes, vocab_size)
        bench.deadline = min(end, time.monotonic() + share)
        with bench.part(work="step", shape=shape):
            models(bench, shape, config, batches, "default" if tiny else None)
        for batch in batches[: 2 if shape == "small" else 1]:
            with bench.part(work="fit", shape=shape, batch=batch):
                fitting(bench, shape, config, batch)
    bench.deadline = end


def run_attention(bench: Bench, tiny: bool) -> None:
    heads = {shape: (sizes["num_heads"], sizes["num_hiddens"] // sizes["num_heads"]) for shape, sizes in MODELS.items()}
    for shape in ("minilm",) if tiny else MODELS:
        for batch in (4,) if tiny else (512, 64, 16) if shape == "base" else (512,):
            flex = batch == 512 and shape == "base"
            for train, dropout in PASSES:
                with bench.part(work="attention", shape=shape, batch=batch, dropout=dropout):
                    attention(bench, shape, sorted(snli_lengths(batch)), *heads[shape], train, dropout, flex)
    for shape, (count, width) in {} if tiny else {"long, base": heads["base"], "long, wide": (8, 128)}.items():
        lens = torch.randint(130, 513, (40,), generator=torch.Generator().manual_seed(0)).tolist()
        for train, dropout in PASSES:
            with bench.part(work="attention", shape=shape, dropout=dropout):
                attention(bench, shape, lens, count, width, train, dropout)


def run_rows(bench: Bench, tiny: bool) -> None:
    for tokens in (16,) if tiny else (864, 13_800):
        with bench.part(work="rows", tokens=tokens):
            row_operators(bench, tokens, *((32, 64) if tiny else (768, 3072)))


def run_text(bench: Bench, tiny: bool) -> None:
    """Generated sentences, WordPiece with their words as the vocabulary."""
    with bench.part(work="text"):
        with tempfile.TemporaryDirectory() as folder:
            write_demo_corpus(folder, train=200 if tiny else 20_000, dev=10, test=10)
            data = read_pairs(Path(folder, "snli_1.0_train.txt"), columns="text")
        premises, hypotheses = list(data.first), list(data.second or ())
        words = sorted(set(re.findall(r"\w+|\S", " ".join(premises + hypotheses).lower())))
        tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
        tokens = len(tokenizer.encode_pairs(premises, hypotheses, 128).ids)
        times = [seconds(lambda: tokenizer.encode_pairs(premises, hypotheses, 128)) for _ in range(bench.rounds)]
        rate = round(len(premises) / statistics.median(times))
        about = {"pairs": len(premises), "tokens": tokens, "threads": torch.get_num_threads()}
        bench.add({"work": "text", **about, "pairs_per_second": rate})


def run_compiled(bench: Bench, tiny: bool) -> None:
    """The peer compiled, which takes PyTorch's compiler a minute."""
    for shape, batch, mode in () if tiny else (("small", 64, "reduce-overhead"), ("base", 512, "default")):
        with bench.part(work="step", shape=shape):
            models(bench, shape, config_of(MODELS[shape], 30_522), [batch], mode)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="PyTorch device (default: cuda where there is one)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test this program")
    parser.add_argument("--minutes", type=float, default=6, help="time limit (default: 6)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if torch.device(args.device).type == "cpu" and not args.tiny:
        parser.error("no CUDA device is available; to test the program on the CPU, add --device cpu --tiny")
    bench = Bench(args)
    print(*(f"{name} {value}" for name, value in bench.about.items()), "; ratios: time / bertnli's time", flush=True)
    runs = dict(models=run_models, attention=run_attention, rows=run_rows, text=run_text, compiled=run_compiled)
    for part, run in runs.items():
        if part in args.only:
            run(bench, args.tiny)
    return bench.status


if __name__ == "__main__":
    sys.exit(main())
