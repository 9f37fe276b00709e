"""D2L's pretraining of BERT: WikiText-2, masked words and next sentences."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bertnli.d2l.dataset import download_extract, get_dataloader_workers, get_tokens_and_segments, tokenize
from bertnli.d2l.plotting import Accumulator, Animator, Timer
from bertnli.d2l.training import try_all_gpus
from bertnli.data.files import open_text
from bertnli.data.progress import Progress, in_notebook
from bertnli.encoder.bert import BERTModel
from bertnli.runtime.memory import flush_denormals
from bertnli.text.batch import PackedBatch
from bertnli.text.vocab import Vocab


def _read_wiki(data_dir: str | os.PathLike[str]) -> list[list[str]]:
    """The paragraphs of `wiki.train.tokens`, shuffled by `random`, as lists of sentences in lower case."""
    with open_text(Path(data_dir) / "wiki.train.tokens") as lines:
        paragraphs = [line.strip().lower().split(" . ") for line in lines if len(line.split(" . ")) >= 2]
    random.shuffle(paragraphs)
    return paragraphs


class _WikiTextDataset(Dataset[Any]):
    """D2L's dataset: pairs of sentences with masked words, drawn from `random` in D2L's order, so that equal seeds give
    D2L's examples.

    paragraphs   lists of sentences
    max_len      tokens of a pair; longer pairs are left out

    Items are (token_ids [max_len], segments [max_len], valid_len [], pred_positions [n], mlm_weights [n], mlm_labels
    [n], nsp_label []) for n = round(0.15 max_len). `vocab` is the Vocab of the words that occur five times or more.
    """

    def __init__(self, paragraphs: Sequence[Sequence[str]], max_len: int) -> None:
        words = [tokenize(list(paragraph)) for paragraph in paragraphs]
        sentences = [sentence for paragraph in words for sentence in paragraph]
        self.vocab = Vocab(sentences, min_freq=5, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])
        self._cls, self._sep = self.vocab["<cls>"], self.vocab["<sep>"]
        pairs = list(self._pairs([[self.vocab[sentence] for sentence in paragraph] for paragraph in words], max_len))
        shape, num_preds = (len(pairs), max_len), round(max_len * 0.15)
        self.all_token_ids = torch.full(shape, self.vocab["<pad>"])
        self.all_segments = torch.zeros(shape, dtype=torch.int64)
        self.valid_lens = torch.tensor(
            [len(first) + len(second) + 3 for first, second, _ in pairs], dtype=torch.float32
        )
        self.all_pred_positions, self.all_mlm_labels = torch.zeros(2, len(pairs), num_preds, dtype=torch.int64)
        self.all_mlm_weights = torch.zeros(len(pairs), num_preds)
        self.nsp_labels = torch.tensor([follows for *_, follows in pairs], dtype=torch.int64)
        for i, (first, second, _) in enumerate(pairs):
            ids = [self._cls, *first, self._sep, *second, self._sep]
            masked, positions = self._masked(ids)
            self.all_token_ids[i, : len(ids)] = torch.tensor(masked)
            self.all_segments[i, len(first) + 2 : len(ids)] = 1
            self.all_pred_positions[i, : len(positions)] = torch.tensor(positions)
            self.all_mlm_labels[i, : len(positions)] = torch.tensor([ids[p] for p in positions])
            self.all_mlm_weights[i, : len(positions)] = 1
        self._columns = (
            self.all_token_ids, self.all_segments, self.valid_lens, self.all_pred_positions, self.all_mlm_weights,
            self.all_mlm_labels, self.nsp_labels,
        )  # fmt: skip

    def _pairs(self, paragraphs: list[list[list[int]]], max_len: int) -> Iterator[tuple[list[int], list[int], bool]]:
        """(first sentence, second sentence, whether it follows the first), as ids."""
        for paragraph in paragraphs:
            for first, second in pairwise(paragraph):
                follows = random.random() < 0.5
                if not follows:
                    second = random.choice(random.choice(paragraphs))
                if len(first) + len(second) + 3 <= max_len:
                    yield first, second, follows

    def _masked(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The ids with 15 % of the words replaced: by `<mask>`, now and then by any word or none; and their places."""
        candidates = [i for i, index in enumerate(ids) if index not in (self._cls, self._sep)]
        random.shuffle(candidates)
        masked, mask, tokens = list(ids), self.vocab["<mask>"], range(len(self.vocab))
        positions = candidates[: max(1, round(len(ids) * 0.15))]
        for position in positions:
            if random.random() < 0.8:
                masked[position] = mask
            elif random.random() >= 0.5:
                masked[position] = random.choice(tokens)
        return masked, sorted(positions)

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(column[index] for column in self._columns)

    def __len__(self) -> int:
        return len(self.nsp_labels)


def load_data_wiki(batch_size: int, max_len: int) -> tuple[DataLoader[Any], Vocab]:
    """Download WikiText-2; a loader of _WikiTextDataset's pairs of sentences, shuffled, and the Vocab."""
    train_set = _WikiTextDataset(_read_wiki(download_extract("wikitext-2", "wikitext-2")), max_len)
    loader: DataLoader[Any] = DataLoader(train_set, batch_size, shuffle=True, num_workers=get_dataloader_workers())
    return loader, train_set.vocab


def _get_batch_loss_bert(
    net: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    vocab_size: int,
    tokens_X: Tensor,
    segments_X: Tensor,
    valid_lens_x: Tensor,
    pred_positions_X: Tensor,
    mlm_weights_X: Tensor,
    mlm_Y: Tensor,
    nsp_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """D2L's loss of masked words, loss of next sentences, and their sum.

    With a `BERTModel` and a plain `nn.CrossEntropyLoss()`, each position is projected to the vocabulary once: positions
    of the padding of `pred_positions_X` are all `<cls>`. As in D2L, that loss's mean counts them.
    """
    weight = mlm_weights_X.sum() / (mlm_weights_X.sum() + 1e-8)
    if _is_packed(net, loss):
        assert isinstance(net, BERTModel)
        inputs = tokens_X, segments_X, valid_lens_x.reshape(-1), pred_positions_X
        mlm_scores, slots, nsp_scores = _packed_scores(net, *inputs)
        chosen = mlm_scores[slots, mlm_Y.reshape(-1)]
        mlm_l = (mlm_scores.logsumexp(1)[slots] - chosen).mean() * weight
        nsp_l = loss(nsp_scores, nsp_y)
    else:
        _, mlm_Y_hat, nsp_Y_hat = net(tokens_X, segments_X, valid_lens_x.reshape(-1), pred_positions_X)
        mlm_l = loss(mlm_Y_hat.reshape(-1, vocab_size), mlm_Y.reshape(-1)) * mlm_weights_X.reshape(-1, 1)
        mlm_l = mlm_l.sum() / (mlm_weights_X.sum() + 1e-8)
        nsp_l = loss(nsp_Y_hat, nsp_y)
    return mlm_l, nsp_l, mlm_l + nsp_l


def _is_packed(net: nn.Module, loss: Any) -> bool:
    plain = type(loss) is nn.CrossEntropyLoss and loss.reduction == "mean" and loss.weight is None
    own = isinstance(net, BERTModel) and type(net).forward is BERTModel.forward and None not in (net.mlm, net.nsp)
    return plain and own and not loss.label_smoothing and loss.ignore_index < 0 and not net._forward_hooks


def _packed_scores(
    net: BERTModel, tokens: Tensor, segments: Tensor, valid_lens: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the distinct tokens at `positions`, [R, vocab_size]; for each position which of them; and [B, 2]."""
    assert net.mlm is not None
    assert net.nsp is not None
    batch = PackedBatch.from_padded(tokens, segments, valid_lens)
    begins = batch.cu_seqlens[:-1, None].long()
    distinct, slots = torch.unique(torch.cat([begins, begins + positions], 1), return_inverse=True)
    vectors = net.encoder(batch, rows=distinct)  # (distinct, H)
    used, slots_used = torch.unique(slots[:, 1:].reshape(-1), return_inverse=True)
    return net.mlm.mlp(vectors[used]), slots_used, net.nsp(net.hidden(vectors[slots[:, 0]]))


def train_bert(
    train_iter: Any,
    net: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    vocab_size: int,
    devices: Sequence[torch.device] | None,
    num_steps: int,
) -> None:
    """D2L's pretraining by Adam with learning rate 0.01: draws both losses while it runs, then prints them.

    devices   default: all GPUs, or the CPU; several use DataParallel

    Raises ValueError if `train_iter` has no batches.
    """
    devices = list(devices) if devices else try_all_gpus()
    net = net.to(devices[0])
    if len(devices) > 1:
        net = nn.DataParallel(net, device_ids=devices)
    trainer = torch.optim.Adam(net.parameters(), lr=0.01, fused=True)
    timer, metric = Timer(), Accumulator(4)  # masked-word losses, next-sentence losses, pairs, steps
    animator = Animator(xlabel="step", ylabel="loss", xlim=[1, num_steps], legend=["mlm", "nsp"])

    def figures() -> str:
        return f"MLM loss {metric[0] / metric[3]:.3f}, NSP loss {metric[1] / metric[3]:.3f}"

    net.train()
    shown = Progress(num_steps, "pretraining", "steps", not in_notebook())
    with flush_denormals(), shown:
        for step, batch in enumerate(_repeated(train_iter, num_steps), 1):
            columns = [column.to(devices[0]) for column in batch]
            trainer.zero_grad()
            timer.start()
            mlm_l, nsp_l, both = _get_batch_loss_bert(net, loss, vocab_size, *columns)
            both.backward()
            trainer.step()
            metric.add(mlm_l.detach(), nsp_l.detach(), len(columns[0]), 1)
            timer.stop()
            animator.add(step, (metric[0] / metric[3], metric[1] / metric[3]))
            shown.update(1, figures)
    if num_steps:
        print(figures())
        print(f"{metric[2] / timer.sum():.1f} sentence pairs/sec on {devices!s}")


def _repeated(batches: Any, count: int) -> Iterator[Any]:
    """The first `count` batches of epoch after epoch."""
    while count > 0:
        before = count
        for batch in batches:
            yield batch
            count -= 1
            if not count:
                return
        if count == before:
            raise ValueError("train_iter has no batches")


def get_bert_encoding(
    net: nn.Module, tokens_a: list[str], tokens_b: list[str] | None = None, vocab: Vocab | None = None
) -> Tensor:
    """The encoded tokens of one text, or a pair, of words, [1, L, H]. `vocab` is the model's; D2L's code takes it from
    the notebook. Raises ValueError without it."""
    if vocab is None:
        raise ValueError("get_bert_encoding needs the model's Vocab: get_bert_encoding(net, tokens_a, vocab=vocab)")
    tokens, segments = get_tokens_and_segments(tokens_a, tokens_b)
    device = next(net.parameters()).device
    inputs = ([vocab[tokens]], [segments], [len(tokens)])
    return net(*(torch.tensor(x, device=device) for x in inputs))[0]  # type: ignore[no-any-return]
