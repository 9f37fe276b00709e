"""Small random models of transformers, and padded inputs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertTokenizer, PreTrainedModel

VOCAB, MAX_LEN = 90, 40
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=MAX_LEN,
    initializer_range=0.3,
)


def make_model(kind: type[PreTrainedModel], seed: int = 0, **settings: Any) -> Any:
    """A model of that class in eval mode; its biases and norms are random too. Dropout is 0 by default."""
    torch.manual_seed(seed)
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model: Any = kind(BertConfig(**{**SIZES, **dropout, **settings}))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_inputs(lens: tuple[int, ...] = (20, 3, 7, 1, 20), seed: int = 1) -> dict[str, Tensor]:
    """Padded on the right with zeros."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lens)) < torch.tensor(lens)[:, None]).long()
    ids = torch.randint(1, VOCAB, mask.shape, generator=g) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(max(lens)) > 4).long() * mask}


TEXTS = ["a man eats", "the small dog sleeps in a red.", "woman", "a dog runs the man runs a blue man sleeps"]


def make_tokenizer(folder: Path) -> Any:
    """A tokenizer that knows the words of TEXTS, saved in the folder."""
    words = sorted({word for text in TEXTS for word in text.replace(".", " .").split()})
    (folder / "words.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer: Any = BertTokenizer(str(folder / "words.txt"), model_max_length=MAX_LEN)
    tokenizer.save_pretrained(folder)
    return tokenizer
