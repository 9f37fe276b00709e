"""Every head against the plain model of `transformers` with the same weights: losses, gradients, training runs."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.dropout import attention_mask, row_mask
from torch import Tensor

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTQuestionAnswering,
    BERTRegressor,
    BERTTagger,
    EncodedTexts,
    Head,
    QuestionData,
    TextData,
    WordData,
    WordPieceTokenizer,
    evaluate,
    fit,
    from_pretrained,
    save_pretrained,
    score,
)
from bertnli.checkpoint.families import from_huggingface
from bertnli.tasks.regression import regression_metrics
from bertnli.text.encoded import encoded_texts

PIECES = [*WordPieceTokenizer.SPECIAL, *(f"w{i}" for i in range(35))]
HEADS: dict[str, Any] = {
    "classification": lambda bert: BERTClassifier(bert, 3),
    "regression": BERTRegressor,
    "tagging": lambda bert: BERTTagger(bert, 4),
    "qa": BERTQuestionAnswering,
}
THEIRS: dict[str, Any] = {
    "classification": transformers.BertForSequenceClassification,
    "regression": transformers.BertForSequenceClassification,
    "tagging": transformers.BertForTokenClassification,
    "qa": transformers.BertForQuestionAnswering,
}
TASKS = sorted(HEADS)


def model_of(task: str, dropout: float = 0.0, seed: int = 0) -> Head:
    torch.manual_seed(seed)
    config = BERTConfig.original(
        len(PIECES), num_hiddens=24, ffn_num_hiddens=40, num_heads=3, num_layers=3, max_len=20, dropout=dropout,
        pretraining_heads=False,
    )  # fmt: skip
    model: Head = HEADS[task](BERTModel(config))
    with torch.no_grad():
        for p in model.parameters():  # nothing at its default, so that nothing passes for another
            p.add_(torch.randn_like(p) * 0.1)
    return model.double()


def data_of(task: str, n: int = 40, seed: int = 1) -> EncodedTexts:
    """Random pairs with labels that depend on their tokens."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 20, (n,), generator=g)
    ids = torch.randint(5, len(PIECES), (int(lengths.sum()),), generator=g).int()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 2, 3
    first_lens = (torch.rand(n, generator=g) * (lengths - 3)).int() + 2
    begin = offsets[:-1] + 1
    labels: Tensor
    if task == "classification":
        labels = (ids[begin] % 3).long()
    elif task == "regression":
        labels = ids[begin] / 10.0
    elif task == "tagging":
        labels = torch.where(torch.rand(len(ids), generator=g) < 0.6, (ids % 4).long(), -100)
        labels[begin] = (ids[begin] % 4).long()
        labels[offsets[:-1]] = labels[offsets[1:] - 1] = -100
    else:
        first = (torch.rand(n, generator=g) * lengths).long()
        labels = torch.stack([first, torch.minimum(first + 2, lengths - 1)], 1)
    return EncodedTexts(ids, offsets, first_lens, labels, pad_id=0, max_len=20)


def twin_of(model: Head, folder: Path) -> Any:
    """The same model in `transformers`, by way of its checkpoint format."""
    with torch.random.fork_rng():
        plain = copy.deepcopy(model).float()
        save_pretrained(plain, folder, WordPieceTokenizer(PIECES), format="huggingface")
        twin, info = THEIRS[model.task].from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    unused = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert set(info["missing_keys"]) | set(info["unexpected_keys"]) <= unused
    twin = twin.double()
    names = {name: from_huggingface({name: p}, task=model.task) for name, p in twin.named_parameters()}
    ours = model.state_dict()
    with torch.no_grad():
        for name, p in twin.named_parameters():  # float32 went through the file
            ((key, _),) = names[name].items()
            p.copy_(ours[key].view_as(p))
    return twin.train() if model.training else twin.eval()


def padded(data: EncodedTexts, rows: Tensor, task: str) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments of transformers' model, and the labels padded alike."""
    batch = data.batch(rows)
    assert batch.labels is not None
    ids, segments, valid = data.to_padded(batch.max_seqlen, rows)
    mask = (torch.arange(batch.max_seqlen) < valid[:, None]).long()
    labels = batch.labels
    if task == "tagging":
        labels = torch.full_like(ids, -100)
        labels[mask.bool()] = batch.labels
    return dict(input_ids=ids, token_type_ids=segments, attention_mask=mask), labels


def loss_of(twin: Any, data: EncodedTexts, rows: Tensor, task: str) -> Tensor:
    """The mean loss of a batch as transformers computes it; of question answering without the padding's scores."""
    inputs, labels = padded(data, rows, task)
    if task == "qa":
        out = twin(**inputs)
        outside = inputs["attention_mask"] == 0
        sides = (out.start_logits.masked_fill(outside, -1e30), out.end_logits.masked_fill(outside, -1e30))
        return torch.stack([torch.nn.functional.cross_entropy(s, labels[:, i]) for i, s in enumerate(sides)]).mean()
    loss: Tensor = twin(**inputs, labels=labels.double() if task == "regression" else labels).loss
    return loss


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradients_are_those_of_transformers(task: str, tmp_path: Path) -> None:
    model, data = model_of(task).eval(), data_of(task)
    twin = twin_of(model, tmp_path)
    rows = torch.arange(16)
    batch = data.batch(rows)
    loss = model.loss(model(batch), batch) / model.num_targets(batch)
    loss.backward()
    wanted = loss_of(twin, data, rows, task)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    if task == "qa":  # rows of one length need no padding: the loss is transformers' own
        row = data.batch([3])
        inputs, labels = padded(data, torch.tensor([3]), task)
        theirs = twin(**inputs, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
        assert model.loss(model(row), row).item() == pytest.approx(theirs.item(), abs=1e-12)
    grads = {
        k: v for name, p in twin.named_parameters() for k, v in from_huggingface({name: p.grad}, task=task).items()
    }
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, grads.pop(name).view_as(p), atol=1e-12, rtol=1e-9, msg=name)
    assert all(grad is None for grad in grads.values())


@pytest.mark.parametrize("task", TASKS)
def test_dropout_is_where_transformers_has_it(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our masks in place of its own, which it asks for in the same order, it has our loss and gradients."""
    p = 0.3
    model, data = model_of(task, dropout=p).train(), data_of(task)
    twin = twin_of(model, tmp_path)
    rows = torch.arange(16)
    batch = data.batch(rows)
    inputs, _ = padded(data, rows, task)
    valid = inputs["attention_mask"].bool()
    seeds: list[Tensor] = []
    of_output: list[Tensor] = []

    def drawn(like: Tensor, p: float, _: None) -> Tensor:
        seeds.append(torch.randint(0, 2**32, (2,)))
        return seeds[-1]

    def kept(x: Tensor, p: float, training: bool, *_: bool) -> Tensor:
        of_output.append((torch.rand_like(x) >= p) / (1 - p))
        return x * of_output[-1]

    with monkeypatch.context() as ours:
        for module in ("attention", "embedding", "norm"):
            ours.setattr(f"bertnli.ops.{module}.seed_or_drawn", drawn)
        if model.dropout.p:
            ours.setattr(torch.nn.functional, "dropout", kept)
        outputs = model(batch)
        loss = model.loss(outputs, batch) / model.num_targets(batch)
        loss.backward()
    layers, heads, width = 3, 3, 24
    assert len(seeds) == 1 + 3 * layers
    assert len(of_output) == (task != "qa")  # none before the output layer of question answering

    def spread(mask: Tensor, at: Tensor) -> Tensor:
        """Over the padded rows; what nobody reads is kept."""
        packed = torch.ones(int(valid.sum()), mask.size(1), dtype=mask.dtype)
        packed[at] = mask
        everywhere = torch.ones(*valid.shape, mask.size(1), dtype=mask.dtype)
        everywhere[valid] = packed
        return everywhere

    everything, length = torch.arange(int(valid.sum())), batch.max_seqlen
    found = model.token_index(batch)
    read = everything if found is None else found
    masks = [spread(row_mask(len(everything), width, p, seeds[0]), everything)]
    for layer in range(layers):
        at = read if layer == layers - 1 else everything
        weights, *sums = seeds[1 + 3 * layer : 4 + 3 * layer]
        masks += [torch.stack([attention_mask(b, heads, length, length, p, weights) for b in range(len(batch))])]
        masks += [spread(row_mask(len(at), width, p, seed), at) for seed in sums]
    masks += [mask if model.pooled else spread(mask, read) for mask in of_output]

    def given(x: Tensor, p: float, training: bool, *_: bool) -> Tensor:
        assert training
        assert p == model.config.dropout
        return x * masks.pop(0).view_as(x)

    monkeypatch.setattr(torch.nn.functional, "dropout", given)
    wanted = loss_of(twin, data, rows, task)
    wanted.backward()
    assert not masks
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    grads = {
        k: v for name, q in twin.named_parameters() for k, v in from_huggingface({name: q.grad}, task=task).items()
    }
    for name, q in model.named_parameters():
        assert q.grad is not None
        torch.testing.assert_close(q.grad, grads.pop(name).view_as(q), atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_fit_is_the_plain_padded_loop(task: str, accumulate: int, tmp_path: Path) -> None:
    model, data = model_of(task).train(), data_of(task)
    twin = twin_of(model, tmp_path)
    size = 6 * accumulate
    steps = 3 * -(-len(data) // size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = fit(
            model, data, epochs=3, batch_size=6, accumulate=accumulate, lr=2e-3, weight_decay=0.1, seed=4,
            progress=False, warmup=0.1,
        )  # fmt: skip
    matrices = [p for p in twin.parameters() if p.dim() > 1]
    vectors = [p for p in twin.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}])
    wanted, step, rise = [], 0, int(0.1 * steps)
    for epoch in range(3):
        torch.manual_seed(4 * 1_000_003 + epoch)
        for rows in torch.randperm(len(data)).split(size):
            factor = (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * factor
            loss = loss_of(twin, data, rows, task)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
            step += 1
            wanted.append(loss.item())
    assert history.losses == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("task", TASKS)
def test_a_wholly_frozen_encoder_is_run_once_for_any_head(task: str) -> None:
    """Its features are the same as when the encoder runs at every step."""
    data = data_of(task)
    cached, layered = model_of(task), model_of(task)
    runs = []
    cached.encoder.register_forward_hook(lambda *_: runs.append(1))
    losses = fit(cached, data, epochs=3, batch_size=8, lr=1e-2, freeze="encoder", progress=False).losses
    assert len(runs) == 1
    layered.encoder.requires_grad_(False)
    wanted = fit(layered, data, epochs=3, batch_size=8, lr=1e-2, progress=False).losses
    assert losses == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_keep_the_head(task: str, tmp_path: Path) -> None:
    model, tokenizer = model_of(task, dropout=0.2).float().eval(), WordPieceTokenizer(PIECES)
    model.settings["note"] = 3
    data = data_of(task)
    for format in ("bertnli", "huggingface"):
        save_pretrained(model, tmp_path / format, tokenizer, format=format)
        again, _ = from_pretrained(tmp_path / format)
        assert type(again) is type(model)
        assert again.dropout.p == model.dropout.p
        assert torch.equal(score(again, data), score(model, data))
        trained = {**type(model).defaults, "max_len": model.sequence_len()}
        assert again.settings == (model.settings if format == "bertnli" else trained)
    other = BERTClassifier(again, 2)  # another task on the same encoder
    assert other.encoder is again.encoder
    save_pretrained(other, tmp_path / "other", tokenizer)
    assert isinstance(from_pretrained(tmp_path / "other")[0], BERTClassifier)


def test_figures_of_regression() -> None:
    model, data = model_of("regression").float(), data_of("regression")
    outputs, labels = score(model, data, batch_size=7), data.labels
    assert labels is not None
    figures = evaluate(model, data, batch_size=7)
    assert figures.items() >= regression_metrics(outputs, labels[:, None]).items()
    assert figures["mse"] == pytest.approx(figures["loss"])
    assert model.predictions(outputs, data) == outputs[:, 0].tolist()


def test_several_numbers_a_row() -> None:
    data = data_of("regression")
    assert data.labels is not None
    both = torch.stack([data.labels, 1 - data.labels], 1)
    data = EncodedTexts(data.ids, data.offsets, data.first_lens, both, pad_id=0, max_len=20)
    torch.manual_seed(0)
    model = BERTRegressor(model_of("regression").float(), 2, ("up", "down"))
    history = fit(model, data, epochs=20, lr=5e-3, batch_size=8, progress=False)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss / 2
    figures = evaluate(model, data)
    assert set(figures["per_label"]) == {"up", "down"}
    assert figures["pearson"] == pytest.approx(np.mean([c["pearson"] for c in figures["per_label"].values()]))
    assert figures["loss"] == pytest.approx(figures["mse"])


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_as_long_as_the_model_takes(task: str) -> None:
    """Where the caller does not say: as the settings have it, no more than there are positions."""
    model, tokenizer = model_of(task), WordPieceTokenizer(PIECES)
    text = " ".join(["w1"] * 30)
    of_task = {"tagging": WordData([text.split()], None), "qa": QuestionData(["w2"], [text], None, ["0"], ["0"])}
    data = of_task.get(task, TextData.of([text]))
    model.settings["stride"] = 4
    for wanted, given in ((20, None), (12, 12)):
        assert int(encoded_texts(model.encode(tokenizer, data, given), "").lengths.max()) == wanted
    if task in ("classification", "regression"):
        model.settings["texts"] = 2
        with pytest.raises(ValueError, match="trained on pairs; found single texts"):
            model.encode(tokenizer, data)
        assert len(model.encode(tokenizer, TextData.of("w1", "w2")))
        model.settings["texts"] = 1
    model.settings["max_len"] = 15
    assert int(encoded_texts(model.encode(tokenizer, data), "").lengths.max()) == 15


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("regression", torch.zeros(40, dtype=torch.int64), "regression takes reals"),
        ("regression", torch.zeros(40, 2), r"shape \[40, 2\]; the model has 1"),
        ("regression", torch.full((40,), torch.nan), "not finite"),
        ("classification", torch.zeros(40), "classes are integers"),
        ("classification", torch.zeros(40, 2, dtype=torch.int64), "2 dimensions"),
        ("tagging", torch.zeros(40, dtype=torch.int64), "a tagger needs a label a token"),
        ("qa", torch.zeros(40, dtype=torch.int64), r"spans are int64 \[N, 2\]"),
        ("qa", torch.full((40, 2), -1), "labels below 0"),
    ],
)
def test_labels_of_another_task(task: str, labels: Tensor, message: str) -> None:
    data = data_of(task)
    data = EncodedTexts(data.ids, data.offsets, data.first_lens, labels, pad_id=0, max_len=20)
    with pytest.raises(ValueError, match=message):
        fit(model_of(task), data, progress=False)


def test_labels_of_tokens_follow_their_rows() -> None:
    data = data_of("tagging")
    assert data.labels is not None
    parts = [data.labels[a:b] for a, b in zip(data.offsets, data.offsets[1:], strict=False)]
    for rows in ([3, 0, 3, 39], [], [7]):
        labels = data.batch(rows).labels
        assert labels is not None
        assert labels.tolist() == [x for i in rows for x in parts[i].tolist()]
    assert torch.equal(data[5:9].labels, torch.cat(parts[5:9]))  # type: ignore[arg-type]
    assert torch.equal(data[3:30:4].labels, torch.cat(parts[3:30:4]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many as the sequences, or as the tokens"):
        EncodedTexts(data.ids, data.offsets, data.first_lens, data.labels[1:], pad_id=0, max_len=20)
