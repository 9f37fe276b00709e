"""bert.small's shape from scratch on SNLI: ours beside the plain padded version, same weights, order and schedule.

    python benchmarks/accuracy_small.py --seeds 0 1 2 --epochs 3 --pad longest

Vocabulary by the book's rule: lower-cased words of the parse columns, at least five times. `--pad longest` pads each
plain batch to its longest row, `--pad 128` to 128 as in the book; the plain version's results do not depend on it, only
its time. The peer is the module that the tests hold to the book's equations (tests/helpers/oracles.py), trained with PyTorch's
AdamW in a loop of its own. Prints one JSON object a run.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.oracles import PlainD2LClassifier  # noqa: E402

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, WordTokenizer, evaluate, fit  # noqa: E402
from bertnli.data.snli import read_pairs  # noqa: E402
from bertnli.encoder.config import SIZES  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data")) / "snli_1.0"


def train_plain(net: PlainD2LClassifier, data: EncodedTexts, args: argparse.Namespace, seed: int) -> None:
    """The loop of `bertnli.fit`, written out over padded tensors."""
    token_ids, segments, valid_lens = data.to_padded(128)
    assert data.labels is not None
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)
    steps, step = args.epochs * -(-len(data) // args.batch_size), 0
    rise = int(steps * 0.06)
    net.train()
    for epoch in range(args.epochs):
        torch.manual_seed(seed * 1_000_003 + epoch)
        for rows in torch.split(torch.randperm(len(data)), args.batch_size):
            length = 128 if args.pad == "128" else int(valid_lens[rows].max())
            factor = (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * factor
            logits = net((token_ids[rows, :length], segments[rows, :length], valid_lens[rows]))
            loss = cross_entropy(logits, data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1


@torch.no_grad()
def accuracy_of_plain(net: PlainD2LClassifier, data: EncodedTexts) -> float:
    net.eval()
    token_ids, segments, valid_lens = data.to_padded(128)
    right = 0
    for rows in torch.split(torch.arange(len(data)), 256):
        length = int(valid_lens[rows].max())
        logits = net((token_ids[rows, :length], segments[rows, :length], valid_lens[rows]))
        right += int((logits.argmax(1) == data.labels[rows]).sum())  # type: ignore[index]
    return right / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pad", choices=["longest", "128"], default="longest")
    parser.add_argument("--skip-plain", action="store_true")
    args = parser.parse_args()
    train = read_pairs(DATA / "snli_1.0_train.txt")
    test = read_pairs(DATA / "snli_1.0_test.txt")
    tokenizer = WordTokenizer.from_texts([*train.first, *train.second], 5)
    data, held_out = (tokenizer.encode_pairs(d.first, d.second, labels=d.labels) for d in (train, test))
    sizes = SIZES["bert.small"]
    for seed in args.seeds:
        torch.manual_seed(seed)
        net = BERTClassifier(BERTModel(BERTConfig(len(tokenizer), **sizes, pretraining_heads=False)))
        plain = PlainD2LClassifier(
            len(tokenizer), sizes["num_hiddens"], sizes["ffn_num_hiddens"], sizes["num_heads"], sizes["num_layers"],
            sizes["max_len"], dropout=sizes["dropout"],
        )  # fmt: skip
        plain.load_state_dict(copy.deepcopy(net.state_dict()))
        begun = time.perf_counter()
        fit(net, data, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=seed, progress=False)
        row = {"seed": seed, "vocabulary": len(tokenizer), "ours_s": time.perf_counter() - begun}
        row["ours_accuracy"] = evaluate(net, held_out)["accuracy"]
        if not args.skip_plain:
            begun = time.perf_counter()
            train_plain(plain, data, args, seed)
            row["plain_s"] = time.perf_counter() - begun
            row["plain_accuracy"] = accuracy_of_plain(plain, held_out)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
