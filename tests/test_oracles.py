"""The oracles themselves, against modules of PyTorch and of transformers that we did not write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.oracles import (
    OracleConfig,
    PlainD2LClassifier,
    State,
    d2l_bert_classifier,
    d2l_bert_encoder,
    d2l_mlm,
    d2l_nsp,
    d2l_pooled,
    huggingface_state,
    random_state,
)
from torch import Tensor, nn

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden": 24, "ffn": 40, "heads": 4, "layers": 3, "max_len": 16}
Inputs = tuple[Tensor, Tensor, Tensor]


def random_inputs(seed: int = 1, batch: int = 6, length: int = 11) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SIZES["vocab_size"], (batch, length), generator=generator)
    segments = torch.randint(2, (batch, length), generator=generator)
    valid_lens = torch.randint(1, length + 1, (batch,), generator=generator)
    valid_lens[0], valid_lens[1] = length, 1
    return tokens, segments, valid_lens


def config(original: bool = False) -> OracleConfig:
    return OracleConfig(heads=SIZES["heads"], layers=SIZES["layers"], original=original)


def random_variant(original: bool) -> State:
    return random_state(**SIZES, seed=2, original=original)


def valid(inputs: Inputs) -> Tensor:
    return torch.arange(inputs[0].shape[1]) < inputs[2][:, None]  # (B, L)


@pytest.mark.parametrize("original", [False, True])
def test_plain_module_equals_functions(original: bool) -> None:
    state, inputs = random_variant(original), random_inputs()
    module = PlainD2LClassifier(**SIZES, original=original, dropout=0.5).double().eval()
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert missing == []
    assert {name.split(".")[0] for name in unexpected} == {"mlm", "nsp"}

    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    expected = d2l_bert_classifier(leaves, config(original), *inputs)
    torch.testing.assert_close(module(inputs), expected, rtol=1e-12, atol=1e-12)

    labels = torch.arange(len(expected)) % 3
    nn.functional.cross_entropy(expected, labels).backward()
    nn.functional.cross_entropy(module(inputs), labels).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-9, atol=1e-12, msg=name)
        if not name.endswith("W_k.bias"):  # the same for every key, so that the softmax cancels it
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 1e-6, name


def test_book_variant_equals_torch_transformer_layers() -> None:
    state, inputs = random_variant(False), random_inputs()
    tokens, segments, _ = inputs
    x = state["encoder.token_embedding.weight"][tokens] + state["encoder.segment_embedding.weight"][segments]
    x = x + state["encoder.pos_embedding"][:, : tokens.shape[1]]
    for i in range(SIZES["layers"]):
        layer = nn.TransformerEncoderLayer(
            SIZES["hidden"], SIZES["heads"], SIZES["ffn"], dropout=0.0, batch_first=True, dtype=torch.float64
        )
        block = f"encoder.blks.{i}."
        renamed = {
            f"{theirs}.{kind}": state[f"{block}{ours}.{kind}"]
            for ours, theirs in {
                "attention.W_o": "self_attn.out_proj",
                "addnorm1.ln": "norm1",
                "ffn.dense1": "linear1",
                "ffn.dense2": "linear2",
                "addnorm2.ln": "norm2",
            }.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            parts = [state[f"{block}attention.{name}.{kind}"] for name in ("W_q", "W_k", "W_v")]
            renamed[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        layer.load_state_dict(renamed)
        x = layer(x, src_key_padding_mask=~valid(inputs))
    found = d2l_bert_encoder(state, config(), *inputs)
    torch.testing.assert_close(found[valid(inputs)], x[valid(inputs)], rtol=1e-11, atol=1e-11)


def test_original_variant_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    state, inputs = random_variant(True), random_inputs()
    bert_config = transformers.BertConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["hidden"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["ffn"],
        max_position_embeddings=SIZES["max_len"],
        attn_implementation="eager",
    )
    bert = transformers.BertModel(bert_config).double().eval()
    missing, unexpected = bert.load_state_dict(huggingface_state(state, SIZES["layers"]), strict=False)
    assert [name for name in missing if "position_ids" not in name] == []
    assert unexpected == []
    tokens, segments, _ = inputs
    with torch.no_grad():
        expected = bert(tokens, token_type_ids=segments, attention_mask=valid(inputs).long())
    found = d2l_bert_encoder(state, config(True), *inputs)
    torch.testing.assert_close(found[valid(inputs)], expected.last_hidden_state[valid(inputs)], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(d2l_pooled(state, found), expected.pooler_output, rtol=1e-11, atol=1e-11)


def test_heads_equal_torch_modules() -> None:
    state = random_variant(False)
    encoded = torch.randn(4, 9, SIZES["hidden"], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    hidden = SIZES["hidden"]

    def load(module: nn.Module, prefix: str) -> nn.Module:
        module.double().load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return module

    mlm = nn.Sequential(
        nn.Linear(hidden, hidden), nn.ReLU(), nn.LayerNorm(hidden), nn.Linear(hidden, SIZES["vocab_size"])
    )
    load(mlm, "mlm.mlp.")
    positions = torch.tensor([[1, 5, 2], [6, 1, 5], [0, 1, 8], [3, 3, 3]])
    expected = torch.stack([mlm(encoded[b, positions[b]]) for b in range(4)])
    torch.testing.assert_close(d2l_mlm(state, encoded, positions), expected, rtol=1e-12, atol=1e-12)

    tanh = load(nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh()), "hidden.")
    nsp = load(nn.Linear(hidden, 2), "nsp.output.")
    torch.testing.assert_close(d2l_nsp(state, encoded), nsp(tanh(encoded[:, 0])), rtol=1e-12, atol=1e-12)


def test_padding_has_no_influence_and_none_means_all_valid() -> None:
    state, (tokens, segments, valid_lens) = random_variant(False), random_inputs()
    expected = d2l_bert_encoder(state, config(), tokens, segments, valid_lens)
    for b, n in enumerate(valid_lens.tolist()):
        alone = d2l_bert_encoder(state, config(), tokens[b : b + 1, :n], segments[b : b + 1, :n], None)
        torch.testing.assert_close(expected[b, :n], alone[0], rtol=1e-11, atol=1e-11)


def test_book_positions_do_not_learn() -> None:
    inputs = random_inputs()
    for train_positions in (True, False):
        module = PlainD2LClassifier(**SIZES, train_positions=train_positions)
        module(inputs).sum().backward()
        assert (module.encoder.pos_embedding.grad is not None) == train_positions
        assert module.encoder.token_embedding.weight.grad is not None


def test_dropout_acts_in_training_only() -> None:
    inputs = random_inputs()
    for original in (False, True):
        module = PlainD2LClassifier(**SIZES, original=original, dropout=0.3)
        assert not torch.equal(module(inputs), module(inputs))
        module.eval()
        assert torch.equal(module(inputs), module(inputs))


def test_random_state_keeps_its_values_across_dtypes_and_names_bad_heads() -> None:
    double, single = random_variant(False), random_state(**SIZES, seed=2, dtype=torch.float32)
    assert all(torch.equal(double[name].float(), single[name]) for name in double)
    assert not torch.equal(double["output.weight"], random_state(**SIZES, seed=3)["output.weight"])
    with pytest.raises(ValueError, match="hidden \\(24\\) must be divisible by heads \\(5\\)"):
        random_state(**(SIZES | {"heads": 5}))
