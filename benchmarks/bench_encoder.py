"""The encoder's parts and the whole of it beside PyTorch's own expressions, on one training batch.

    pytest benchmarks/bench_encoder.py

row operators   forward and backward of 32 pairs of SNLI in MiniLM's sizes, with dropout 0.1 where there is any; values
                and gradients without dropout must agree
hidden states   [T, H] of all tokens of a batch in eval mode: bertnli's packed encoder, transformers' BertModel with the
                batch padded to its longest, and in buckets of similar lengths
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import MODELS
from torch import Tensor
from training_problem import encoded, model_of

from bertnli import ops
from bertnli.bench import transformers
from bertnli.bench.machine import versions_of
from bertnli.bench.race import Contestant
from bertnli.bench.training import shuffled

TOKENS, VOCAB, POSITIONS = 870, 30522, 512  # 32 SNLI pairs
HIDDEN, FFN = (MODELS["minilm"][name] for name in ("num_hiddens", "ffn_num_hiddens"))
Operator = Callable[..., Tensor]  # of the dropout probability and the inputs


def operators() -> dict[str, tuple[Operator, Operator, list[Tensor]]]:
    """Name to (bertnli's, PyTorch's, inputs)."""
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, generator=generator)
    ids, segments, positions = (
        torch.randint(0, n, (TOKENS,), generator=generator, dtype=torch.int32) for n in (VOCAB, 2, 40)
    )

    def add_norm(p: float, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + F.dropout(y, p), (HIDDEN,), weight, bias)

    def bias_act(kind: str, p: float, x: Tensor, bias: Tensor) -> Tensor:
        return F.relu(x + bias) if kind == "relu" else F.gelu(x + bias, approximate=kind)

    def embed(p: float, token: Tensor, segment: Tensor, position: Tensor) -> Tensor:
        return F.embedding(ids, token) + F.embedding(segments, segment) + F.embedding(positions, position)

    rows = [random(TOKENS, HIDDEN), random(TOKENS, HIDDEN), random(HIDDEN), random(HIDDEN)]
    wide = [random(TOKENS, FFN), random(FFN)]
    tables = [random(n, HIDDEN) for n in (VOCAB, 2, POSITIONS)]
    return {
        "add_norm": (lambda p, x, y, w, b: ops.add_norm(x, y, w, b, dropout_p=p), add_norm, rows),
        "relu": (lambda p, x, bias: ops.bias_act(x, bias, "relu"), partial(bias_act, "relu"), wide),
        "gelu": (lambda p, x, bias: ops.bias_act(x, bias, "gelu"), partial(bias_act, "none"), wide),
        "gelu_tanh": (lambda p, x, bias: ops.bias_act(x, bias, "gelu_tanh"), partial(bias_act, "tanh"), wide),
        "embed": (lambda p, t, s, q: ops.embed(t, s, q, ids, segments, positions), embed, tables),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", operators())
def test_row_operator(contest: Any, name: str, precision: str) -> None:
    *functions, inputs = operators()[name]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    width = FFN if len(inputs) == 2 else HIDDEN
    dout = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(1)).to(dtype)

    def run(function: Operator, p: float) -> list[Tensor]:
        out = function(p, *leaves)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    contestants = [
        Contestant(who, precision, partial(run, function, 0.1), partial(run, function, 0.0))
        for who, function in zip(("bertnli", "PyTorch"), functions, strict=True)
    ]
    tolerance = {"fp32": 1e-4, "bf16": 0.1}  # gradients are sums over all tokens
    contest(
        "row operator, forward and backward",
        contestants,
        tolerance=tolerance,
        operator=name,
        tokens=TOKENS,
        width=width,
    )


@pytest.mark.parametrize("model", MODELS)
def test_hidden_states(contest: Any, settings: Any, model: str) -> None:
    if settings.quick and model == "base":
        pytest.skip("left out by --quick")
    pytest.importorskip("transformers")
    data, head = encoded(), model_of(model)
    index = shuffled(data, 32, 1)[0]
    index = index[torch.argsort(data.lengths[index], stable=True)]
    packed, lens = data.batch(index), data.lengths[index]
    peer = transformers.equal_model(head).bert.eval()

    def padded(groups: list[Tensor]) -> Callable[[], Tensor]:
        inputs = [transformers.inputs_of(*data.to_padded(int(data.lengths[g].max()), g)) for g in groups]

        def run() -> Tensor:
            found = [peer(**x).last_hidden_state[x["attention_mask"].bool()] for x in inputs]
            return torch.cat(found)

        return torch.inference_mode()(run)

    own = torch.inference_mode()(lambda: head.encoder(packed))
    versions = versions_of(("transformers",))
    contestants = [
        Contestant("bertnli", "fp32", own),
        Contestant("transformers, longest", "fp32", padded([index]), versions=versions),
        Contestant("transformers, buckets", "fp32", padded(list(index.split(8))), versions=versions),
    ]
    contest("hidden states of a batch", contestants, model=model, pairs=len(index), tokens=int(lens.sum()))
