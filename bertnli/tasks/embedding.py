"""Sentence vectors: one vector for each text, pooled over its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli.encoder.bert import BERTModel
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}


class _NoDense(nn.Identity):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = width


class BERTEmbedder(Head):
    """A vector for each text: its tokens' vectors pooled, then a dense layer and scaling to length 1 if the model has
    them. Outputs: float32 [N, H], or [N, num_labels] of a dense layer. It has no loss: it is not trained.

        model = Model(BERTEmbedder(bert, pooling="cls", normalize=True), tokenizer)
        vectors = model.encode(["a fine film"])

    num_labels   width of the dense layer (default: none)
    pooling      see `settings`
    normalize    see `settings`
    others       see Head

    settings    pooling       "mean" of the tokens' vectors, special tokens included; "max"; "cls", the first token's;
                              "lasttoken"; "mean_sqrt_len_tokens", the sum over the root of the number of tokens; or
                              "weightedmean", weighted by the position, from 1
                activation    of the dense layer: "identity", "tanh", "relu", "gelu" or "sigmoid"
                normalize     whether vectors are scaled to length 1
                prompts       texts to put before texts, by name, as `Model.encode` takes them
                default_prompt_name    the one that is put before texts if no other is asked for
                truncate_dim  numbers of a vector that are given (default: all)

    Source: sentence-transformers' Pooling, Dense and Normalize.
    """

    task = "embedding"
    metric = ""
    pooled = False
    max_len = 512
    fields = (("text",), ("sentence",))
    defaults: ClassVar[dict[str, Any]] = {"pooling": "mean", "activation": "identity", "normalize": False}

    def __init__(
        self,
        bert: BERTModel | Head,
        num_labels: int | None = None,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
        *,
        pooling: str = "mean",
        normalize: bool = False,
    ) -> None:
        super().__init__(bert, bert.config.num_hiddens if num_labels is None else num_labels, label_names, dropout)
        if num_labels is None:
            self.output = cast(nn.Linear, _NoDense(bert.config.num_hiddens))
        self.settings |= {"pooling": pooling, "normalize": normalize}

    def token_index(self, batch: PackedBatch) -> Tensor | None:
        return batch.cu_seqlens[:-1].long() if self.settings["pooling"] == "cls" else None

    def pool(self, features: Tensor, batch: PackedBatch) -> Tensor:
        kind, bounds = self.settings["pooling"], batch.cu_seqlens
        if kind == "cls":
            return features  # of these tokens
        if kind == "lasttoken":
            return features[bounds[1:].long() - 1]
        if kind in ("mean", "max"):
            return _reduced(features, bounds, kind)
        if kind == "mean_sqrt_len_tokens":
            return _reduced(features, bounds, "sum") / bounds.diff().sqrt()[:, None]
        if kind == "weightedmean":
            weights = (batch.positions + 1).to(features.dtype)[:, None]
            return _reduced(features * weights, bounds, "sum") / _reduced(weights, bounds, "sum")
        raise ValueError(f'settings["pooling"] is {kind!r}; see BERTEmbedder')

    def head(self, features: Tensor) -> Tensor:
        kind = self.settings["activation"]
        if kind not in ACTIVATIONS:
            raise ValueError(f'settings["activation"] must be one of {", ".join(ACTIVATIONS)}; found {kind!r}')
        x = ACTIVATIONS[kind](self.output(features.float()))
        x = F.normalize(x, dim=1) if self.settings["normalize"] else x
        return x[:, : self.settings.get("truncate_dim")]

    def prompt(self, name: str | None = None) -> str:
        """The prompt of a name (default: the default one, else ""). Raises ValueError for a name that is not there."""
        prompts, name = self.settings.get("prompts", {}), name or self.settings.get("default_prompt_name")
        if name is not None and name not in prompts:
            raise ValueError(f"the model has no prompt {name!r}; it has {', '.join(prompts) or 'none'}")
        return "" if name is None else str(prompts[name])

    def label_error(self, labels: Tensor) -> str | None:
        return "labels, and sentence vectors are not trained or evaluated; put a head on the model, as a BERTClassifier"

    def predictions(self, outputs: Tensor, data: EncodedTexts) -> list[Any]:
        return outputs.tolist()


def _reduced(x: Tensor, bounds: Tensor, kind: str) -> Tensor:
    """The "mean", "max" or "sum" of each sequence's rows: [T, H], int32 [B+1] to [B, H]."""
    if len(bounds) == 2:  # several times as fast
        if kind == "max":
            return x.amax(0, keepdim=True)
        return x.mean(0, keepdim=True) if kind == "mean" else x.sum(0, keepdim=True)
    rows = torch.arange(len(x), dtype=bounds.dtype, device=x.device)
    return F.embedding_bag(rows, x, bounds, mode=kind, include_last_offset=True)
