"""What stands on the encoder: each application is one small class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from bertnli.batching import PackedBatch
from bertnli.model import BERTConfig, BERTEncoder, BERTModel, MaskLM, NextSentencePred


class BERTClassifier(nn.Module):
    """Scores of `num_labels` classes from each sequence's `<cls>` vector: D2L's `encoder`, `hidden` and `output`.

    bert             a BERTModel, or a classifier of other classes; its encoder and hidden layer are shared, not copied
    num_labels       number of classes
    label_names      one name a class; they travel with the checkpoint
    dropout          before the output layer; None means none for D2L's variant, the config's for the original's

    The pretraining heads of `bert` ride along in `pretraining_heads`, outside `parameters()`: fine-tuning cannot touch
    them, optimizers and other processes do not see them, and saving writes them back under `mlm.*` and `nsp.*`.

    Source: Dive into Deep Learning, "Natural Language Inference: Fine-Tuning BERT".
    """

    def __init__(
        self,
        bert: BERTModel | BERTClassifier,
        num_labels: int = 3,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if label_names is not None and len(label_names) != num_labels:
            raise ValueError(f"{len(label_names)} label names for num_labels={num_labels}")
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1; found {num_labels}")
        if label_names is not None and len(set(label_names)) < num_labels:
            raise ValueError(f"label names must differ; found {list(label_names)}")
        self.label_names = tuple(label_names) if label_names is not None else None
        self.encoder: BERTEncoder = bert.encoder
        self.hidden: nn.Sequential = bert.hidden
        if dropout is None:
            dropout = bert.config.dropout if bert.config.embedding_norm else 0.0
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(bert.config.num_hiddens, num_labels)
        # A tuple keeps them out of the module tree.
        self.pretraining_heads: tuple[MaskLM | None, NextSentencePred | None] = bert.pretraining_heads

    @property
    def config(self) -> BERTConfig:
        return self.encoder.config

    def features(self, batch: PackedBatch) -> Tensor:
        """The encoder's `<cls>` vectors, [B, H]. Raises ValueError for an empty sequence, which has none."""
        rows = batch.cu_seqlens[:-1].long()
        if batch.device.type == "cpu" and bool((batch.cu_seqlens.diff() == 0).any()):
            raise ValueError("every sequence needs at least its <cls> token; found a valid length of 0")
        return cast(Tensor, self.encoder(batch, rows=rows))

    def head(self, features: Tensor) -> Tensor:
        """Class scores from `<cls>` vectors: [B, H] to [B, num_labels]."""
        return cast(Tensor, self.output(self.dropout(self.hidden(features))))

    def forward(self, inputs: PackedBatch | Sequence[Tensor]) -> Tensor:
        """Class scores [B, num_labels] of a PackedBatch, or of D2L's `(tokens, segments, valid_lens)`."""
        if not isinstance(inputs, PackedBatch):
            if isinstance(inputs, Tensor) or len(inputs) != 3:
                raise TypeError("inputs must be a PackedBatch or the three tensors (tokens, segments, valid_lens)")
            inputs = PackedBatch.from_padded(*inputs)
        return self.head(self.features(inputs))
