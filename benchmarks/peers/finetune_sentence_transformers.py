"""sentence-transformers' CrossEncoderTrainer, with the settings of the other contestants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NAME = "CrossEncoderTrainer"
PRECISIONS = ("fp32", "bf16")
REQUIRES = ("sentence-transformers", "datasets", "accelerate")
BUILT_FOR = {"bf16": ("avx512_bf16",)}
MODELS = ("small", "minilm")


def build() -> Callable[..., float]:
    import tempfile

    import datasets
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss

    def run(task: Any, stages: Any) -> float:
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)
        model = CrossEncoder(task.folder, num_labels=3, max_length=task.max_len, device="cpu")
        columns = zip(("premise", "hypothesis", "label"), task.read("train"), strict=True)
        train = datasets.Dataset.from_dict(dict(columns))
        *texts, labels = task.read("test")
        stages.end("encode")
        with tempfile.TemporaryDirectory() as folder:
            arguments = CrossEncoderTrainingArguments(
                folder, num_train_epochs=1, per_device_train_batch_size=task.batch_size, learning_rate=task.lr,
                warmup_ratio=0.06, weight_decay=0.01, seed=task.seed, bf16=task.precision == "bf16", use_cpu=True,
                save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
            )  # fmt: skip
            CrossEncoderTrainer(model, arguments, train, loss=CrossEntropyLoss(model)).train()
        stages.end("train")
        with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16"):
            found = model.predict(list(zip(*texts, strict=True)), batch_size=128, show_progress_bar=False)
        return float((found.argmax(1) == torch.tensor(labels).numpy()).mean())

    return run
