"""Blocks on padded vectors, heads and attention weights with both editions' arguments, against plain PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.oracles import PlainBlock, PlainD2LClassifier, masked_softmax
from torch import Tensor, nn

from bertnli import BERTClassifier, BERTConfig, BERTModel, d2l

HIDDEN, FFN, HEADS, LENGTH = 8, 16, 2, 6
LENS: list[Tensor | None] = [torch.tensor([6, 3, 1]), torch.tensor([[1, 2, 3, 4, 5, 6]] * 3), None]


def newer_block() -> nn.Module:
    return d2l.TransformerEncoderBlock(HIDDEN, FFN, HEADS, 0.5, True)


def older_block() -> nn.Module:
    return d2l.EncoderBlock(HIDDEN, HIDDEN, HIDDEN, HIDDEN, [HIDDEN], HIDDEN, FFN, HEADS, 0.5, use_bias=True)


@pytest.mark.parametrize("make", [newer_block, older_block])
@pytest.mark.parametrize("valid_lens", LENS)
def test_block(make: Any, valid_lens: Tensor | None) -> None:
    block, plain = make().eval(), PlainBlock(HIDDEN, FFN, HEADS, 0.5, original=False).eval()
    plain.load_state_dict(block.state_dict())
    x = torch.randn(3, LENGTH, HIDDEN)
    torch.testing.assert_close(block(x, valid_lens), plain(x, valid_lens), atol=1e-6, rtol=1e-5)
    assert not torch.equal(block.train()(x, valid_lens), plain(x, valid_lens))


def test_block_arguments() -> None:
    with pytest.raises(ValueError, match="use_bias=True"):
        d2l.TransformerEncoderBlock(HIDDEN, FFN, HEADS, 0.5)
    with pytest.raises(ValueError, match="key_size=9 must equal num_hiddens=8"):
        d2l.EncoderBlock(9, HIDDEN, HIDDEN, HIDDEN, [HIDDEN], HIDDEN, FFN, HEADS, 0.5, True)
    with pytest.raises(ValueError, match=r"valid_lens \[B\], \[B, L\] or None; found \[3, 6, 8\] and \[2\]"):
        newer_block()(torch.randn(3, LENGTH, HIDDEN), torch.tensor([1, 2]))


def models() -> tuple[BERTModel, nn.Module, Tensor, Tensor]:
    bert = BERTModel(BERTConfig(20, num_hiddens=HIDDEN, ffn_num_hiddens=FFN, num_heads=HEADS, max_len=LENGTH)).eval()
    plain = PlainD2LClassifier(20, HIDDEN, FFN, HEADS, 2, LENGTH).encoder.eval()
    plain.load_state_dict(bert.encoder.state_dict())
    tokens = torch.randint(0, 20, (3, LENGTH))
    return bert, plain, tokens, torch.zeros_like(tokens)


@pytest.mark.parametrize("valid_lens", LENS)
def test_encoder_by_keyword(valid_lens: Tensor | None) -> None:
    bert, plain, tokens, segments = models()
    found = bert.encoder(tokens=tokens, segments=segments, valid_lens=valid_lens)
    valid = torch.ones(3, LENGTH, dtype=torch.bool)
    if valid_lens is not None and valid_lens.dim() == 1:
        valid = torch.arange(LENGTH) < valid_lens[:, None]
        assert not found[~valid].any()
    torch.testing.assert_close(found[valid], plain(tokens, segments, valid_lens)[valid], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("valid_lens", LENS)
def test_attention_weights(valid_lens: Tensor | None) -> None:
    bert, plain, tokens, segments = models()
    block: Any = bert.encoder.blks[1]
    with pytest.raises(RuntimeError, match="there was none"):
        _ = block.attention.attention.attention_weights
    inputs: list[Tensor] = []
    plain.blks[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))  # type: ignore[index, union-attr]
    bert.encoder(tokens, segments, valid_lens)
    plain(tokens, segments, valid_lens)
    q, k = (
        layer(inputs[0]).view(3, LENGTH, HEADS, -1).transpose(1, 2)
        for layer in (block.attention.W_q, block.attention.W_k)
    )
    expected = masked_softmax(q @ k.transpose(2, 3) / math.sqrt(HIDDEN / HEADS), valid_lens).flatten(0, 1)
    found = block.attention.attention.attention_weights
    assert found.shape == (3 * HEADS, LENGTH, LENGTH)
    valid = torch.ones(3, LENGTH, dtype=torch.bool)
    if valid_lens is not None and valid_lens.dim() == 1:
        valid = torch.arange(LENGTH) < valid_lens[:, None]
    of_queries = valid.repeat_interleave(HEADS, 0)
    torch.testing.assert_close(found[of_queries], expected[of_queries], atol=1e-6, rtol=1e-5)


def test_heads() -> None:
    x, positions = torch.randn(2, 5, HIDDEN), torch.tensor([[1, 3], [0, 2]])
    for mlm in (d2l.MaskLM(20, HIDDEN), d2l.MaskLM(20, 4, HIDDEN), d2l.MaskLM(20, HIDDEN, num_inputs=HIDDEN)):
        torch.testing.assert_close(mlm(x, positions)[1, 1], mlm.mlp(x[1, 2]))
        assert next(iter(mlm.state_dict())) == "mlp.0.weight"
    for nsp in (d2l.NextSentencePred(), d2l.NextSentencePred(HIDDEN)):
        assert nsp(x[:, 0]).shape == (2, 2)


def test_three_classes_have_the_names_of_snli() -> None:
    bert = models()[0]
    assert d2l.BERTClassifier(bert).label_names == ("entailment", "contradiction", "neutral")
    assert d2l.BERTClassifier(bert, 2).label_names is None
    assert d2l.BERTClassifier(bert, label_names=["a", "b"]).label_names == ("a", "b")
    assert BERTClassifier(bert).label_names is None
