"""The same chapter with `from bertnli import d2l`, its own dataset and classifier deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peers.finetune_d2l import BATCH, LR, vocabulary_of

NAME = "D2L's chapter on bertnli.d2l"
PRECISIONS = ("fp32",)
REQUIRES = ()
MODELS = ("small",)


def build() -> Callable[..., float]:
    import torch

    from bertnli import d2l

    def run(task: Any, stages: Any) -> float:
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)

        def read(split: str) -> Any:
            return tuple(side[: task.limit(split)] for side in d2l.read_snli(task.data, split == "train"))

        train, test = read("train"), read("test")
        vocab = vocabulary_of([*train[0], *train[1]])
        train_set, test_set = d2l.SNLIBERTDataset(train, 128, vocab), d2l.SNLIBERTDataset(test, 128, vocab)
        workers = d2l.get_dataloader_workers()
        train_iter = torch.utils.data.DataLoader(train_set, BATCH, shuffle=True, num_workers=workers)
        test_iter = torch.utils.data.DataLoader(test_set, BATCH, num_workers=workers)
        stages.end("encode")
        net = d2l.BERTClassifier(d2l.BERTModel(len(vocab), 256, 512, 4, 2, 0.1, max_len=512))
        trainer, loss = torch.optim.Adam(net.parameters(), lr=LR), torch.nn.CrossEntropyLoss(reduction="none")
        for X, y in train_iter:
            d2l.train_batch_ch13(net, X, y, loss, trainer, d2l.try_all_gpus())
        stages.end("train")
        return float(d2l.evaluate_accuracy_gpu(net, test_iter))

    return run
