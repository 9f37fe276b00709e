"""Fine-tuning and evaluation of transformers' model for a task, on bertnli's token ids."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
import transformers
from common import fused_adamw
from torch import Tensor

from bertnli import EncodedTexts, Head, PackedBatch
from bertnli.bench.transformers import inputs_of
from bertnli.text.encoded import encoded_texts

CLASSES = {
    "classification": transformers.BertForSequenceClassification,
    "regression": transformers.BertForSequenceClassification,
    "tagging": transformers.BertForTokenClassification,
    "qa": transformers.BertForQuestionAnswering,
}


class Outcome(NamedTuple):
    """Wall and processor seconds of training, and the task's figures on the test data."""

    wall_s: float
    cpu_s: float
    figures: dict[str, Any]


def load(task: str, folder: str) -> Any:
    """transformers' model for the task from a Hugging Face folder."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return CLASSES[task].from_pretrained(folder, attn_implementation="sdpa")


def train_and_evaluate(model: Any, head: Head, train: Any, test: Any, options: dict[str, Any]) -> Outcome:
    """Train `model` in the order of `bertnli.fit`; `head` computes the figures from the model's outputs.

    Batches are padded to their longest sequence; fused AdamW, linear schedule with warm-up, gradients clipped.
    """
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options["precision"] == "bf16")
    data, batch_size = encoded_texts(train, "train"), options["batch_size"]
    optimizer, schedule = fused_adamw(model, options["lr"], options["epochs"] * -(-len(data) // batch_size))
    model.train()
    wall, cpu = time.perf_counter(), time.process_time()
    for epoch in range(options["epochs"]):
        torch.manual_seed(options["seed"] * 1_000_003 + epoch)  # as in `fit`, for the same order
        for index in torch.randperm(len(data)).split(batch_size):
            inputs, batch = _padded(data, index)
            with autocast:
                loss = model(**inputs, **_labels(head.task, inputs, batch)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    model.eval()
    data, outputs = encoded_texts(test, "test"), []
    with torch.inference_mode():
        for index in torch.arange(len(data)).split(64):
            inputs, batch = _padded(data, index)
            with autocast:
                outputs.append(_outputs(head.task, model(**inputs), inputs, batch))
    return Outcome(wall, cpu, head.metrics(torch.cat(outputs).float(), test))


def _padded(data: EncodedTexts, index: Tensor) -> tuple[dict[str, Tensor], PackedBatch]:
    """The examples as transformers' arguments, padded to their longest, and packed."""
    batch = data.batch(index)
    return inputs_of(*data.to_padded(batch.max_seqlen, index)), batch


def _labels(task: str, inputs: dict[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
    """The label arguments of transformers' model."""
    labels = batch.labels
    assert labels is not None
    if task == "qa":
        return {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    if task == "tagging":
        padded = torch.full_like(inputs["input_ids"], -100)
        padded[inputs["attention_mask"].bool()] = labels
        labels = padded
    return {"labels": labels}


def _outputs(task: str, result: Any, inputs: dict[str, Tensor], batch: PackedBatch) -> Tensor:
    """The outputs [R, num_labels] that bertnli's head for the task gives."""
    mask = inputs["attention_mask"].bool()
    if task == "qa":
        return torch.stack([result.start_logits, result.end_logits], -1)[mask]
    logits: Tensor = result.logits
    return logits[mask][batch.labels != -100] if task == "tagging" else logits
