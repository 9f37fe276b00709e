"""transformers in a plain loop, batches padded to their longest sequence.

Fused AdamW, weight decay on matrices only, linear schedule after a warm-up, gradients clipped at norm 1, SDPA, bf16 by
autocast: what bertnli's `fit` does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

NAME = "transformers, longest"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("transformers", "torch")
BUILT_FOR = {"bf16": ("avx512_bf16",)}
MODELS = ("small", "minilm")
Example = tuple[list[int], list[int], int]  # token ids, segment ids, label
WINDOW = 50  # shuffled batches within which "buckets" sorts by length


def batches(
    examples: list[Example], size: int, buckets: bool, shuffle: random.Random | None
) -> Iterator[dict[str, Any]]:
    """Padded batches as the model's keyword arguments. Without `shuffle` (evaluation) buckets sort all examples."""
    import torch

    order = list(range(len(examples)))
    if shuffle:
        shuffle.shuffle(order)
    if buckets:
        window = WINDOW * size if shuffle else len(order)
        order = [i for _, _, i in sorted((n // window, len(examples[i][0]), i) for n, i in enumerate(order))]
    chunks = [order[s : s + size] for s in range(0, len(order), size)]
    if shuffle:
        shuffle.shuffle(chunks)
    for chunk in chunks:
        length = max(len(examples[i][0]) for i in chunk)
        padded = [[ids + [0] * (length - len(ids)) for ids in examples[i][:2]] for i in chunk]  # [PAD] of BERT is 0
        ids, segments = torch.tensor(padded).unbind(1)  # (B, L) each
        lens = torch.tensor([len(examples[i][0]) for i in chunk])
        mask = (torch.arange(length) < lens[:, None]).long()
        labels = torch.tensor([examples[i][2] for i in chunk])
        yield {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask, "labels": labels}


def build(buckets: bool = False, prepare: Callable[..., Any] | None = None) -> Callable[..., float]:
    """`prepare(model, optimizer, task)` may replace both by a library's own."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup
    from transformers.utils import logging

    logging.set_verbosity_error()  # no advice on the new classification head
    logging.disable_progress_bar()

    def run(task: Any, stages: Any) -> float:
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)
        tokenizer = AutoTokenizer.from_pretrained(task.folder)
        model = AutoModelForSequenceClassification.from_pretrained(task.folder, num_labels=3)
        groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.01}]
        groups += [{"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=task.lr, fused=True)
        if prepare is not None:
            model, optimizer = prepare(model, optimizer, task)

        def tokenize(split: str) -> list[Example]:
            *texts, labels = task.read(split)
            found = tokenizer(*texts, truncation="longest_first", max_length=task.max_len)
            return list(zip(found["input_ids"], found["token_type_ids"], labels, strict=True))

        train, test = tokenize("train"), tokenize("test")
        stages.end("encode")
        steps = -(-len(train) // task.batch_size)
        schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16" and prepare is None)
        model.train()
        for batch in batches(train, task.batch_size, buckets, random.Random(task.seed)):
            with autocast:
                loss = model(**batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        stages.end("train")
        model.eval()
        with torch.inference_mode(), autocast:
            counts = [
                int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
                for batch in batches(test, 128, buckets, None)
            ]
        return sum(counts) / len(test)

    return run
