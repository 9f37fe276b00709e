"""The same work by transformers, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from bertnli.checkpoint.families import to_huggingface
from bertnli.tasks.base import Head
from bertnli.text.encoded import EncodedTexts


def equal_model(model: Head, attention: str = "sdpa") -> Any:
    """A transformers classifier with the sizes and weights of `model`, which has the original BERT's variant."""
    import transformers

    c, make_config = model.encoder.config, cast(Any, transformers.BertConfig)
    config = make_config(
        vocab_size=c.vocab_size, hidden_size=c.num_hiddens, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, intermediate_size=c.ffn_num_hiddens, num_labels=model.output.out_features,
        max_position_embeddings=c.max_len, attn_implementation=attention,
    )  # fmt: skip
    equal = transformers.BertForSequenceClassification(config)
    equal.load_state_dict(to_huggingface(model.state_dict()))
    return equal


def inputs_of(token_ids: Tensor, segments: Tensor, valid_lens: Tensor) -> dict[str, Tensor]:
    """The arguments of a transformers model, int64 [B, L] each, from padded ids and segments and lengths [B]."""
    mask = torch.arange(token_ids.shape[1], device=token_ids.device) < valid_lens[:, None]  # (B, L)
    return {"input_ids": token_ids, "token_type_ids": segments, "attention_mask": mask.long()}


def forward_of(model: Any, data: EncodedTexts, length: int | None = None) -> Callable[[Tensor], Tensor]:
    """`forward(index)` of a training loop on `data`, padded to `length` or to the longest sequence of the batch."""
    token_ids, segments, lens = data.to_padded(length or int(data.lengths.max()))

    def forward(index: Tensor) -> Tensor:
        columns = length or int(lens[index].max())
        logits: Tensor = model(**inputs_of(token_ids[index, :columns], segments[index, :columns], lens[index])).logits
        return logits

    return forward


def scores_of(model: Any, data: EncodedTexts, group: int = 64) -> Tensor:
    """Logits [N, labels], in groups of similar lengths that are padded to their longest."""
    order = torch.argsort(data.lengths)
    forward, scores = forward_of(model, data), []
    with torch.inference_mode():
        scores = [forward(index) for index in order.split(group)]
    return torch.cat(scores)[torch.argsort(order)]
