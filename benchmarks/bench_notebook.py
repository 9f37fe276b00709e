"""The training loop of D2L's chapter around D2L's classes and around bertnli's, in pairs a second.

python benchmarks/bench_notebook.py [--steps 4] [--batch 512]

D2L                  the chapter's padded modules and dataset
changed import       `from bertnli import d2l`; the notebook keeps its own dataset and classifier
definitions deleted  the dataset and the classifier are bertnli's too
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import append_json, machine, padded_d2l
from torch import Tensor, nn
from training_problem import MAX_LEN, SHAPES, encoded, texts, tokenizer

from bertnli import d2l
from bertnli.runtime.memory import flush_denormals


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


def pairs_per_second(model: nn.Module, data: Any, batch: int, steps: int, fused: bool | None) -> float:
    """The chapter's loop over `steps` batches, after one that is not counted."""
    loader = torch.utils.data.DataLoader(data, batch, sampler=range(batch * (steps + 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)  # `train_ch13` switches `fused` on
    loss = nn.CrossEntropyLoss(reduction="none")
    start = 0.0
    for i, (x, y) in enumerate(loader):
        if i == 1:
            start = time.perf_counter()
        d2l.train_batch_ch13(model, x, y, loss, optimizer, [torch.device("cpu")])
    return batch * steps / (time.perf_counter() - start)


def compare(batch: int, steps: int) -> dict[str, float]:
    """Pairs a second of the three forms of the notebook, which have equal weights."""
    sizes = SHAPES["d2l"]
    widths = [sizes[name] for name in ("num_hiddens", "ffn_num_hiddens", "num_heads", "num_layers", "dropout")]
    berts = [d2l.BERTModel(int(encoded().ids.max()) + 1, *widths, max_len=sizes["max_len"]) for _ in range(2)]
    torch.manual_seed(0)
    classifier = d2l.BERTClassifier(berts[0])
    padded, chapter = padded_d2l(classifier), ChapterClassifier(berts[1])
    chapter.load_state_dict(padded.state_dict())
    inputs = [t[:8] for t in encoded().to_padded(MAX_LEN)]
    expected = padded.eval()(inputs)
    for model in (classifier, chapter):
        torch.testing.assert_close(model.eval()(inputs), expected, rtol=1e-3, atol=1e-4)
    table = {"D2L": pairs_per_second(padded, PaddedDataset(), batch, steps, None)}
    with flush_denormals():  # as in `train_ch13`
        table["changed import"] = pairs_per_second(chapter, PaddedDataset(), batch, steps, True)
        data = d2l.SNLIBERTDataset((texts().first, texts().second or (), texts().labels or ()), MAX_LEN, tokenizer())
        table["definitions deleted"] = pairs_per_second(classifier, data, batch, steps, True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=4, help="timed batches (default: 4)")
    add("--batch", type=int, default=512, help="pairs in a batch (default: 512)")
    add("--json", type=Path, help="file to append the figures to, one JSON object a line")
    args = parser.parse_args()
    row = {"machine": machine(), "work": "notebook", "batch": args.batch, **compare(args.batch, args.steps)}
    print(json.dumps(row))
    append_json(args.json, [row])


if __name__ == "__main__":
    main()
