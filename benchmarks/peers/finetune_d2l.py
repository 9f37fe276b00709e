"""D2L's chapter as written: its reader, its pool of four processes, padding to 128, its modules, Adam, batches of 512.

bert.small starts from random weights instead of D2L's checkpoint, with a vocabulary of the training pairs' words.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

NAME = "D2L's chapter"
PRECISIONS = ("fp32",)
REQUIRES = ()
MODELS = ("small",)
BATCH, LR = 512, 1e-4


def vocabulary_of(texts: list[str]) -> Any:
    from bertnli import WordTokenizer

    return WordTokenizer.from_texts(texts, 2).vocab


def _encode(vocab: Any, pair: tuple[str, str]) -> Any:
    from helpers import d2l_oracle

    return d2l_oracle.encode_pair(vocab, *pair, 128)


def build() -> Callable[..., float]:
    from pathlib import Path

    import torch
    from helpers import d2l_oracle
    from helpers.oracles import PlainD2LClassifier
    from torch.utils.data import DataLoader, TensorDataset

    def run(task: Any, stages: Any) -> float:
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)
        texts = {
            split: [
                side[: task.limit(split)] for side in d2l_oracle.read_snli(Path(task.data, f"snli_1.0_{split}.txt"))
            ]
            for split in ("train", "test")
        }
        vocab = vocabulary_of([*texts["train"][0], *texts["train"][1]])

        def loader(split: str) -> Any:
            premises, hypotheses, labels = texts[split]
            with multiprocessing.get_context("fork").Pool(4) as pool:
                rows = pool.map(partial(_encode, vocab), list(zip(premises, hypotheses, strict=True)))
            columns = [torch.tensor(list(column)) for column in zip(*rows, strict=True)]
            data = TensorDataset(*columns, torch.tensor(labels))
            return DataLoader(data, BATCH, shuffle=split == "train", num_workers=4, multiprocessing_context="fork")

        train, test = loader("train"), loader("test")
        stages.end("encode")
        net = PlainD2LClassifier(len(vocab), 256, 512, 4, 2, 512)
        trainer, loss = torch.optim.Adam(net.parameters(), lr=LR), torch.nn.CrossEntropyLoss(reduction="none")
        net.train()
        for *inputs, labels in train:
            trainer.zero_grad()
            loss(net(tuple(inputs)), labels).sum().backward()
            trainer.step()
        stages.end("train")
        net.eval()
        with torch.no_grad():
            counts = [int((net(tuple(inputs)).argmax(1) == labels).sum()) for *inputs, labels in test]
        return sum(counts) / len(texts["test"][0])

    return run
