"""Tagging: one class for each word of sentences that are lists of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.data.columns import sequence_of
from bertnli.data.conll import WordData
from bertnli.tasks.base import Head, class_label_error
from bertnli.text.batch import PackedBatch, ragged_index
from bertnli.text.encoded import EncodedTexts, Index, index_array, sequences_of
from bertnli.text.tokenizer import Tokenizer, Truncation

NOT_READ = -100  # label of tokens that begin no word
UNKNOWN = -1  # label of a word without a tag


@dataclass(frozen=True)
class EncodedWords:
    """Encoded sentences of words.

    encoded   sequences `<cls> pieces <sep>`; labels int64 [total]: a word's tag at its first piece, else NOT_READ. A
              long sentence has several sequences. Each word is in one of them, in order
    begins    int64 [M+1]   sentence i has the sequences begins[i] to begins[i+1]
    words     int64 [M]   number of words of each sentence
    """

    encoded: EncodedTexts
    begins: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def select(self, index: Index) -> EncodedWords:
        """A copy of some sentences, in the order given."""
        chosen = torch.from_numpy(index_array(index))
        sequences, begins = sequences_of(self.begins, chosen)
        return EncodedWords(self.encoded.select(sequences), begins, self.words[chosen])


def encode_words(tokenizer: Tokenizer, data: WordData, max_len: int = 128) -> EncodedWords:
    """Encode sentences in sequences of at most `max_len` tokens; a longer sentence continues in another sequence.

    Each word is tokenized by itself, as `transformers` does with `is_split_into_words=True`. A word without pieces (a
    control character) becomes the unknown token, so that it has a prediction too. A word of more than `max_len - 2`
    pieces loses its last ones. Raises ValueError for `max_len` below 3.
    """
    if max_len < 3:
        raise ValueError(f"max_len must be at least 3; found {max_len}")
    tokens = tokenizer.encode_texts_with_offsets([word for sentence in data.sentences for word in sentence])
    whole = tokens.offsets.diff()
    pieces = whole.clamp(1, max_len - 2)  # of each word
    source = torch.cat([tokens.ids, tokens.ids.new_tensor([tokenizer.unk_id])])
    first_pieces = tokens.offsets[:-1].masked_fill(whole == 0, len(tokens.ids))
    ids = source[ragged_index(first_pieces, pieces)].numpy()
    ends = np.concatenate([[0], pieces.numpy().cumsum()])  # [words + 1]: word w has the pieces ends[w] to ends[w + 1]

    words = np.array([len(sentence) for sentence in data.sentences], np.int64)
    bounds, begins = [0], [0]  # sequence i has the words bounds[i] to bounds[i + 1]
    for count in words.tolist():
        begin = bounds[-1]
        while True:
            room = np.searchsorted(ends, ends[begin] + max_len - 2, side="right") - 1
            begin = min(int(room), bounds[-1] + count) if count else begin
            count -= begin - bounds[-1]
            bounds.append(begin)
            if not count:
                break
        begins.append(len(bounds) - 1)
    lengths = np.diff(ends[bounds]) + 2
    offsets = np.concatenate([[0], lengths.cumsum()])
    filled = np.full(offsets[-1], tokenizer.cls_id, np.int32)
    filled[offsets[1:] - 1] = tokenizer.sep_id
    inner = np.ones(len(filled), bool)
    inner[offsets[:-1]] = inner[offsets[1:] - 1] = False
    filled[inner] = ids
    labels = np.full(len(filled), NOT_READ, np.int64)
    tags = UNKNOWN if data.tags is None else np.array([tag for tags in data.tags for tag in tags], np.int64)
    labels[np.flatnonzero(inner)[ends[:-1]]] = tags
    pairs = EncodedTexts(
        torch.from_numpy(filled),
        torch.from_numpy(offsets),
        torch.from_numpy(lengths.astype(np.int32)),
        torch.from_numpy(labels),
        pad_id=tokenizer.pad_id,
        max_len=max_len,
    )
    return EncodedWords(pairs, torch.tensor(begins), torch.from_numpy(words))


class BERTTagger(Head):
    """One of `num_labels` tags for each word, from the vector of its first piece.

    Data: EncodedWords. Metrics: word accuracy; if the tags are of entities ("B-person"), precision, recall and F1 of
    whole entities. Arguments: see Head.
    """

    task = "tagging"
    pooled = False
    ignored = NOT_READ
    fields = (("words",),)

    @property
    def metric(self) -> str:  # type: ignore[override]
        """F1 of whole entities if the tags are of entities, else word accuracy."""
        return "f1" if self.entities else "accuracy"

    @property
    def entities(self) -> bool:
        """Whether the tags are of entities."""
        return any(name.startswith(("B-", "I-")) for name in self.label_names or ())

    def token_index(self, batch: PackedBatch) -> Tensor | None:
        """The first pieces of words; all tokens if the batch has no labels, and in training on a GPU, where finding
        them would wait for the device."""
        if batch.labels is None or (self.training and batch.device.type == "cuda"):
            return None
        if batch.labels.shape != batch.input_ids.shape:
            raise ValueError(
                f"a tagger needs a label a token, shape [{len(batch.input_ids)}]; found shape "
                f"{list(batch.labels.shape)}. Encode the words with encode_words"
            )
        return (batch.labels != NOT_READ).nonzero().squeeze(1)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        return F.cross_entropy(outputs, _matching_labels(outputs, batch.labels), ignore_index=NOT_READ, reduction="sum")

    def num_targets(self, batch: PackedBatch) -> int:
        return len(_first_piece_labels(batch.labels))

    def num_correct(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        return (outputs.argmax(1) == _matching_labels(outputs, batch.labels)).sum()

    def logits(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        return outputs

    def label_error(self, labels: Tensor) -> str | None:
        read = _first_piece_labels(labels)
        return (
            "words without a tag" if (read == UNKNOWN).any() else class_label_error(read, 1, self.output.out_features)
        )

    def metrics(self, outputs: Tensor, data: EncodedWords) -> dict[str, Any]:
        guess, truth = outputs.argmax(1), _first_piece_labels(data.encoded.labels)
        figures: dict[str, Any] = {"examples": len(data), "words": len(truth)}
        figures["accuracy"] = float((guess == truth).float().mean())
        if self.entities:
            figures.update(entity_metrics(self._names(truth, data), self._names(guess, data)))
        return figures

    def predictions(self, outputs: Tensor, data: EncodedWords) -> list[list[str]]:
        """The tags of each sentence's words."""
        return self._names(outputs.argmax(1), data)

    def encode(
        self,
        tokenizer: Tokenizer,
        data: WordData,
        max_len: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> EncodedWords:
        """Encode sentences of words: see `encode_words`. `truncation` has no effect, since long sentences continue in
        another sequence."""
        return encode_words(tokenizer, data, self.sequence_len(max_len))

    def inputs(self, *texts: Any) -> WordData:
        """Unlabelled data of `predict`'s arguments: one sequence of sentences, each a sequence of words."""
        sentences = texts[0] if isinstance(texts[0], str) else sequence_of(texts[0])
        if isinstance(sentences, str) or any(isinstance(sentence, str) for sentence in sentences):
            raise TypeError("a tagger takes sentences that are lists of words")
        return WordData(sentences, None)

    def _names(self, tags: Tensor, data: EncodedWords) -> list[list[str]]:
        names = self.label_names or tuple(str(i) for i in range(self.output.out_features))
        flat = [names[i] for i in tags.tolist()]
        bounds = [0, *data.words.cumsum(0).tolist()]
        return [flat[begin:end] for begin, end in pairwise(bounds)]


def _matching_labels(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """The labels of the tokens that the outputs belong to: all, or those of first pieces."""
    assert labels is not None
    return labels if len(outputs) == len(labels) else _first_piece_labels(labels)


def _first_piece_labels(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels[labels != NOT_READ]


def entities_of(tags: Iterable[str]) -> list[tuple[str, int, int]]:
    """The entities (type, first word, last word) of one sentence's tags, by seqeval's default rules.

    A tag is a letter, "-" and a type. B and S begin an entity; so does any letter after O, E or S, or with another type
    than before. E and S end one. A stray "I-x" begins an entity.
    """
    entities: list[tuple[str, int, int]] = []
    begin, last, kind = -1, "O", ""  # first word of the open entity (-1: none), letter and type of the previous word
    for i, tag in enumerate([*tags, "O"]):
        letter, _, name = tag.partition("-")
        name = name or "_"
        outside = letter == "O"
        if begin >= 0 and (outside or letter in "BS" or last in "ES" or name != kind):
            entities.append((kind, begin, i - 1))
            begin = -1
        if not outside and begin < 0:
            begin = i
        last, kind = letter, name
    return entities


def entity_metrics(truth: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of whole entities over all sentences, and of each type; 0 where there are none."""
    sets = [
        {(kind, i, begin, end) for i, tags in enumerate(side) for kind, begin, end in entities_of(tags)}
        for side in (truth, guess)
    ]

    def figures(true: set[Any], guessed: set[Any]) -> dict[str, Any]:
        hits = len(true & guessed)
        both = len(true) + len(guessed)
        return {
            "precision": hits / len(guessed) if guessed else 0.0,
            "recall": hits / len(true) if true else 0.0,
            "f1": 2 * hits / both if both else 0.0,
            "support": len(true),
        }

    kinds = sorted({entity[0] for side in sets for entity in side})
    of_kind = {kind: [{entity for entity in side if entity[0] == kind} for side in sets] for kind in kinds}
    return {**figures(*sets), "per_type": {kind: figures(*sides) for kind, sides in of_kind.items()}}
