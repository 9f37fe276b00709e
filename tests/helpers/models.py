"""Small random models and inputs for the tests of inference."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, Head, PackedBatch
from bertnli.encoder.layers import EncoderBlock

VOCAB, MAX_LEN = 500, 80

# Largest difference, of the largest element. fp32 is exact to rounding; bf16 has 8 bits and int8 has 7, both rounded
# once a product.
TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3, "int8": 3e-2}


def make_head(
    kind: type[Head] = BERTClassifier,
    *,
    original: bool = True,
    hidden: int = 32,
    inner: int = 64,
    heads: int = 2,
    layers: int = 2,
    labels: int = 3,
) -> Head:
    """A head in eval mode, whose biases and norms are random too."""
    torch.manual_seed(hidden + labels)
    config = (BERTConfig.original if original else BERTConfig)(
        VOCAB,
        num_hiddens=hidden,
        ffn_num_hiddens=inner,
        num_heads=heads,
        num_layers=layers,
        max_len=MAX_LEN,
        dropout=0.1,
    )
    model = kind(BERTModel(config), labels).eval()
    with torch.no_grad():
        for p in model.encoder.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


def block(model: Head, index: int) -> EncoderBlock:
    """Layer `index` of the model's encoder."""
    return cast(EncoderBlock, model.encoder.blks[index])


def make_encoded(lens: list[int]) -> EncodedTexts:
    g = torch.Generator().manual_seed(sum(lens))
    ids = torch.randint(VOCAB, (sum(lens),), dtype=torch.int32, generator=g)
    offsets = torch.tensor([0, *lens]).cumsum(0)
    return EncodedTexts(ids, offsets, (torch.tensor(lens) // 2 + 1).int(), None, pad_id=0, max_len=MAX_LEN)


def make_batch(lens: list[int]) -> PackedBatch:
    """A batch that may have sequences without tokens, or too long ones."""
    g = torch.Generator().manual_seed(sum(lens))
    shape = (len(lens), max(lens, default=1))
    ids, segments = torch.randint(VOCAB, shape, generator=g), torch.randint(2, shape, generator=g)
    return PackedBatch.from_padded(ids, segments, torch.tensor(lens))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, of b's largest element."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max()) if b.numel() else 0.0
