"""Which words carried a prediction: integrated gradients of an output by the token embeddings."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bertnli.data.extras import from_extra
from bertnli.data.texts import TextData
from bertnli.inference.predict import encode_inputs
from bertnli.runtime.eval_mode import eval_mode
from bertnli.tasks.base import Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.regression import BERTRegressor
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import space_out_data

TOLERANCE, LEAST = 0.01, 1e-3  # of the sum of the scores: a share of what it should be, and in outputs
_STEPS, _MOST_STEPS = 32, 512  # of the integral
_TOKENS = 8192  # that are computed at a time


@dataclass(frozen=True)
class Word:
    """A word that the model read, and what it added to the output.

    text, start, end   the word is text[start:end] of its text, in characters; a mark of punctuation is a word
    part               0 for the first text (premise), 1 for the second (hypothesis)
    score              above 0 it spoke for the target, below 0 against it
    """

    text: str
    start: int
    end: int
    part: int
    score: float


@dataclass(frozen=True)
class Explanation:
    """The words behind one output of a model. A notebook shows the texts with the words coloured.

    texts      the text, or premise and hypothesis
    target     name of the output; of a regressor with one output None
    output     the output that is explained: a class's before softmax or sigmoid
    baseline   the same output where each token of the texts is the padding token
    words      the words that were read, in order; their scores sum to output - baseline, but for `error`
    """

    texts: tuple[str, ...]
    target: str | None
    output: float
    baseline: float
    words: tuple[Word, ...]

    @property
    def error(self) -> float:
        """What the integral's steps leave out: output - baseline - the sum of the scores."""
        return self.output - self.baseline - sum(word.score for word in self.words)

    def _repr_html_(self) -> str:
        largest = max((abs(word.score) for word in self.words), default=0.0) or 1.0
        shown = f"{self.output:.3f}, without the words {self.baseline:.3f}"
        title = f"output {shown}" if self.target is None else f"<b>{html.escape(self.target)}</b>: output {shown}"
        parts = [
            f'<p style="line-height: 1.9; white-space: pre-wrap">{_coloured(text, words, largest)}</p>'
            for part, text in enumerate(self.texts)
            for words in [[word for word in self.words if word.part == part]]
        ]
        return f"<p>{title} (blue words spoke for it, red ones against it)</p>{''.join(parts)}"


def _coloured(text: str, words: Sequence[Word], largest: float) -> str:
    """The text with each word on blue if it spoke for the target, on red if against it."""
    pieces, place = [], 0
    for word in words:
        colour = "37 99 235" if word.score > 0 else "220 38 38"
        style = f"background: rgb({colour} / {0.7 * abs(word.score) / largest:.2f}); border-radius: .2em; padding: .1em"
        pieces.append(html.escape(text[place : word.start]))
        pieces.append(f'<span style="{style}" title="{word.score:+.4f}">{html.escape(word.text)}</span>')
        place = word.end
    return "".join([*pieces, html.escape(text[place:])])


def explain(
    head: Head,
    tokenizer: Tokenizer,
    *texts: str,
    target: str | int | None = None,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
) -> Explanation:
    """Explain an output of a classifier or regressor by integrated gradients (captum, extra `explain`), in float32.

    texts       a text, or premise and hypothesis
    target      class to explain, by name or index (default: that of the largest output)
    max_len, truncation    see `predict`

    The gradient is integrated from padding tokens to the texts' own, `<cls>` and `<sep>` in their places, in as many
    steps as it takes for the scores to sum to the difference of the outputs within 1 % and 0.001 (at most 512).

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017.

    Raises ImportError without captum, ValueError for other heads, for texts in windows and for an unknown target.
    """
    with from_extra("explain", "explain"):
        from captum.attr import LayerIntegratedGradients
    if not isinstance(head, BERTClassifier | BERTRegressor):
        raise ValueError(f"explain is for classifiers and regressors; this is a {type(head).__name__}")
    encoded = encode_inputs(head, tokenizer, *texts, max_len=max_len, truncation=truncation)
    if not isinstance(encoded, EncodedTexts):
        raise ValueError('explain reads one sequence a text; the model splits texts (settings["windows"])')
    device = head.encoder.pos_embedding.device
    ids, segments = (x.to(device) for x in encoded.to_padded(int(encoded.lengths[0]))[:2])

    def outputs(tokens: Tensor, segments: Tensor) -> Tensor:
        return head((tokens, segments, tokens.new_full((len(tokens),), tokens.shape[1]))).float()  # type: ignore[no-any-return]

    special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id)
    baseline = torch.where(special, ids, tokenizer.pad_id)
    with eval_mode(head, include_encoder=True):
        with torch.no_grad():
            found, without = outputs(ids, segments)[0], outputs(baseline, segments)[0]
        column = _column(head, found, target)
        attribute = LayerIntegratedGradients(outputs, head.encoder.token_embedding).attribute
        difference, steps = float(found[column] - without[column]), _STEPS
        while True:
            scores = attribute(
                ids, baseline, target=column, additional_forward_args=(segments,), n_steps=steps,
                internal_batch_size=max(1, _TOKENS // ids.shape[1]),
            ).sum(1)  # fmt: skip
            missing = abs(difference - float(scores.sum()))
            if missing <= TOLERANCE * abs(difference) + LEAST or steps == _MOST_STEPS:
                break
            steps *= 2
    names = head.label_names or tuple(map(str, range(len(found))))
    name = names[column] if isinstance(head, BERTClassifier) or len(found) > 1 else None
    words = _words(tokenizer, texts, encoded, scores.detach().cpu())
    return Explanation(texts, name, float(found[column]), float(without[column]), words)


def _column(head: Head, outputs: Tensor, target: str | int | None) -> int:
    """The column of the outputs [num_labels] that `target` names."""
    names = head.label_names or ()
    if target is None:
        return int(outputs.argmax())
    if isinstance(target, str):
        if target not in names:
            raise ValueError(
                f"the model has no class {target!r}; its classes are {', '.join(names) or 'without names'}"
            )
        return names.index(target)
    if not 0 <= target < len(outputs):
        raise ValueError(f"target must lie between 0 and {len(outputs) - 1}; found {target}")
    return target


def _words(tokenizer: Tokenizer, texts: Sequence[str], encoded: EncodedTexts, scores: Tensor) -> tuple[Word, ...]:
    """The words of the texts that the sequence holds, with the sums of their tokens' scores [T]."""
    data = TextData(texts[:1], texts[1:] or None, None)
    read = space_out_data(data, tokenizer.vocab) if isinstance(tokenizer, WordTokenizer) else data
    first = int(encoded.first_lens[0])
    found: list[Word] = []
    for part, (text, (spaced,)) in enumerate(zip(texts, (read.first, read.second or ()), strict=False)):
        tokens = tokenizer.encode_texts_with_offsets([spaced])
        begin, end = (1, first - 1) if part == 0 else (first, len(scores) - 1)  # between <cls> and <sep>; cut texts
        starts, ends = _places(text, spaced, tokens.starts.tolist(), tokens.ends.tolist())
        of_part = zip(tokens.word_ids.tolist(), starts, ends, scores[begin:end].tolist(), strict=False)
        for _, group in groupby(of_part, key=lambda token: token[0]):
            pieces = list(group)
            start, stop = pieces[0][1], pieces[-1][2]
            found.append(Word(text[start:stop], start, stop, part, sum(piece[3] for piece in pieces)))
    return tuple(found)


def _places(text: str, spaced: str, starts: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    """Places in `spaced`, which has other white space, as places in `text`."""
    if text == spaced:
        return starts, ends
    own = [i for i, c in enumerate(text) if not c.isspace()]
    nth = [0]
    for c in spaced:
        nth.append(nth[-1] + (not c.isspace()))
    return [own[nth[start]] for start in starts], [own[nth[end - 1]] + 1 for end in ends]
