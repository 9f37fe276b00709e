"""D2L's devices, accuracy, and training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bertnli.d2l.plotting import Accumulator, Animator, Timer
from bertnli.data.progress import Progress, in_notebook
from bertnli.runtime.memory import flush_denormals


def try_gpu(i: int = 0) -> torch.device:
    """GPU number i, or the CPU where there is none."""
    return torch.device(f"cuda:{i}" if torch.cuda.device_count() > i else "cpu")


def try_all_gpus() -> list[torch.device]:
    """All GPUs, or the CPU alone."""
    return [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] or [torch.device("cpu")]


def accuracy(y_hat: Tensor, y: Tensor) -> float:
    """The number of correct predictions: scores [B, C] or classes [B], labels [B]."""
    if y_hat.dim() > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(dim=1)
    return float((y_hat.to(y.dtype) == y).sum())


def _to(x: Any, device: torch.device | str) -> Any:
    return [t.to(device) for t in x] if isinstance(x, (list, tuple)) else x.to(device)


def evaluate_accuracy_gpu(
    net: Callable[[Any], Tensor], data_iter: Iterable[Any], device: torch.device | None = None
) -> float:
    """Accuracy of `net`, a module or a function, over `data_iter`.

    device: by default the module's, or the CPU for a function. A module is left in eval mode. Raises ValueError if
    `data_iter` is empty.
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
        raise ValueError("data_iter has no examples")
    return metric[0] / metric[1]


def train_batch_ch13(
    net: nn.Module,
    X: Any,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    devices: Sequence[torch.device],
) -> tuple[Tensor, float]:
    """One step on the summed loss: the loss summed over the batch, and the number of correct predictions."""
    X, y = _to(X, devices[0]), y.to(devices[0])
    net.train()
    trainer.zero_grad()
    pred = net(X)
    summed = loss(pred, y).sum()
    summed.backward()
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
    animator: Animator | None = None,
) -> None:
    """D2L's training loop: draws curves while it runs, then prints loss, accuracies and speed.

    loss       gives one value an example (`reduction='none'`)
    devices    default: all GPUs, or the CPU; several use DataParallel
    animator   where the curves go, for who wants to keep them (default: a new one)

    Outside a notebook it shows progress on standard error. Raises ValueError if `train_iter` has no batches. Two things
    make it fast without changing the result: a plain `torch.optim.Adam` that has not stepped yet uses its fused
    implementation, and denormal numbers (moments of unseen words decay into them) count as zero.
    """
    devices = list(devices) if devices else try_all_gpus()
    timer, num_batches = Timer(), len(train_iter)
    if not num_batches:
        raise ValueError("train_iter has no batches")
    animator = animator or Animator(
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

    def figures() -> str:
        return f"loss {metric[0] / metric[2]:.3f}, train acc {metric[1] / metric[3]:.3f}"

    with flush_denormals():
        for epoch in range(num_epochs):
            metric = Accumulator(4)  # summed loss, correct predictions, examples, predictions
            shown = Progress(num_batches, f"epoch {epoch + 1}/{num_epochs}", "batches", not in_notebook())
            with shown:
                for i, (features, labels) in enumerate(train_iter):
                    timer.start()
                    summed, num_correct = train_batch_ch13(net, features, labels, loss, trainer, devices)
                    metric.add(summed, num_correct, labels.shape[0], labels.numel())
                    timer.stop()
                    shown.update(1, figures)
                    if (i + 1) % max(1, num_batches // 5) == 0 or i == num_batches - 1:
                        animator.add(
                            epoch + (i + 1) / num_batches, (metric[0] / metric[2], metric[1] / metric[3], None)
                        )
            test_acc = evaluate_accuracy_gpu(net, test_iter)
            animator.add(epoch + 1, (None, None, test_acc))
    if num_epochs:
        print(f"{figures()}, test acc {test_acc:.3f}")
        print(f"{metric[2] * num_epochs / timer.sum():.1f} examples/sec on {devices!s}")
