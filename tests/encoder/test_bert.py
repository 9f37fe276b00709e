"""The packed encoder against D2L's equations in float64, and against transformers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from helpers.oracles import (
    OracleConfig,
    PlainD2LClassifier,
    d2l_bert_classifier,
    d2l_bert_encoder,
    d2l_mlm,
    d2l_nsp,
    huggingface_state,
    random_state,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from bertnli import BERTClassifier, BERTConfig, BERTEncoder, BERTModel, PackedBatch, ops
from bertnli.encoder import bert as model

VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN = 61, 24, 40, 3, 3, 20


def config(original: bool = False, **changes: Any) -> BERTConfig:
    sizes: dict[str, Any] = dict(
        num_hiddens=HIDDEN, ffn_num_hiddens=FFN, num_heads=HEADS, num_layers=LAYERS, max_len=MAX_LEN
    )
    make = BERTConfig.original if original else BERTConfig
    return make(VOCAB, **{**sizes, "dropout": 0.0, **changes})


def padded_input(batch: int = 7, length: int = 17, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (batch, length), generator=g)
    segments = torch.randint(0, 2, (batch, length), generator=g)
    valid_lens = torch.randint(1, length + 1, (batch,), generator=g)
    valid_lens[0], valid_lens[1] = length, 1
    return tokens, segments, valid_lens


def classifier(state: dict[str, Tensor], original: bool = False, **changes: Any) -> BERTClassifier:
    bert = BERTModel(config(original, **changes)).to(state["output.weight"].dtype)
    bert.load_state_dict({k: v for k, v in state.items() if not k.startswith("output.")})
    net = BERTClassifier(bert).to(state["output.weight"].dtype)
    net.output.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("output.")})
    return net.eval()


def oracle_gradients(
    state: dict[str, Tensor], original: bool, inputs: tuple[Tensor, Tensor, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    leaves = {k: v.clone().requires_grad_() for k, v in state.items()}
    logits = d2l_bert_classifier(leaves, OracleConfig(HEADS, LAYERS, original), *inputs)
    loss = cross_entropy(logits, labels)
    loss.backward()
    return logits.detach(), loss.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}


@pytest.mark.parametrize("layers", [1, LAYERS])
@pytest.mark.parametrize("original", [False, True])
def test_logits_loss_and_every_gradient_equal_d2ls_equations(original: bool, layers: int) -> None:
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, layers, MAX_LEN, seed=1, original=original)
    inputs, labels = padded_input(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    leaves = {k: v.clone().requires_grad_() for k, v in state.items()}
    wanted = d2l_bert_classifier(leaves, OracleConfig(HEADS, layers, original), *inputs)
    wanted_loss = cross_entropy(wanted, labels)
    wanted_loss.backward()
    net = classifier(state, original, num_layers=layers)
    logits = net(inputs)
    loss = cross_entropy(logits, labels)
    loss.backward()
    torch.testing.assert_close(logits, wanted.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-12, atol=0)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.fixture(params=[False, True], ids=["products of PyTorch", "products of bertnli"])
def own_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "own_products", lambda dtype: request.param)


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("original", [False, True])
def test_float32_is_as_near_to_float64_as_plain_padded_float32(original: bool) -> None:
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=2, original=original)
    inputs, labels = padded_input(40, 17, seed=2), torch.arange(40) % 3
    wanted, _, gradients = oracle_gradients(state, original, inputs, labels)
    single = {k: v.float() for k, v in state.items()}
    plain_logits, _, plain_gradients = oracle_gradients(single, original, inputs, labels)
    net = classifier(single, original)
    logits = net(inputs)
    cross_entropy(logits, labels).backward()
    assert (logits - wanted).abs().max() <= 2 * (plain_logits - wanted).abs().max() + 1e-6
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        error = (parameter.grad - gradients[name]).norm()
        own = (plain_gradients[name] - gradients[name]).norm()
        assert error <= 2 * own + 1e-6 * gradients[name].norm() + 1e-7, name


def test_model_gives_d2ls_triple() -> None:
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=3)
    bert = BERTModel(config()).double()
    bert.load_state_dict({k: v for k, v in state.items() if not k.startswith("output.")})
    tokens, segments, valid_lens = padded_input(seed=3)
    positions = torch.tensor([[0, 0]] * len(tokens))
    encoded, masked, following = bert(tokens, segments, valid_lens, positions)
    wanted = d2l_bert_encoder(state, OracleConfig(HEADS, LAYERS), tokens, segments, valid_lens)
    valid = torch.arange(tokens.shape[1]) < valid_lens[:, None]
    torch.testing.assert_close(encoded[valid], wanted[valid], rtol=1e-10, atol=1e-11)
    assert not encoded[~valid].any()
    torch.testing.assert_close(masked, d2l_mlm(state, wanted, positions), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(following, d2l_nsp(state, wanted), rtol=1e-10, atol=1e-10)
    assert bert(tokens, segments, valid_lens)[1] is None


def test_state_dict_has_d2ls_names() -> None:
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN)
    bert = BERTModel(config())
    assert bert.state_dict().keys() == {k for k in state if not k.startswith("output.")}
    assert {k for k, _ in bert.named_parameters()} == bert.state_dict().keys()
    plain = PlainD2LClassifier(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN)
    assert {k: v.shape for k, v in BERTClassifier(bert).state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


def test_both_signatures_of_d2l() -> None:
    older = BERTModel(
        VOCAB, HIDDEN, [HIDDEN], HIDDEN, FFN, HEADS, LAYERS, 0.1, max_len=MAX_LEN, key_size=HIDDEN, query_size=HIDDEN,
        value_size=HIDDEN, hid_in_features=HIDDEN, mlm_in_features=HIDDEN, nsp_in_features=HIDDEN,
    )  # fmt: skip
    newer = BERTModel(
        VOCAB, HIDDEN, ffn_num_hiddens=FFN, num_heads=HEADS, num_blks=LAYERS, dropout=0.1, max_len=MAX_LEN
    )
    assert older.config == newer.config == config(dropout=0.1)
    assert BERTEncoder(VOCAB, HIDDEN, FFN, HEADS, LAYERS, 0.1).config.max_len == 1000
    with pytest.raises(ValueError, match="key_size=768 must equal num_hiddens=24"):
        BERTModel(VOCAB, HIDDEN, [HIDDEN], HIDDEN, FFN, HEADS, LAYERS, 0.1, key_size=768)
    with pytest.raises(TypeError, match="not both"):
        BERTModel(config(), 3)
    with pytest.raises(TypeError, match="num_heads is given twice"):
        BERTModel(VOCAB, HIDDEN, FFN, HEADS, num_heads=HEADS)
    with pytest.raises(TypeError, match="at most 7 positional arguments"):
        BERTModel(VOCAB, HIDDEN, FFN, HEADS, LAYERS, 0.1, 20, 1)


def test_sizes_by_hugging_faces_names() -> None:
    sizes: dict[str, Any] = dict(
        hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS, num_hidden_layers=LAYERS
    )
    more = dict[str, Any](max_position_embeddings=MAX_LEN, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1)
    assert BERTConfig(VOCAB, **sizes, **more) == config(attention_dropout=0.1)
    assert BERTConfig.original(VOCAB, **sizes, **more) == config(True, attention_dropout=0.1)
    assert BERTModel(VOCAB, **sizes, **more).config == config(attention_dropout=0.1)
    assert dataclasses.replace(config(), dropout=0.5) == config(dropout=0.5)
    with pytest.raises(TypeError, match="num_hiddens and hidden_size are names of the same size; give one of them"):
        BERTConfig(VOCAB, num_hiddens=HIDDEN, hidden_size=HIDDEN)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="hidden_width"):
        BERTConfig(VOCAB, hidden_width=HIDDEN)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"num_heads=5 must divide num_hiddens=24"):
        config(num_heads=5)


def test_padded_and_packed_inputs_agree_bit_for_bit() -> None:
    net = BERTClassifier(BERTModel(config())).eval()
    tokens, segments, valid_lens = padded_input()
    batch = PackedBatch.from_padded(tokens, segments, valid_lens)
    assert torch.equal(net([tokens, segments, valid_lens]), net(batch))
    hidden = net.encoder(batch)
    assert torch.equal(net.encoder(tokens, segments, valid_lens), batch.pad(hidden, tokens.shape[1]))
    assert torch.equal(net((tokens, segments, None)), net((tokens, segments, torch.full((len(tokens),), 17))))
    # Padding never leaks: other tokens there change nothing.
    noise = torch.where(torch.arange(17) < valid_lens[:, None], tokens, 5)
    assert torch.equal(net((noise, segments, valid_lens)), net((tokens, segments, valid_lens)))


@pytest.mark.parametrize("layers", [0, 1, LAYERS])
def test_rows_are_rows_of_the_whole(layers: int) -> None:
    torch.manual_seed(0)
    encoder = BERTEncoder(config(num_layers=layers)).double().eval()
    batch = PackedBatch.from_padded(*padded_input())
    whole = encoder(batch)
    total = len(whole)
    for rows in (
        batch.cu_seqlens[:-1].long(),
        torch.tensor([0]),
        torch.tensor([3, 4, 5, total - 1]),
        torch.arange(total),
        torch.tensor([], dtype=torch.long),
        torch.tensor([2, 2, 2]),
    ):
        torch.testing.assert_close(encoder(batch, rows=rows), whole[rows], rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match="ascending"):
        encoder(batch, rows=torch.tensor([4, 1]))


def test_dropout_changes_training_only_and_is_seeded() -> None:
    net = BERTClassifier(BERTModel(config(dropout=0.3)))
    inputs = padded_input()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(net(inputs))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    net.eval()
    assert torch.equal(net(inputs), net(inputs))


def test_bad_input_is_named() -> None:
    net = BERTClassifier(BERTModel(config())).eval()
    tokens, segments, valid_lens = padded_input(length=MAX_LEN + 1)
    with pytest.raises(ValueError, match="longer than the model's max_len=20"):
        net((tokens, segments, valid_lens))
    tokens, segments, valid_lens = padded_input()
    with pytest.raises(IndexError, match=r"token id 61 lies outside the model's vocabulary of 61"):
        net((tokens.clone().fill_(VOCAB), segments, valid_lens))
    with pytest.raises(ValueError, match="valid_lens must lie between 0 and the padded length 17"):
        net((tokens, segments, valid_lens + 17))
    with pytest.raises(ValueError, match="one shape"):
        net((tokens, segments[:, 1:], valid_lens))
    with pytest.raises(ValueError, match="found a valid length of 0"):
        net((tokens, segments, torch.zeros_like(valid_lens)))
    with pytest.raises(TypeError, match="three tensors"):
        net(tokens)
    assert net((tokens[:0], segments[:0], valid_lens[:0])).shape == (0, 3)
    # The encoder alone accepts empty sequences.
    valid_lens[2] = 0
    encoded = net.encoder(tokens, segments, valid_lens)
    assert not encoded[2].any()
    assert torch.isfinite(encoded).all()


@pytest.mark.parametrize("act", ["gelu", "relu", "gelu_new"])
def test_random_bert_equals_transformers(act: str) -> None:
    transformers = pytest.importorskip("transformers")
    hf_config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=FFN, max_position_embeddings=MAX_LEN, hidden_act=act, attn_implementation="eager",
    )  # fmt: skip
    hf_model = transformers.BertModel(hf_config).double().eval()
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=4, original=True)
    hf_model.load_state_dict(huggingface_state(state, LAYERS), strict=False)
    activation = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh"}[act]
    bert = BERTModel(config(True, activation=activation)).double().eval()
    bert.load_state_dict({k: v for k, v in state.items() if not k.startswith("output.")})
    tokens, segments, valid_lens = padded_input(seed=4)
    valid = torch.arange(17) < valid_lens[:, None]
    with torch.no_grad():
        wanted = hf_model(input_ids=tokens, token_type_ids=segments, attention_mask=valid.long())
        encoded = bert.encoder(tokens, segments, valid_lens)
    torch.testing.assert_close(encoded[valid], wanted.last_hidden_state[valid], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bert.hidden(encoded[:, 0]), wanted.pooler_output, rtol=1e-9, atol=1e-10)


def run_sgd(net: torch.nn.Module, steps: int, lr: float = 1e-3) -> list[float]:
    """Losses of `steps` steps of Adam on fixed random pairs."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        inputs = padded_input(16, 17, seed=100 + step)
        loss = cross_entropy(net(inputs), (inputs[0][:, 0] + inputs[2]) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [(torch.float64, 30, 1e-6), (torch.float32, 50, 2e-3)])
def test_loss_curve_is_the_plain_padded_versions(
    original: bool, dtype: torch.dtype, steps: int, tolerance: float
) -> None:
    torch.manual_seed(5)
    plain = PlainD2LClassifier(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, dropout=0.0, original=original).to(dtype)
    net = BERTClassifier(BERTModel(config(original))).to(dtype)
    net.load_state_dict(copy.deepcopy(plain.state_dict()))
    wanted = run_sgd(plain, steps)
    assert run_sgd(net, steps) == pytest.approx(wanted, abs=tolerance)
    assert wanted[-1] != pytest.approx(wanted[0], abs=10 * tolerance)


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("original", [False, True])
def test_bfloat16_matrices_give_what_float32_ones_do_to_rounding(original: bool) -> None:
    """Also where a sequence that nobody reads rounds the number of tokens up."""
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=2, original=original, dtype=torch.float32)
    inputs, labels = padded_input(40, 17, seed=2), torch.arange(40) % 3
    batch = PackedBatch.from_padded(*inputs)
    assert len(batch.input_ids) % 4
    gradients = []
    for low in (False, True):
        net = classifier(state, original)
        if low:
            for m in net.encoder.blks.modules():
                if isinstance(m, torch.nn.Linear):
                    m.weight = torch.nn.Parameter(m.weight.detach().bfloat16())
        assert net.encoder(batch).shape == (len(batch.input_ids), HIDDEN)
        logits = net(batch)
        assert logits.dtype == torch.float32
        cross_entropy(logits, labels).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(net.named_parameters()).keys()
    for name, wanted in gradients[0].items():
        error = (gradients[1][name].float() - wanted).norm()
        assert error <= 0.05 * wanted.norm() + 1e-3, name


def recurring_input(few: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of so few distinct tokens that the first layer projects each of them once."""
    tokens, segments, valid_lens = padded_input(40, 17, seed=6)
    return tokens % few + 3, segments, valid_lens


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of distinct tokens of each forward pass that projects them alone."""
    counts: list[int] = []
    take = ops.take

    def counted(table: Tensor, ids: Tensor, **options: Any) -> Tensor:
        counts.append(len(ids))
        return take(table, ids, **options)

    monkeypatch.setattr(ops, "take", counted)
    return counts


@pytest.mark.parametrize("sparse", [False, True])
def test_recurring_tokens_give_d2ls_logits_and_gradients(taken: list[int], sparse: bool) -> None:
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=7)
    inputs, labels = recurring_input(), torch.arange(40) % 3
    wanted, wanted_loss, gradients = oracle_gradients(state, False, inputs, labels)
    net = classifier(state)
    net.encoder.token_embedding.sparse = sparse
    logits = net(inputs)
    loss = cross_entropy(logits, labels)
    loss.backward()
    assert taken == [5]
    torch.testing.assert_close(logits, wanted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-12, atol=0)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.is_sparse == (sparse and name == "encoder.token_embedding.weight")
        torch.testing.assert_close(parameter.grad.to_dense(), gradients[name], rtol=1e-9, atol=1e-11, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(net(inputs), wanted, rtol=1e-11, atol=1e-12)
        batch = PackedBatch.from_padded(*inputs)
        torch.testing.assert_close(net.encoder(batch)[batch.cu_seqlens[:-1].long()], net.features(batch))


def test_recurring_tokens_with_parts_frozen(taken: list[int]) -> None:
    """What is not frozen has the gradient that it has otherwise; one layer projects nothing but what is read."""
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=7)
    inputs, labels = recurring_input(), torch.arange(40) % 3
    gradients = oracle_gradients(state, False, inputs, labels)[2]
    for frozen in ("encoder.token_embedding", "encoder.pos_embedding", "embedding", "encoder.blks.0.", "encoder.blks"):
        net = classifier(state, train_positions="pos_embedding" not in frozen)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(frozen not in name)
        cross_entropy(net(inputs), labels).backward()
        for name, parameter in net.named_parameters():
            assert (parameter.grad is None) == (frozen in name), name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-11, msg=name)
    assert len(taken) == 5
    classifier(random_state(VOCAB, HIDDEN, FFN, HEADS, 1, MAX_LEN), num_layers=1)(inputs)
    assert len(taken) == 5


@pytest.mark.parametrize("low", ["float32", "bfloat16", "autocast"])
def test_recurring_tokens_are_as_near_to_float64_as_others(monkeypatch: pytest.MonkeyPatch, low: str) -> None:
    state = random_state(VOCAB, HIDDEN, FFN, HEADS, LAYERS, MAX_LEN, seed=8)
    inputs, labels = recurring_input(53), torch.arange(40) % 3  # 53 are rounded up in bfloat16
    wanted, _, gradients = oracle_gradients(state, False, inputs, labels)
    errors = []
    for recur in (10**9, 3):
        monkeypatch.setattr(model, "_MIN_RECURRENCE", recur)
        net = classifier({name: value.float() for name, value in state.items()})
        if low == "bfloat16":
            for m in net.encoder.blks.modules():
                if isinstance(m, torch.nn.Linear):
                    m.weight = torch.nn.Parameter(m.weight.detach().bfloat16())
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
            logits = net(inputs).float()
        cross_entropy(logits, labels).backward()
        found = {name: p.grad for name, p in net.named_parameters()} | {"logits": logits}
        errors.append({name: (x - (gradients | {"logits": wanted})[name]).norm() for name, x in found.items()})
    assert errors[0] != errors[1]
    for name, error in errors[1].items():
        # The gradient of a key's bias is 0. What is found is rounding: compared with that of the query's.
        own = errors[0][name.replace("W_k.bias", "W_q.bias")]
        assert error <= 2 * own + 1e-6, name


@pytest.mark.usefixtures("own_products")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("original", [False, True])
def test_compile_and_export_go_through_the_model(original: bool) -> None:
    net = BERTClassifier(BERTModel(config(original)))
    compiled = torch.compile(net, backend="aot_eager")

    def with_gradients(forward: Any, batch: PackedBatch) -> list[Tensor]:
        net.zero_grad()
        logits = forward(batch)
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]

    for n in (7, 40):
        batch = PackedBatch.from_padded(*padded_input(n))
        for a, b in zip(with_gradients(compiled, batch), with_gradients(net, batch), strict=True):
            torch.testing.assert_close(a, b)

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.eval()

        def forward(self, ids: Tensor, segments: Tensor, positions: Tensor, cu_seqlens: Tensor) -> Tensor:
            logits: Tensor = self.net(PackedBatch(ids, segments, positions, cu_seqlens, MAX_LEN))
            return logits

    def arguments(n: int) -> tuple[Tensor, ...]:
        batch = PackedBatch.from_padded(*padded_input(n))
        return batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens

    dynamic = ({0: torch.export.Dim.AUTO},) * 4
    program = torch.export.export(Exported(), arguments(7), dynamic_shapes=dynamic, strict=False)
    called = {str(node.target).removesuffix(".default") for node in program.graph.nodes}
    wanted = ["varlen_attention_packed", "varlen_attention", "add_norm", "bias_act", *["embed_norm"] * original]
    assert {f"bertnli.{name}" for name in wanted} <= called
    torch.testing.assert_close(program.module()(*arguments(11)), Exported()(*arguments(11)))


def test_frozen_positions_get_no_gradient() -> None:
    net = BERTClassifier(BERTModel(config(train_positions=False)))
    net(padded_input()).sum().backward()
    assert net.encoder.pos_embedding.grad is None
    assert net.encoder.token_embedding.weight.grad is not None
