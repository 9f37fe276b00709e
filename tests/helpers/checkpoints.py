"""Folders of small random models that transformers saves, and what its models compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from bertnli import PackedBatch, WordPieceTokenizer

PIECES = [*WordPieceTokenizer.SPECIAL, "the", "dog", "cat", "run", "##s", "sleep", "##ing", *"abcde"]
# Sizes by the names of each family's configuration.
SIZES: dict[str, dict[str, int]] = {
    "Bert": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
    "Electra": dict(
        hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    ),
    "DistilBert": dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48),
}


def make(kind: str, **settings: Any) -> Any:
    """A model of the class `kind` of transformers, in eval mode, whose parameters are all random."""
    family = kind.split("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": len(PIECES), "max_position_embeddings": 16, **SIZES[family], **settings}
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save(model: Any, folder: Path, lowercase: bool = True) -> Path:
    """Write the model with a tokenizer."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizer(
        vocab={piece: i for i, piece in enumerate(PIECES)}, do_lower_case=lowercase, model_max_length=16
    )
    tokenizer.save_pretrained(folder)
    return folder


def batch(rows: int = 5, length: int = 9) -> PackedBatch:
    g = torch.Generator().manual_seed(0)
    tokens, segments = (torch.randint(0, n, (rows, length), generator=g) for n in (len(PIECES), 2))
    return PackedBatch.from_padded(tokens, segments, torch.randint(1, length + 1, (rows,), generator=g))


@torch.no_grad()
def outputs(model: Any, b: PackedBatch) -> Any:
    """What the model of transformers gives for the batch, padded."""
    inputs: dict[str, Tensor] = {
        "input_ids": b.pad(b.input_ids).long(),
        "attention_mask": b.pad(torch.ones_like(b.input_ids)),
        "token_type_ids": b.pad(b.segment_ids).long(),
    }
    if model.config.model_type == "distilbert":
        del inputs["token_type_ids"]
    return model(**inputs)


def valid(b: PackedBatch) -> Tensor:
    """Where the padded batch has tokens, bool [B, L]."""
    return b.pad(torch.ones_like(b.input_ids)).bool()
