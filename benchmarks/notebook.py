"""The training loop of D2L's chapter around D2L's classes and around bertnli's, for bench_training.py.

D2L                  the chapter's padded modules and dataset
changed import       `from bertnli import d2l`; the notebook keeps its own dataset and classifier
definitions deleted  the dataset and the classifier are bertnli's too
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from common import MODELS, padded_d2l, snli
from torch import Tensor, nn
from training_problem import MAX_LEN, encoded, tokenizer

from bertnli import d2l
from bertnli.bench.race import Contestant


class PaddedDataset(torch.utils.data.Dataset[Any]):
    """The chapter's dataset: padded examples, taken one by one."""

    def __init__(self) -> None:
        self.tensors = encoded().to_padded(MAX_LEN)

    def __getitem__(self, i: int) -> Any:
        labels = encoded().labels
        assert labels is not None
        return tuple(t[i] for t in self.tensors), labels[i]

    def __len__(self) -> int:
        return len(encoded())


class ChapterClassifier(nn.Module):
    """The chapter's classifier on a `d2l.BERTModel`."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.encoder, self.hidden = bert.encoder, bert.hidden
        self.output = nn.Linear(bert.config.num_hiddens, 3)

    def forward(self, inputs: Any) -> Tensor:
        vectors: Tensor = self.encoder(*inputs[:2], inputs[2].flatten())
        logits: Tensor = self.output(self.hidden(vectors[:, 0, :]))
        return logits


def step_of(model: nn.Module, data: Any, batch: int, fused: bool | None) -> Callable[[], None]:
    """The chapter's loop, a batch a call."""

    def batches() -> Iterator[Any]:
        while True:
            yield from torch.utils.data.DataLoader(data, batch, drop_last=True)

    turn = batches()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=fused)  # `train_ch13` switches `fused` on
    loss = nn.CrossEntropyLoss(reduction="none")

    def step() -> None:
        x, y = next(turn)
        d2l.train_batch_ch13(model, x, y, loss, optimizer, [torch.device("cpu")])

    return step


def contestants(batch: int) -> list[Contestant]:
    """The three forms of the notebook, with equal weights; bertnli's is the last form."""
    sizes = MODELS["small"]
    widths = [sizes[name] for name in ("num_hiddens", "ffn_num_hiddens", "num_heads", "num_layers", "dropout")]
    berts = [d2l.BERTModel(int(encoded().ids.max()) + 1, *widths, max_len=sizes["max_len"]) for _ in range(2)]
    torch.manual_seed(0)
    classifier = d2l.BERTClassifier(berts[0])
    padded, chapter = padded_d2l(classifier), ChapterClassifier(berts[1])
    chapter.load_state_dict(padded.state_dict())
    inputs = [t[:8] for t in encoded().to_padded(MAX_LEN)]
    texts = snli("train")
    deleted = d2l.SNLIBERTDataset((texts.first, texts.second or (), texts.labels or ()), MAX_LEN, tokenizer())
    forms: dict[str, tuple[nn.Module, Any, bool | None]] = {
        "bertnli": (classifier, deleted, True),
        "D2L, changed import": (chapter, PaddedDataset(), True),
        "D2L": (padded, PaddedDataset(), None),
    }

    def logits(model: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.eval()(inputs)
        return found

    return [
        Contestant(name, "fp32", step_of(model, data, batch, fused), partial(logits, model))
        for name, (model, data, fused) in forms.items()
    ]
