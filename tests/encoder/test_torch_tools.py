"""PyTorch's tools around a model: torch.func, torch.export of padded inputs, DataLoader and random_split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import classifier, pairs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, random_split

from bertnli import EncodedTexts, PackedBatch, QuestionData, evaluate, fit, score
from bertnli.tasks.question_answering import EncodedQuestions
from bertnli.text.encoded import encoded_texts

ENCODED = pairs(50)


class OnPadded(nn.Module):
    """A classifier, or its encoder, of three tensors."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.net, self.whole = classifier(original=True).eval(), whole

    def forward(self, tokens: Tensor, segments: Tensor, valid_lens: Tensor) -> Tensor:
        inputs = tokens, segments, valid_lens
        result: Tensor = self.net(inputs) if self.whole else self.net.encoder(*inputs)
        return result


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.export's own
@pytest.mark.parametrize("whole", [False, True])
def test_export_of_padded_inputs(whole: bool) -> None:
    auto = torch.export.Dim.AUTO
    net, shapes = OnPadded(whole), ({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto})
    program = torch.export.export(net, ENCODED.to_padded(17, range(5)), dynamic_shapes=shapes, strict=False)
    for rows, length in ((range(5, 12), 20), (range(30), 19)):
        inputs = ENCODED.to_padded(length, rows)
        torch.testing.assert_close(program.module()(*inputs), net(*inputs), rtol=1e-5, atol=1e-6)


def test_functional_call_works_and_transforms_are_refused() -> None:
    net, batch = classifier().eval(), ENCODED.batch(range(4))
    doubled = {name: 2 * p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = torch.func.functional_call(net, parameters, (batch,))
        return outputs.square().sum()

    wanted = loss(doubled)
    with pytest.raises(RuntimeError, match=r"no rules for the transforms of torch.func .* use loss.backward"):
        torch.func.grad(loss)(doubled)
    net.load_state_dict(doubled)
    torch.testing.assert_close(net(batch).square().sum(), wanted)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_makes_packed_batches(workers: int) -> None:
    batches = list(DataLoader(ENCODED, batch_size=20, num_workers=workers))  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [20, 20, 10]
    for batch, begin in zip(batches, (0, 20, 40), strict=True):
        assert_equal(batch, ENCODED.batch(range(begin, min(begin + 20, 50))))


def test_random_split() -> None:
    split: Any = random_split
    part, rest = split(ENCODED, [0.8, 0.2], torch.Generator().manual_seed(0))
    assert (len(part), len(rest)) == (40, 10)
    loader = DataLoader(part, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    order = torch.tensor(part.indices)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    seen = list(loader)
    assert sorted(len(batch) for batch in seen) == [8, 16, 16]
    labels = torch.cat([batch.labels for batch in seen])
    assert ENCODED.labels is not None
    assert labels.sort().values.equal(ENCODED.labels[order].sort().values)


def test_fit_and_evaluate_take_a_subset() -> None:
    split: Any = random_split
    part, rest = split(ENCODED, [40, 10], torch.Generator().manual_seed(0))
    data, dev = ENCODED.select(part.indices), ENCODED.select(rest.indices)
    assert torch.equal(data.ids, torch.cat([ENCODED[i].ids for i in part.indices]))
    assert evaluate(classifier(), rest) == evaluate(classifier(), dev)
    assert torch.equal(score(classifier(), rest), score(classifier(), dev))
    options: dict[str, Any] = dict(epochs=2, batch_size=8, lr=1e-3, progress=False)
    found, wanted = (fit(classifier(), *both, **options) for both in ((part, rest), (data, dev)))
    assert found.losses == wanted.losses
    assert [e.dev_loss for e in found.epochs] == [e.dev_loss for e in wanted.epochs]
    tokens = torch.zeros(1)
    questions: Any = EncodedQuestions(ENCODED, tokens, tokens, tokens, QuestionData([], [], None, [], []))
    with pytest.raises(TypeError, match="EncodedQuestions cannot be split; split the examples, then encode each part"):
        encoded_texts(Subset(questions, [0]), "train")


def test_one_sequence_by_its_index() -> None:
    for i in (0, 7, -1):
        one = ENCODED[i]
        assert isinstance(one, EncodedTexts)
        assert_equal(one.batch([0]), ENCODED.batch([i % 50]))
    every: Any = ENCODED  # iterated by its indices
    assert sum(len(one.ids) for one in every) == len(ENCODED.ids)
    with pytest.raises(IndexError, match="there is no sequence 50; there are 50"):
        ENCODED[50]


def assert_equal(found: PackedBatch, wanted: PackedBatch) -> None:
    assert found.max_seqlen == wanted.max_seqlen
    for name in ("input_ids", "segment_ids", "positions", "cu_seqlens", "labels"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
