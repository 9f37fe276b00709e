"""Fine-tuning: one loop over packed batches."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from bertnli.data.files import atomic_path
from bertnli.encoder.bert import BERTEncoder
from bertnli.inference.predict import check_labels, evaluate, in_batches, tokens_per_sequence
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket, use_cuda_graphs
from bertnli.runtime.distributed import all_reduce_sum, broadcast_from_rank_0, rank_and_size, shard
from bertnli.runtime.precision import autocast, uses_bf16
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch, ragged_index, split_batches
from bertnli.text.encoded import EncodedTexts, HasEncoded, encoded_texts
from bertnli.training.adam import Adam
from bertnli.training.options import TrainingOptions


@dataclass
class Epoch:
    """Figures of one pass over the training pairs; losses are means over the head's units, times in seconds.

    `train_accuracy` is the share of units that were right while training, where the head can say; `dev_score` is the
    figure that the head names `metric`.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    dev_loss: float | None
    dev_score: float | None
    metric: str
    seconds: float
    pairs_per_second: float


@dataclass
class History:
    """What a training run did: an `Epoch` for each pass, each step's loss, and the best epoch's number."""

    epochs: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best_epoch: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fit(
    model: Head,
    train: EncodedTexts | HasEncoded,
    dev: EncodedTexts | HasEncoded | None = None,
    options: TrainingOptions | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    state_file: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    **changes: Any,
) -> History:
    """Fine-tune `model`, a head of any task, on labelled examples, in place.

    train, dev      what the head's `encode` gives, with labels; `dev` is evaluated after each epoch
    options         how to train; see TrainingOptions. Single options can be given by keyword: `fit(..., lr=3e-5)`
    progress        a bar with loss, accuracy, pairs/s and time left, where the output is a terminal
    state_file      after each epoch the run's state is written here; a file from an interrupted run of the same
                    arguments and data is continued. Remove it once the result is safe
    on_epoch        called with each epoch's figures

    Called by every process of a torch.distributed group, the processes share each step's examples (see
    bertnli/distributed.py): the step is that of one process but for the draws of dropout. All end with equal weights;
    the first writes `state_file` and shows the bar.

    The model ends in eval mode; its parameters' `requires_grad` and the generators of the CPU and of the model's device
    are left as they were (those of further GPUs are seeded).

    Raises ValueError for missing or foreign labels, for too long rows, for unknown options, for a state file of another
    run, and where the loss is no finite number any more (on the CPU at once, elsewhere after the epoch): then the
    model's weights are of no use.
    """
    train = encoded_texts(train, "train")
    check_labels(train, "train", model)
    if dev is not None:
        check_labels(encoded_texts(dev, "dev"), "dev", model)
    options = (options or TrainingOptions()).changed(changes)
    epochs, accumulate, lr, max_grad_norm = (
        options.epochs,
        options.accumulate,
        options.lr,
        options.max_grad_norm or None,
    )
    batch_size, batch_tokens, precision, seed = (
        options.examples_per_batch, options.batch_tokens, options.precision, options.seed
    )  # fmt: skip
    device = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(device)

    rank, ranks = rank_and_size()
    asked = options.cuda_graphs
    cuda_graphs = use_cuda_graphs(asked, model, device, ranks, accumulate)
    lengths = train.lengths

    def steps_of(epoch: int) -> list[Tensor]:
        """The rows of each of an epoch's steps. Seeded anew, so that a continued run draws what a whole one would."""
        torch.manual_seed(seed * 1_000_003 + epoch)
        batches = split_batches(torch.randperm(len(train)), lengths, batch_size, batch_tokens)
        return [torch.cat(batches[i : i + accumulate]) for i in range(0, len(batches), accumulate)]

    with _left_as_found(model, device):
        depths = _frozen_depths(options.freeze, len(model.encoder.blks), epochs)
        trainable = [p for p in model.parameters() if p.requires_grad]
        _freeze(model.encoder, depths[-1])  # what is ever trained is the optimizer's
        opt = _optimizer(model, options.optimizer, lr, options.weight_decay, max_grad_norm, cuda_graphs)
        steps = sum(len(steps_of(epoch)) for epoch in range(epochs))  # by tokens, an epoch's number is its order's
        rate = _linear(steps, options.warmup)
        history, best_state = History(), None
        arguments = dict(
            **options.key(), model=asdict(model.config), dropout=model.dropout.p, settings=model.settings,
            train=_fingerprint(train),
            dev=None if dev is None else _fingerprint(encoded_texts(dev, "dev")),
        )  # fmt: skip
        state = None if state_file is None else broadcast_from_rank_0(lambda: _read_state(Path(state_file), arguments))
        if state is not None:
            model.load_state_dict(state["model"])
            _load_optimizer(opt, state["optimizer"])
            history = History([Epoch(**e) for e in state["epochs"]], state["losses"], state["best_epoch"])
            best_state = state["best"]
        counts = type(model).num_correct is not Head.num_correct  # whether units can be right or wrong
        features: _Features | None = None
        # Who listens to the head, or has one with a `forward` of its own, is to find it called.
        bare = type(model).forward is Head.forward and "forward" not in vars(model)
        fit_in_memory = bare and not model._forward_hooks and not model._forward_pre_hooks
        worker: Any = None
        captured: CapturedSteps | None = None
        built_in: Any = None
        low = uses_bf16(device, precision)
        copies = low and isinstance(opt, Adam)

        def gradients(batch: PackedBatch, vectors: Tensor | None, units: Tensor | int) -> tuple[Tensor, Tensor]:
            """Add those of a batch's part in the mean loss over `units`; the sum of its losses, how many are right."""
            with autocast(device, low and not copies):
                outputs = worker(batch, vectors)
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            loss = model.loss(outputs, batch)
            # DistributedDataParallel divides by the number of ranks.
            (loss * ranks / units).backward()  # type: ignore[no-untyped-call]
            right = model.num_correct(outputs.detach(), batch)
            return loss.detach(), torch.zeros((), dtype=torch.int64, device=device) if right is None else right

        def update() -> None:
            if max_grad_norm is not None and not isinstance(opt, Adam):
                nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), max_grad_norm)
            opt.step()
            opt.zero_grad()

        def whole(batch: PackedBatch, units: Tensor) -> tuple[Tensor, Tensor]:
            opt.zero_grad()  # a capture that failed may have left some
            found = gradients(batch, None, units)
            update()
            return found

        def step(rows: Tensor) -> tuple[Tensor, int, Tensor]:
            """One optimizer step: the sum of the loss over this process's units, how many units there are in all
            processes, and how many of this one's were right. Nothing waits for the device."""
            mine = shard(rows, lengths, rank, ranks)
            parts = split_batches(mine, lengths, batch_size, batch_tokens)
            batches = [train.batch(part) for part in parts]
            units = max(1, sum(map(model.num_targets, batches if ranks == 1 else [train.batch(rows)])))
            if captured is not None and features is None:
                assert model.ignored is not None
                loss_sum, right = captured(pad_to_bucket(batches[0], model.ignored, model.config.max_len), units)
                return loss_sum, units, right
            losses, hits = [], []
            for i, packed in enumerate(batches):
                batch = packed.to(device, non_blocking=True)
                if isinstance(opt, Adam):
                    opt.catch_up(model.encoder.token_embedding.weight, batch.input_ids)
                quiet = isinstance(worker, DistributedDataParallel) and i + 1 < len(batches)
                with worker.no_sync() if quiet else nullcontext():
                    loss, right = gradients(batch, None if features is None else features.of(parts[i]), units)
                if isinstance(opt, Adam) and len(batches) > 1:
                    opt.gather()
                losses.append(loss)
                hits.append(right)
            update()
            return sum(losses[1:], losses[0]), units, sum(hits[1:], hits[0])

        def check_finite(sums: list[float]) -> None:
            if not all(map(math.isfinite, sums)):
                known = state_file is not None and Path(state_file).exists()
                raise ValueError(
                    f"the loss is no finite number in epoch {epoch + 1}: training has diverged; try a learning rate "
                    f"below lr={lr}{f', and remove {state_file} before' if known else ''}"
                )

        for epoch in range(len(history.epochs), epochs):
            of_steps = steps_of(epoch)
            if rank:  # equal order, other dropout
                torch.manual_seed(seed * 1_000_003 + epoch + (rank << 40))
            model.train()
            for p in trainable:
                p.requires_grad_()
            for module in _freeze(model.encoder, depths[epoch]):
                module.eval()
            if worker is None or depths[epoch] != depths[epoch - 1]:
                worker = None  # its hooks go with it
                worker = _worker(model)
                captured = None
            if cuda_graphs and (captured is None or built_in != _built_in(model)):
                captured, built_in = CapturedSteps(whole, device), _built_in(model)
            if depths[epoch] != len(model.encoder.blks):
                features = None
            elif features is None and fit_in_memory:
                features = _features(model, train, precision, asked)
                fit_in_memory = features is not None
            losses: list[Tensor] = []  # of each step
            done: list[int] = []
            hits: list[Tensor] = []
            begun = shown = time.perf_counter()
            bar = tqdm(
                total=len(train),
                desc=f"epoch {epoch + 1}/{epochs}",
                unit="pairs",
                disable=None if progress and not rank else True,
                leave=False,
            )
            with bar, lazily(model, opt, low):
                for rows in of_steps:
                    for group in opt.param_groups:
                        factor = lr * rate(len(history.losses) + len(losses))
                        group["lr"] = group["lr"].fill_(factor) if cuda_graphs else factor
                    loss, units, right = step(rows)
                    losses.append(loss)
                    if ranks == 1 and loss.device.type == "cpu":
                        check_finite([float(loss)])
                    done.append(units)
                    hits.append(right)
                    # Reading a figure waits for the device; this process's own are shown.
                    if not bar.disable and time.perf_counter() - shown > 0.2:
                        shown = time.perf_counter()
                        part = ranks / sum(done)
                        text = {"loss": f"{float(sum(losses)) * part:.3f}"}
                        text |= {"acc": f"{int(sum(hits)) * part:.3f}"} if counts else {}
                        bar.set_postfix(text, refresh=False)
                    bar.update(len(rows))
            sums, correct = all_reduce_sum(torch.stack(losses)).tolist(), int(all_reduce_sum(torch.stack(hits).sum()))
            check_finite(sums)
            history.losses += [loss / units for loss, units in zip(sums, done, strict=True)]
            seconds = time.perf_counter() - begun
            figures = {} if dev is None else evaluate(model, dev, precision=precision, cuda_graphs=asked)
            figures = broadcast_from_rank_0(lambda figures=figures: figures)  # type: ignore[misc]
            check_finite([figures.get("loss", 0.0)])
            history.epochs.append(
                Epoch(
                    epoch + 1,
                    train_loss=sum(sums) / sum(done),
                    train_accuracy=correct / sum(done) if counts else None,
                    dev_loss=figures.get("loss"),
                    dev_score=None if (score := figures.get(model.metric)) is None else float(score),
                    metric=model.metric,
                    seconds=seconds,
                    pairs_per_second=len(train) / seconds,
                )
            )
            if (best := _best_epoch(history)) != history.best_epoch:
                history.best_epoch = best
                if options.keep_best and epochs > 1:
                    best_state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            if state_file is not None and rank == 0:
                state = {"model": model.state_dict(), "optimizer": opt.state_dict()}
                with atomic_path(state_file) as path:
                    torch.save({"arguments": arguments, **state, **history.as_dict(), "best": best_state}, path)
            if on_epoch is not None:
                on_epoch(history.epochs[-1])
    if best_state is not None and history.best_epoch != len(history.epochs):
        model.load_state_dict(best_state)
    return history


@contextmanager
def _left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What training changes beside the weights is restored: generators, denormals, `requires_grad`, gradients; the mode
    becomes eval."""
    trainable = {p: p.requires_grad for p in model.parameters()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), flushed_denormals(), kept_memory():
        try:
            yield
        finally:
            model.eval()
            for p, flag in trainable.items():
                p.grad = None
                p.requires_grad_(flag)


def _frozen_depths(freeze: str | int | None, layers: int, epochs: int) -> list[int | None]:
    """How many of the lowest layers are frozen in each epoch, beside the embeddings; None where nothing is."""
    if freeze == "gradual":
        if epochs < 2:
            raise ValueError('freeze="gradual" needs at least 2 epochs')
        return [layers - layers * epoch // (epochs - 1) for epoch in range(epochs - 1)] + [None]
    if freeze is None:
        return [None] * epochs
    if freeze in ("embeddings", "encoder"):
        return [0 if freeze == "embeddings" else layers] * epochs
    if isinstance(freeze, int) and not isinstance(freeze, bool) and 0 <= freeze <= layers:
        return [freeze] * epochs
    raise ValueError(
        f'freeze must be None, "embeddings", "encoder", "gradual" or 0 to {layers} layers; found {freeze!r}'
    )


def _freeze(encoder: BERTEncoder, depth: int | None) -> list[nn.Module]:
    """Turn off `requires_grad` of the embeddings and the lowest layers; their modules are returned."""
    if depth is None:
        return []
    embeddings: list[nn.Module] = [m for name, m in encoder.named_children() if name != "blks"]
    frozen = [*embeddings, *list(encoder.blks)[:depth]]
    encoder.pos_embedding.requires_grad_(False)
    for module in frozen:
        module.requires_grad_(False)
    return frozen


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormal numbers count as zero inside: Adam's moments of unseen words decay into them, and they are slow."""
    already = float(torch.tensor(1e-39) * 1) == 0
    changed = not already and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if changed:
            torch.set_flush_denormal(False)


@contextmanager
def kept_memory() -> Iterator[None]:
    """What CPU tensors free inside is kept for what is allocated next, in huge pages; the system gets it back after.

    Activations and gradients of every step are otherwise given back to the system and fetched anew, page by page.
    """
    torch.ops.bertnli.keep_memory(True)
    try:
        yield
    finally:
        torch.ops.bertnli.keep_memory(False)
        torch.ops.bertnli.give_back_memory()


def _fingerprint(pairs: EncodedTexts) -> int:
    """Of the rows and their labels."""
    tensors = (pairs.ids, pairs.offsets, pairs.first_lens, pairs.labels)
    return fingerprint(tensor for tensor in tensors if tensor is not None)


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number that differs where any of the tensors does, nearly always."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up a state that another class with the same options may have left: one process has ours, several torch's."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def _read_state(path: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = state["arguments"]
    except Exception as error:
        raise ValueError(f"{path} is not the state of a training run; remove it to start anew") from error
    if before != arguments:
        changed = sorted(k for k in arguments if before.get(k) != arguments[k])
        raise ValueError(f"{path} is of a run with other {', '.join(changed)}; remove it to start anew")
    return dict(state)


class _Outputs(nn.Module):
    """A model's outputs of a batch, or of its features where the encoder is frozen."""

    def __init__(self, model: Head) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch, features: Tensor | None) -> Tensor:
        outputs: Tensor = self.model(batch) if features is None else self.model.head(features)
        return outputs


def _worker(model: Head) -> nn.Module:
    """What computes the outputs: of several processes one whose gradients are added up over all."""
    outputs = _Outputs(model)
    if rank_and_size()[1] == 1:
        return outputs
    return DistributedDataParallel(outputs, find_unused_parameters=not model.config.train_positions)


def _built_in(model: nn.Module) -> tuple[list[int], list[float]]:
    """What a graph repeats whatever the model has since become: where its parameters lie, and what is dropped."""
    dropouts = (m.p for m in model.modules() if isinstance(m, nn.Dropout))
    return [p.data_ptr() for p in model.parameters()], list(dropouts)


_MOST_FEATURES = 2 << 30  # bytes: one vector for each of SNLI's pairs, but not one for each token of a large corpus


class _Features:
    """What a wholly frozen encoder gives for all examples, computed once."""

    def __init__(self, rows: Tensor, counts: Tensor) -> None:
        self.rows, self.counts = rows, counts  # (R, H), and how many are of each example, (N) on the CPU
        self.begins = counts.cumsum(0) - counts

    def of(self, examples: Tensor) -> Tensor:
        """The rows of some examples, end to end."""
        index = ragged_index(self.begins[examples], self.counts[examples])
        index = index.pin_memory() if self.rows.device.type == "cuda" else index
        return self.rows[index.to(self.rows.device, non_blocking=True)]


def _features(model: Head, pairs: EncodedTexts, precision: str, cuda_graphs: bool | None) -> _Features | None:
    """Those of a frozen encoder; None where they would take too much memory, and each step computes its own."""
    counts = tokens_per_sequence(model, pairs)
    if int(counts.sum()) * model.config.num_hiddens * 4 > _MOST_FEATURES:
        return None
    options: dict[str, Any] = dict(by_sequence=model.pooled, cuda_graphs=cuda_graphs)
    return _Features(in_batches(model, model.features, pairs, precision=precision, **options), counts)


def _optimizer(
    model: Head, name: str, lr: float, weight_decay: float, max_grad_norm: float | None, capturable: bool = False
) -> torch.optim.Optimizer:
    """Ours in one process on the CPU, which clips by itself; torch's fused one elsewhere, with a tensor for learning
    rate where a CUDA graph is to hold its step."""
    kinds: dict[str, type[torch.optim.Adam]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    if name not in kinds:
        raise ValueError(f"optimizer must be one of {sorted(kinds)}; found {name!r}")
    norms = {p for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if parameter in norms or key.endswith(".bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    device = next(model.parameters()).device
    if capturable:
        found = kinds[name](groups, lr=torch.tensor(lr, device=device), fused=True, capturable=True)
        found._warned_capturable_if_run_uncaptured = True  # a size's first steps do
        return found
    if device.type == "cpu" and rank_and_size()[1] == 1:
        return Adam(groups, lr=lr, decoupled=name == "adamw", max_grad_norm=max_grad_norm)
    return kinds[name](groups, lr=lr, fused=True)


@contextmanager
def lazily(model: Head, optimizer: torch.optim.Optimizer, low: bool = False) -> Iterator[None]:
    """Steps of our optimizer: the token embedding's gradient is sparse inside, and its rows are up to date after.

    With `low`, the matrices of the encoder's layers are bfloat16 copies inside, so that all between the embeddings and
    the head is; statistics, vectors and tables are float32, and so are the matrices that the optimizer moves.
    """
    if not isinstance(optimizer, Adam):
        yield
        return
    embedding = model.encoder.token_embedding
    sparse = embedding.sparse
    swapped = [m for m in model.encoder.blks.modules() if low and isinstance(m, nn.Linear)]
    masters = [m.weight for m in swapped]
    try:
        embedding.sparse = True
        for m, master in zip(swapped, masters, strict=True):
            m.weight = nn.Parameter(master.detach().bfloat16(), master.requires_grad)
        optimizer.copies = {p: m.weight for m, p in zip(swapped, masters, strict=True) if p.requires_grad}
        yield
    finally:
        for m, master in zip(swapped, masters, strict=True):
            m.weight = master
        optimizer.copies = {}
        embedding.sparse = sparse
        optimizer.flush()


def _linear(steps: int, warmup: float) -> Callable[[int], float]:
    rise = int(steps * warmup)

    def factor(step: int) -> float:
        return (step + 1) / (rise + 1) if step < rise else max(0.0, (steps - step) / max(1, steps - rise))

    return factor


def _best_epoch(history: History) -> int | None:
    scores = [e.dev_score for e in history.epochs if e.dev_score is not None]
    scores = [-math.inf if math.isnan(s) else s for s in scores]
    return scores.index(max(scores)) + 1 if scores else None
