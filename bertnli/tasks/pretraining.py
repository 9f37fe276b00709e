"""BERT's pretraining: masked words and next sentences, on packed tokens.

Source: Devlin et al. 2019, "BERT"; Dive into Deep Learning, "Pretraining BERT". Words are masked whole by option.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli.encoder.bert import BERTModel
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer, as_tokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

NOT_MASKED = -100  # label of tokens that are not predicted
_SHARE = 0.15  # of the tokens that are predicted


def sentence_pairs(
    paragraphs: Sequence[Sequence[str]], rng: np.random.Generator
) -> tuple[list[str], list[str], npt.NDArray[np.int64]]:
    """First sentences, second sentences, and int64 [N] whether the second follows the first in its paragraph.

    It does in half of the pairs; otherwise it is a sentence of any paragraph. Each sentence but a paragraph's last is a
    first one once."""
    first = [sentence for paragraph in paragraphs for sentence in paragraph[:-1]]
    second = [sentence for paragraph in paragraphs for sentence in paragraph[1:]]
    follows = rng.random(len(first)) < 0.5
    chosen = rng.integers(0, max(1, len(paragraphs)), len(first))
    for i in np.flatnonzero(~follows):
        paragraph = paragraphs[chosen[i]]
        second[i] = paragraph[int(rng.integers(len(paragraph)))]
    return first, second, follows.astype(np.int64)


def mask_tokens(
    encoded: EncodedTexts, tokenizer: Tokenizer, rng: np.random.Generator, whole_words: bool = False
) -> EncodedTexts:
    """Sequences with 15 % of their tokens, at least one, to be predicted: of these 80 % become `<mask>`, 10 % a random
    token, 10 % stay. Labels, int64 [total]: the token's own id, NOT_MASKED for others; at `<cls>` the label of the
    sequence that `encoded` has, whether the second sentence follows.

    whole_words   choose words instead of tokens: a piece "##s" goes with its word, as far as the 15 % allow
    """
    ids, lengths = encoded.ids.numpy(), encoded.lengths.numpy()
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    free = (ids != tokenizer.cls_id) & (ids != tokenizer.sep_id) & (ids != tokenizer.pad_id)
    starts = free.copy()
    if whole_words:
        texts = (str(tokenizer.id_to_token(i)) for i in range(len(tokenizer)))
        continues = np.fromiter((text.startswith("##") for text in texts), bool, len(tokenizer))
        starts &= ~(continues[ids] & np.roll(free, 1))
    word = np.cumsum(starts) - 1  # of each free token, from 0
    tokens = np.flatnonzero(free)
    order = tokens[np.lexsort((tokens, rng.random(int(starts.sum()))[word[tokens]], sequence[tokens]))]
    # In this order words are chosen until the next one would exceed the sequence's number; the first one always is.
    of_sequence = np.bincount(sequence[order], minlength=len(lengths))
    rank = np.arange(len(order)) - np.repeat(of_sequence.cumsum() - of_sequence, of_sequence)
    begins = np.flatnonzero(np.diff(word[order], prepend=-1))
    sizes = np.diff(begins, append=len(order))
    last_rank = np.repeat(rank[begins] + sizes - 1, sizes)
    limit = np.maximum(1, np.round(lengths * _SHARE))[sequence[order]]
    masked = np.sort(order[(last_rank < limit) | (np.repeat(rank[begins], sizes) == 0)])

    labels = np.full(len(ids), NOT_MASKED, np.int64)
    labels[masked] = ids[masked]
    if encoded.labels is not None:
        labels[encoded.offsets[:-1].numpy()] = encoded.labels.numpy()
    draw, changed = rng.random(len(masked)), ids.copy()
    changed[masked[draw < 0.8]] = _mask_id(tokenizer)
    random = masked[draw >= 0.9]
    changed[random] = rng.integers(0, len(tokenizer), len(random))
    return EncodedTexts(
        torch.from_numpy(changed), encoded.offsets, encoded.first_lens, torch.from_numpy(labels),
        pad_id=encoded.pad_id, max_len=encoded.max_len,
    )  # fmt: skip


def _mask_id(tokenizer: Tokenizer) -> int:
    if isinstance(tokenizer, WordPieceTokenizer):
        return tokenizer.mask_id
    index = tokenizer.token_to_id("<mask>")
    if index == tokenizer.unk_id:
        raise ValueError("the vocabulary lacks <mask>: build it with WordTokenizer.from_texts")
    return index


def encode_paragraphs(
    tokenizer: Tokenizer | Vocab,
    paragraphs: Sequence[Sequence[str]],
    max_len: int = 128,
    *,
    whole_words: bool = False,
    copies: int = 1,
    seed: int = 0,
) -> EncodedTexts:
    """Sequences for a BERTPretrainer, of paragraphs that are lists of sentences.

    copies   how often each sentence is a first one, with another mask and perhaps another second one

    Raises ValueError if no paragraph has two sentences.
    """
    tokenizer, rng = as_tokenizer(tokenizer), np.random.default_rng(seed)
    paragraphs = [paragraph for paragraph in paragraphs if len(paragraph)]
    pairs = [sentence_pairs(paragraphs, rng) for _ in range(copies)]
    first, second = ([text for pair in pairs for text in pair[side]] for side in (0, 1))
    if not first:
        raise ValueError("no paragraph has two sentences: next sentences cannot be learnt")
    follows = np.concatenate([pair[2] for pair in pairs])
    encoded = tokenizer.encode_pairs(first, second, max_len, labels=torch.from_numpy(follows))
    return mask_tokens(encoded, tokenizer, rng, whole_words)


class BERTPretrainer(Head):
    """The pretraining heads of a BERTModel as a head for `fit`; the model is trained in place. Data: `mask_tokens`.

    Only masked tokens are projected to the vocabulary. The loss of a batch is D2L's: the mean over masked tokens plus
    the mean over next sentences. Raises ValueError for a model without pretraining heads.

    Outputs, [R, 2] of `<cls>` and masked tokens: the loss of each, and whether the prediction is correct.
    """

    metric = "masked_accuracy"

    def __init__(self, bert: BERTModel) -> None:
        super().__init__(bert, 1, dropout=0.0)
        if bert.mlm is None or bert.nsp is None:
            raise ValueError("the model has no pretraining heads: make it with pretraining_heads=True")
        self.mlm, self.nsp = bert.mlm, bert.nsp
        self.carried = {}
        self.output = cast(nn.Linear, nn.Identity())

    def token_index(self, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        return (batch.labels != NOT_MASKED).nonzero().squeeze(1)

    def forward(self, inputs: PackedBatch | Sequence[Tensor]) -> Tensor:
        if not isinstance(inputs, PackedBatch) or inputs.labels is None:
            raise TypeError("a BERTPretrainer takes a PackedBatch with labels, as encode_paragraphs makes them")
        index = self.token_index(inputs)
        vectors = self.encoder(inputs, rows=index)  # (R, H)
        labels, is_cls = inputs.labels[index], inputs.positions[index] == 0
        outputs: Tensor = vectors.new_zeros(len(index), 2)
        for rows, scores in (
            (is_cls, self.nsp(self.hidden(vectors[is_cls]))),
            (~is_cls, self.mlm.mlp(vectors[~is_cls])),
        ):
            losses = F.cross_entropy(scores, labels[rows], reduction="none")
            correct = scores.detach().argmax(1) == labels[rows]
            outputs = outputs.masked_scatter(rows[:, None], torch.stack([losses, correct.to(losses)], 1))
        return outputs

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """The summed loss of masked tokens, and the mean of next sentences as often: their number divides both."""
        is_cls = batch.positions[self.token_index(batch)] == 0
        masked = outputs[~is_cls, 0]
        return masked.sum() + outputs[is_cls, 0].mean() * len(masked)

    def num_targets(self, batch: PackedBatch) -> int:
        return len(self.token_index(batch)) - len(batch)

    def num_correct(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        return outputs[batch.positions[self.token_index(batch)] > 0, 1].sum().long()

    def label_error(self, labels: Tensor) -> str | None:
        if labels.dtype != torch.int64 or labels.dim() != 1:
            return "labels that are not those of tokens, as encode_paragraphs makes them"
        low, high = int(labels[labels != NOT_MASKED].min()), int(labels.max())
        if low < 0 or high >= self.config.vocab_size:
            return f"labels from {low} to {high}; the model has {self.config.vocab_size} tokens"
        return None

    def metrics(self, outputs: Tensor, data: EncodedTexts) -> dict[str, Any]:
        labels, is_cls = data.labels, torch.zeros(len(data.ids), dtype=torch.bool)
        assert labels is not None
        is_cls[data.offsets[:-1]] = True
        is_cls = is_cls[labels != NOT_MASKED]
        masked, pairs = outputs[~is_cls].double().mean(0).tolist(), outputs[is_cls].double().mean(0).tolist()
        return {
            "masked_loss": masked[0], "masked_accuracy": masked[1],
            "next_sentence_loss": pairs[0], "next_sentence_accuracy": pairs[1],
        }  # fmt: skip
