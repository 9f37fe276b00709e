"""bert.small from scratch on SNLI: bertnli beside D2L's padded modules, same weights, order and schedule.

    python benchmarks/accuracy_small.py --seeds 0 1 2 --epochs 3 --pad longest

The vocabulary follows D2L: lower-cased words of SNLI's parse columns that occur at least five times. The D2L model is
trained with PyTorch's AdamW in a loop of its own; its results do not depend on `--pad`, only its time. Prints one JSON
object a seed: seconds of training and accuracy on the test pairs.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch
from common import MODELS, SNLI, fused_adamw, padded_d2l, seconds
from helpers.oracles import PlainD2LClassifier
from torch.nn.functional import cross_entropy

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, WordTokenizer, evaluate, fit, read_pairs

MAX_LEN = 128


def train_padded(model: PlainD2LClassifier, data: EncodedTexts, args: argparse.Namespace, seed: int) -> None:
    """The loop of `bertnli.fit`, written out over padded tensors."""
    token_ids, segments, valid_lens = data.to_padded(MAX_LEN)
    assert data.labels is not None
    optimizer, schedule = fused_adamw(model, args.lr, args.epochs * -(-len(data) // args.batch_size))
    model.train()
    for epoch in range(args.epochs):
        torch.manual_seed(seed * 1_000_003 + epoch)  # as in `fit`, for the same order
        for index in torch.randperm(len(data)).split(args.batch_size):
            length = MAX_LEN if args.pad == "128" else int(valid_lens[index].max())
            logits = model((token_ids[index, :length], segments[index, :length], valid_lens[index]))
            loss = cross_entropy(logits, data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def padded_accuracy(model: PlainD2LClassifier, data: EncodedTexts) -> float:
    model.eval()
    token_ids, segments, valid_lens = data.to_padded(MAX_LEN)
    assert data.labels is not None
    num_correct = 0
    for index in torch.arange(len(data)).split(256):
        length = int(valid_lens[index].max())
        logits = model((token_ids[index, :length], segments[index, :length], valid_lens[index]))
        num_correct += int((logits.argmax(1) == data.labels[index]).sum())
    return num_correct / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0], help="one run each (default: 0)")
    add("--epochs", type=int, default=3, help="passes over the training pairs (default: 3)")
    add("--lr", type=float, default=3e-4, help="peak learning rate (default: 3e-4)")
    add("--batch-size", type=int, default=64, help="pairs in a batch (default: 64)")
    add("--limit", type=int, help="number of training and of test pairs (default: all)")
    add("--pad", choices=["longest", "128"], default="longest", help="length of D2L's batches (default: longest)")
    add("--skip-d2l", action="store_true", help="train bertnli's model only")
    args = parser.parse_args()
    train, test = (read_pairs(SNLI / f"snli_1.0_{split}.txt")[: args.limit] for split in ("train", "test"))
    tokenizer = WordTokenizer.from_texts([*train.first, *(train.second or ())], 5)
    data, test_data = (tokenizer.encode_pairs(d.first, d.second or (), labels=d.labels) for d in (train, test))
    for seed in args.seeds:
        torch.manual_seed(seed)
        model = BERTClassifier(BERTModel(BERTConfig(len(tokenizer), **MODELS["small"], pretraining_heads=False)))
        padded = padded_d2l(model)
        row = {"seed": seed, "vocabulary": len(tokenizer)}
        options = dict(epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=seed)
        row["bertnli_s"] = seconds(partial(fit, model, data, **options, progress=False))
        row["bertnli_accuracy"] = evaluate(model, test_data)["accuracy"]
        if not args.skip_d2l:
            row["d2l_s"] = seconds(partial(train_padded, padded, data, args, seed))
            row["d2l_accuracy"] = padded_accuracy(padded, test_data)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
