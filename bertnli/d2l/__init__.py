"""The book's names: change the chapter's import to `from bertnli import d2l` and the rest runs unchanged, fast.

Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT" and the earlier chapters that it uses.
The functions do what the book's do, in notebooks and in scripts, with or without a GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertnli import checkpoint
from bertnli.d2l.dataset import SNLIBERTDataset
from bertnli.data import download as hub
from bertnli.data.download import DATA_HUB, DATA_URL
from bertnli.data.snli import read_snli
from bertnli.encoder.bert import BERTEncoder, BERTModel
from bertnli.tasks.classification import BERTClassifier
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.training.loop import flushed_denormals

__all__ = [
    "DATA_HUB",
    "DATA_URL",
    "Accumulator",
    "Animator",
    "BERTClassifier",
    "BERTEncoder",
    "BERTModel",
    "SNLIBERTDataset",
    "Timer",
    "Vocab",
    "accuracy",
    "download",
    "download_extract",
    "evaluate_accuracy_gpu",
    "get_dataloader_workers",
    "get_tokens_and_segments",
    "load_pretrained_model",
    "read_snli",
    "tokenize",
    "train_batch_ch13",
    "train_ch13",
    "try_all_gpus",
    "try_gpu",
]

_FOLDER = os.path.join("..", "data")  # where the book keeps its downloads


def download(name: str, folder: str = _FOLDER, sha1_hash: str | None = None) -> str:
    """`hub.download` into the book's `../data`."""
    return hub.download(name, folder, sha1_hash)


def download_extract(name: str, folder: str | None = None) -> str:
    """`hub.download_extract` into the book's `../data`."""
    return hub.download_extract(name, folder, into=_FOLDER)


def load_pretrained_model(*args: Any, **kwargs: Any) -> tuple[BERTModel, Vocab | Tokenizer]:
    """`bertnli.load_pretrained_model` with downloads in the book's `../data`."""
    return checkpoint.load_pretrained_model(*args, **{"folder": _FOLDER, **kwargs})


def tokenize(lines: Iterable[str], token: str = "word") -> list[list[str]]:
    """Split lines into words (at white space) or characters."""
    if token == "word":
        return [line.split() for line in lines]
    if token == "char":
        return [list(line) for line in lines]
    raise ValueError(f'token must be "word" or "char"; found {token!r}')


def get_tokens_and_segments(tokens_a: list[str], tokens_b: list[str] | None = None) -> tuple[list[str], list[int]]:
    """`<cls> a <sep> b <sep>` and its segment ids, 0 for the first text and 1 for the second."""
    tokens = ["<cls>", *tokens_a, "<sep>"]
    segments = [0] * len(tokens)
    if tokens_b is not None:
        tokens += [*tokens_b, "<sep>"]
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments


def get_dataloader_workers() -> int:
    """0: a batch is one gather in C++, so worker processes only cost."""
    return 0


def try_gpu(i: int = 0) -> torch.device:
    """GPU number i, or the CPU where there is none."""
    return torch.device(f"cuda:{i}" if torch.cuda.device_count() > i else "cpu")


def try_all_gpus() -> list[torch.device]:
    """All GPUs, or the CPU alone."""
    return [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] or [torch.device("cpu")]


class Timer:
    """Several stopwatch times, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        self.tik = time.time()

    def stop(self) -> float:
        self.times.append(time.time() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        return sum(self.times) / len(self.times)

    def sum(self) -> float:
        return sum(self.times)

    def cumsum(self) -> list[float]:
        return [float(t) for t in np.cumsum(self.times)]


class Accumulator:
    """Running sums of n quantities."""

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: float | Tensor) -> None:
        self.data = [a + float(b) for a, b in zip(self.data, args, strict=True)]

    def reset(self) -> None:
        self.data = [0.0] * len(self.data)

    def __getitem__(self, i: int) -> float:
        return self.data[i]


class Animator:
    """Curves that grow: drawn live in a notebook, only collected in a script (`fig.savefig(...)` keeps them)."""

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | None = None,
        xlim: Sequence[float] | None = None,
        ylim: Sequence[float] | None = None,
        xscale: str = "linear",
        yscale: str = "linear",
        fmts: Sequence[str] = ("-", "m--", "g-.", "r:"),
        nrows: int = 1,
        ncols: int = 1,
        figsize: tuple[float, float] = (3.5, 2.5),
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # No pyplot: its global state and window system are not ours to choose.
        self.fig = Figure(figsize=figsize)
        FigureCanvasAgg(self.fig)
        axes = self.fig.subplots(nrows, ncols)
        self.axes: list[Any] = list(axes.flat) if nrows * ncols > 1 else [axes]
        self.legend, self.fmts = legend, fmts
        self._style = dict(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale, xlim=xlim, ylim=ylim)
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        self._notebook = _in_notebook()
        self._display: Any = None

    def add(self, x: Any, y: Any) -> None:
        """Append a point to each curve; a None in `y` leaves its curve as it is."""
        ys = list(y) if hasattr(y, "__len__") else [y]
        xs = list(x) if hasattr(x, "__len__") else [x] * len(ys)
        while len(self.X) < len(ys):
            self.X.append([])
            self.Y.append([])
        for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
            if a is not None and b is not None:
                self.X[i].append(float(a))
                self.Y[i].append(float(b))
        self.draw()
        if self._notebook:
            from IPython import display

            if self._display is None:
                self._display = display.display(self.fig, display_id=True)
            else:
                self._display.update(self.fig)

    def draw(self) -> None:
        """Bring the figure up to date."""
        axis = self.axes[0]
        axis.cla()
        for i, (x, y) in enumerate(zip(self.X, self.Y, strict=True)):
            axis.plot(x, y, self.fmts[i % len(self.fmts)])
        axis.set(**{name: value for name, value in self._style.items() if value is not None})
        if self.legend:
            axis.legend(self.legend[: len(self.X)])
        axis.grid(True)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def accuracy(y_hat: Tensor, y: Tensor) -> float:
    """The number of right predictions: scores [B, C] or classes [B], labels [B]."""
    if y_hat.dim() > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(dim=1)
    return float((y_hat.to(y.dtype) == y).sum())


def _to(x: Any, device: torch.device | str) -> Any:
    return [t.to(device) for t in x] if isinstance(x, (list, tuple)) else x.to(device)


def evaluate_accuracy_gpu(
    net: Callable[[Any], Tensor], data_iter: Iterable[Any], device: torch.device | None = None
) -> float:
    """Accuracy of `net`, a module or a function, over `data_iter`.

    device: None means where the module is (a function: the CPU). A module is left in eval mode. Raises ValueError where
    there is no data.
    """
    if isinstance(net, nn.Module):
        net.eval()
        if device is None:
            device = next(net.parameters()).device
    device = device or torch.device("cpu")
    metric = Accumulator(2)
    with torch.no_grad():
        for X, y in data_iter:
            y = y.to(device)
            metric.add(accuracy(net(_to(X, device)), y), y.numel())
    if not metric[1]:
        raise ValueError("data_iter gave no examples: there is no accuracy to tell")
    return metric[0] / metric[1]


def train_batch_ch13(
    net: nn.Module,
    X: Any,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    devices: Sequence[torch.device],
) -> tuple[Tensor, float]:
    """One step on the summed loss: the loss summed over the batch, and the number of right predictions."""
    X, y = _to(X, devices[0]), y.to(devices[0])
    net.train()
    trainer.zero_grad()
    pred = net(X)
    summed = loss(pred, y).sum()
    summed.backward()  # type: ignore[no-untyped-call]
    trainer.step()
    return summed.detach(), accuracy(pred.detach(), y)


def train_ch13(
    net: nn.Module,
    train_iter: Any,
    test_iter: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    num_epochs: int,
    devices: Sequence[torch.device] | None = None,
) -> Animator:
    """The book's training loop: curves while it runs, then loss, accuracies and speed.

    `loss` gives one value a pair (`reduction='none'`). The returned Animator holds the curves.

    Two things make it fast without changing the result: a plain `torch.optim.Adam` that has not stepped yet is switched
    to its fused implementation, and denormal numbers, into which Adam's moments of unseen words decay, count as zero.
    """
    devices = list(devices) if devices else try_all_gpus()
    timer, num_batches = Timer(), len(train_iter)
    if not num_batches:
        raise ValueError("train_iter has no batches")
    animator = Animator(
        xlabel="epoch",
        xlim=[1, num_epochs] if num_epochs > 1 else None,
        ylim=[0, 1],
        legend=["train loss", "train acc", "test acc"],
    )
    net = net.to(devices[0])
    if len(devices) > 1:
        net = nn.DataParallel(net, device_ids=devices)
    if type(trainer) is torch.optim.Adam and not trainer.state:
        for group in trainer.param_groups:
            chosen = any(group.get(name) for name in ("foreach", "amsgrad", "differentiable"))
            if group.get("fused") is None and not chosen:
                group["fused"] = True
    metric, test_acc = Accumulator(4), 0.0
    with flushed_denormals():
        for epoch in range(num_epochs):
            # Sum of the loss, right predictions, pairs, predictions
            metric = Accumulator(4)
            for i, (features, labels) in enumerate(train_iter):
                timer.start()
                summed, right = train_batch_ch13(net, features, labels, loss, trainer, devices)
                metric.add(summed, right, labels.shape[0], labels.numel())
                timer.stop()
                if (i + 1) % max(1, num_batches // 5) == 0 or i == num_batches - 1:
                    animator.add(epoch + (i + 1) / num_batches, (metric[0] / metric[2], metric[1] / metric[3], None))
            test_acc = evaluate_accuracy_gpu(net, test_iter)
            animator.add(epoch + 1, (None, None, test_acc))
    if num_epochs:
        print(f"loss {metric[0] / metric[2]:.3f}, train acc {metric[1] / metric[3]:.3f}, test acc {test_acc:.3f}")
        print(f"{metric[2] * num_epochs / timer.sum():.1f} examples/sec on {devices!s}")
    return animator
