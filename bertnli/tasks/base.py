"""Head: an encoder under the output layer of a task. Each task subclasses it in a file of its own.

Shapes in the comments: B sequences of T tokens in all, R vectors that a head reads, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from bertnli.data.arguments import positive, strings
from bertnli.data.texts import TextData
from bertnli.encoder.bert import BERTEncoder, BERTModel, check_no_transform
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.plain import CountsReplacements, dropped
from bertnli.text.batch import PackedBatch
from bertnli.text.tokenizer import Tokenizer, Truncation
from bertnli.text.windows import POOLINGS, EncodedWindows, encode_windows

HEADS: dict[str, Callable[..., Head]] = {}  # by task, for checkpoints and the command line; subclasses enter themselves


class Head(CountsReplacements):
    """An encoder under the output layer of a task.

    bert             a BERTModel, or another head; its encoder and hidden layer are shared, not copied
    num_labels       width of the output layer
    label_names      one name a column; they are saved in the checkpoint
    dropout          before the output layer (default: the config's for the original variant, 0 for D2L's)

    A subclass must define the following; `fit`, `evaluate`, `predict`, checkpoints and the command line use them:

    task             its name in checkpoints
    metric           name of the figure in `metrics` by which `fit` finds the best epoch; higher is better
    loss             summed loss, from outputs and the batch's labels
    metrics          figures of merit, from the outputs of all examples
    predictions      what `predict` returns

    It may override `token_index`, `pool`, `head`, `num_targets`, `num_correct`, `logits`, `label_error`, `tune`,
    `encode`, `inputs`, and

    pooled           whether it reads each sequence's `<cls>` through the hidden layer (default), or vectors of tokens
    max_len          tokens of a sequence at most, unless the caller or `settings` say otherwise (default: 128)
    ignored          label that `loss` and `num_correct` ignore. CUDA graphs pad batches with it
    defaults         initial `settings`: plain values that are saved in the checkpoint. Of heads that read texts
                     `settings["windows"]`, "mean" or "max", splits long ones into windows, which share
                     `settings["stride"]` tokens (default: 0); of a pair the longer text, each window with the other
                     one. Each window is trained on by itself; figures and predictions are of the mean or the largest
                     of its outputs
    fields           the parts of one example in `bertnli predict`'s input, by their names in JSON; several alternatives

    Modules of `bert` that the head does not use (pretraining heads; the hidden layer, unless `pooled`) are kept in
    `carried`, outside `parameters()`: training leaves them as they are, and saving writes them.
    """

    task: ClassVar[str]
    metric: str
    pooled: ClassVar[bool] = True
    max_len: ClassVar[int] = 128
    ignored: ClassVar[float | None] = None
    defaults: ClassVar[dict[str, Any]] = {}
    fields: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text",), ("sentence",),
    )  # fmt: skip

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "task" in cls.__dict__:
            HEADS[cls.task] = cls

    def __init__(
        self,
        bert: BERTModel | Head,
        num_labels: int,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(getattr(bert, "encoder", None), nn.Module):
            raise TypeError(f"bert must be a BERTModel, or a head whose encoder is used; found {bert!r:.60}")
        num_labels = positive(num_labels, "num_labels")
        names = None if label_names is None else tuple(strings(label_names, "label_names"))
        if names is not None and len(names) != num_labels:
            raise ValueError(f"{len(names)} label_names for num_labels={num_labels}")
        if names is not None and len(set(names)) < num_labels:
            raise ValueError(f"label_names must differ; found {list(names)}")
        self.label_names = names
        given = dict(bert.named_children()) | (bert.carried if isinstance(bert, Head) else {})
        self.encoder: BERTEncoder = bert.encoder
        if self.pooled:
            self.hidden = given.pop("hidden")
        if dropout is None:
            dropout = bert.config.dropout if bert.config.embedding_norm else 0.0
        self.dropout = nn.Dropout(dropout)
        self.settings = dict(self.defaults)
        # For the model card; data and figures are of another head.
        self.provenance: dict[str, Any] = {k: v for k, v in bert.provenance.items() if k in ("base", "license")}
        self.output = nn.Linear(bert.config.num_hiddens, num_labels)
        # A dict keeps them out of the module tree.
        self.carried: dict[str, nn.Module] = {k: given[k] for k in ("hidden", "mlm", "nsp") if k in given}

    @property
    def config(self) -> BERTConfig:
        return self.encoder.config

    def sequence_len(self, max_len: int | None = None) -> int:
        """Tokens of a sequence at most: `max_len` (default: that of training, else the class's), limited by the number
        of the encoder's positions."""
        tokens: int = self.settings.get("max_len", self.max_len) if max_len is None else max_len
        return min(tokens, self.config.max_len)

    # ---- from tokens to outputs ----

    def token_index(self, batch: PackedBatch) -> Tensor | None:
        """The tokens it reads, ascending int64 [R], or None for all T. Raises ValueError for a sequence without any."""
        if not self.pooled:
            return None
        checked = batch.device.type == "cpu" and not torch.compiler.is_compiling()
        if not checked:
            return batch.cu_seqlens[:-1].long()
        bounds = batch.cu_seqlens.numpy()  # a few microseconds where torch takes thirty
        if (bounds[1:] == bounds[:-1]).any():
            raise ValueError("every sequence needs at least its <cls> token; found a valid length of 0")
        return torch.from_numpy(bounds[:-1].astype(np.int64))

    def tokens_per_sequence(self, batch: PackedBatch) -> Tensor:
        """How many rows it reads of each sequence, int64 [B]."""
        rows, bounds = self.token_index(batch), batch.cu_seqlens.long()
        return (bounds if rows is None else torch.searchsorted(rows, bounds)).diff()

    def features(self, batch: PackedBatch) -> Tensor:
        """The encoder's vectors of the rows that are read, [R, H], after `pool`."""
        check_no_transform()
        most = 1 if self.pooled else None
        return self.pool(self.encoder(batch, rows=self.token_index(batch), max_tokens_read=most), batch)

    def pool(self, features: Tensor, batch: PackedBatch) -> Tensor:
        """What `head` takes, from the vectors of the rows that are read: these themselves (default), or fewer."""
        return features

    def head(self, features: Tensor) -> Tensor:
        """Outputs from the encoder's vectors: [R, H] to [R, num_labels]."""
        return cast(Tensor, self.output(dropped(self.dropout, self.hidden(features) if self.pooled else features)))

    def forward(self, inputs: PackedBatch | Sequence[Tensor]) -> Tensor:
        """Outputs [R, num_labels] of a PackedBatch, or of D2L's `(tokens, segments, valid_lens)`."""
        if not isinstance(inputs, PackedBatch):
            if isinstance(inputs, Tensor) or len(inputs) != 3:
                raise TypeError("inputs must be a PackedBatch or the three tensors (tokens, segments, valid_lens)")
            inputs = PackedBatch.from_padded(*inputs)
        return self.head(self.features(inputs))

    def by_example(self, outputs: Tensor, data: Any) -> Tensor:
        """Outputs [R, num_labels] of all that is read; of examples in windows pooled to one row an example."""
        return data.pool(outputs, self.settings["windows"]) if isinstance(data, EncodedWindows) else outputs

    # ---- from outputs to figures ----

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """The loss summed over the batch's targets, from outputs of at least float32 and `batch.labels`."""
        raise NotImplementedError

    def num_targets(self, batch: PackedBatch) -> int:
        """Number of targets that the mean loss is a mean over (default: the sequences)."""
        return len(batch)

    def num_correct(self, outputs: Tensor, batch: PackedBatch) -> Tensor | None:
        """Number of correct targets, for the training accuracy; None if there is no such figure."""
        return None

    def logits(self, outputs: Tensor, batch: PackedBatch) -> Tensor | None:
        """The outputs as [..., C] whose softmax over C is a distribution; None if they are real numbers.

        Distillation compares student and teacher by them.
        """
        return None

    def label_error(self, labels: Tensor) -> str | None:
        """What is wrong with labels of training or evaluation data, to follow "the data has"; None if nothing."""
        return None

    def metrics(self, outputs: Tensor, data: Any) -> dict[str, Any]:
        """Figures of merit, from the outputs (float32, on the CPU) of all of `data`, which `encode` returned."""
        raise NotImplementedError

    def predictions(self, outputs: Tensor, data: Any) -> list[Any]:
        """One prediction an example, in order: dataclasses or plain values that JSON can hold."""
        raise NotImplementedError

    def tune(self, outputs: Tensor, data: Any) -> None:
        """Choose what `settings` hold of decisions, from the outputs of the dev data; at the end of `fit` (default:
        nothing)."""

    # ---- from text to tokens ----

    def check_texts(self, count: int) -> None:
        """Raise ValueError if the model was trained on another number of texts per example, by `settings["texts"]`."""
        if self.settings.get("texts", count) != count:
            given, expected = ("pairs", "single texts") if count == 2 else ("single texts", "pairs")
            raise ValueError(f"the model was trained on {expected}; found {given}")

    def adapt(self, data: Any) -> None:
        """Keep what checkpoints must say of the training data: class names, if the head has none, and in `settings`
        how many texts an example has."""
        if self.label_names is None and len(data.label_names) == self.output.out_features:
            self.label_names = tuple(data.label_names)
        if isinstance(data, TextData):
            self.settings["texts"] = 1 if data.second is None else 2

    def encode(
        self, tokenizer: Tokenizer, data: Any, max_len: int | None = None, truncation: Truncation = "longest_first"
    ) -> Any:
        """Encode examples for `fit` and `evaluate`; here a TextData of single texts or pairs, or EncodedWindows
        if `settings["windows"]` is set.

        max_len     see `sequence_len`
        truncation  see `Tokenizer.encode_pairs`
        """
        self.check_texts(1 if data.second is None else 2)
        max_len = self.sequence_len(max_len)
        if (kind := self.settings.get("windows")) is not None:
            if kind not in POOLINGS:
                raise ValueError(f'settings["windows"] must be {" or ".join(POOLINGS)}; found {kind!r}')
            stride = self.settings.get("stride", 0)
            return encode_windows(tokenizer, data.first, max_len, stride, data.labels, data.second)
        if data.second is None:
            return tokenizer.encode_texts(data.first, max_len, labels=data.labels)
        return tokenizer.encode_pairs(data.first, data.second, max_len, truncation, labels=data.labels)

    def inputs(self, *texts: Any) -> Any:
        """Unlabelled examples of `predict`'s arguments: here a text or a sequence of texts, for pairs two of them."""
        return TextData.of(*texts)


def check_head(model: object) -> None:
    """Raise TypeError for a model that is no Head, such as the classifier that D2L's chapter defines itself."""
    if isinstance(model, Head) or hasattr(model, "task"):  # a compiled head has the attributes, but not the class
        return
    if isinstance(model, nn.Module):
        found = f"{type(model).__module__}.{type(model).__name__}"
        cure = (
            "For the classifier of D2L's notebook make a head of its weights: head = d2l.BERTClassifier(bert); "
            "head.load_state_dict(net.state_dict())"
        )
    else:
        found = f"{model!r:.60}"
        cure = "bertnli.from_pretrained(folder) loads one, with its tokenizer"
    raise TypeError(f"model must be a head such as bertnli.BERTClassifier; found {found}. {cure}")


def class_label_error(labels: Tensor, dim: int, classes: int) -> str | None:
    """What is wrong with labels that should be classes 0 to `classes` - 1, of `dim` dimensions."""
    if labels.dtype != torch.int64:
        return f"labels of {labels.dtype}; classes are integers"
    if labels.dim() != dim:
        return f"labels of {labels.dim()} dimensions, not {dim}"
    if not labels.numel():
        return "no labels"
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        return f"labels from {low} to {high}; the model has {classes} classes"
    return None
