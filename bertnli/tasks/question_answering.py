"""Question answering: the span of a context that answers a question, or no answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.data.columns import sequence_of
from bertnli.data.squad import QuestionData
from bertnli.encoder.bert import BERTModel
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch, pad
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer, Truncation


@dataclass(frozen=True)
class EncodedQuestions:
    """Sequences `<cls> question <sep> window of the context <sep>`; those of one question follow each other.

    encoded        the sequences; labels int64 [N, 2], the first and last token of the answer in the sequence, 0 and 0
                   if the window does not hold all of it; None if answers are unknown
    begins         int64 [questions + 1]   question i has the sequences begins[i] to begins[i + 1]
    starts, ends   int32 [total]   the token is context[start:end]; -1 outside the context
    data           the questions
    """

    encoded: EncodedTexts
    begins: Tensor
    starts: Tensor
    ends: Tensor
    data: QuestionData

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Answer:
    """The answer to one question: `context[start:end]`, empty for no answer; `score` is the sum of its two outputs."""

    text: str
    start: int
    end: int
    score: float


def encode_questions(
    tokenizer: Tokenizer, data: QuestionData, max_len: int = 384, stride: int = 128, max_question: int = 64
) -> EncodedQuestions:
    """Encode questions in sequences of at most `max_len` tokens: the question's first `max_question`, then a window of
    the context. Further windows of a longer context each repeat the last `stride` tokens of the one before.

    Raises ValueError if a window of a context that needs several has no room for more than `stride` tokens.
    """
    if stride < 0:
        raise ValueError(f"stride must not be negative; found {stride}")
    questions = tokenizer.encode_texts_with_offsets(data.questions)
    place = {context: i for i, context in enumerate(dict.fromkeys(data.contexts))}
    contexts = tokenizer.encode_texts_with_offsets(list(place))
    q_ids, q_offsets = questions.ids.numpy(), questions.offsets.tolist()
    c_ids, c_starts, c_ends = contexts.ids.numpy(), contexts.starts.numpy(), contexts.ends.numpy()
    c_offsets = contexts.offsets.tolist()
    cls_, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    ids: list[npt.NDArray[np.int32]] = []
    spans: list[tuple[int, int, int]] = []  # of each sequence: first context token, number of them, tokens before them
    lengths, first_lens, labels, begins = [], [], [], [0]
    for i, context in enumerate(data.contexts):
        question = q_ids[q_offsets[i] : min(q_offsets[i + 1], q_offsets[i] + max_question)]
        low, high = c_offsets[place[context]], c_offsets[place[context] + 1]
        before = len(question) + 2
        room = max_len - before - 1
        if room < 1 or (high - low > room and room <= stride):
            raise ValueError(
                f"max_len={max_len} leaves {max(0, room)} tokens for the context of question {i}; "
                f"it must be more than stride={stride}"
            )
        answer = None
        if data.answers is not None and data.answers[i]:
            start, text = data.answers[i][0]
            first = low + int(np.searchsorted(c_ends[low:high], start, side="right"))
            last = low + int(np.searchsorted(c_starts[low:high], start + len(text), side="left")) - 1
            answer = (first, last) if first <= last else None
        begin = low
        while True:
            end = min(begin + room, high)
            ids += [cls_, question, sep, c_ids[begin:end], sep]
            spans.append((begin, end - begin, before))
            lengths.append(before + end - begin + 1)
            first_lens.append(before)
            inside = answer is not None and begin <= answer[0] and answer[1] < end
            labels.append([before + token - begin for token in answer] if answer is not None and inside else [0, 0])
            if end == high:
                break
            begin += room - stride
        begins.append(len(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    starts = np.full(offsets[-1], -1, np.int32)
    ends = starts.copy()
    for (begin, count, before), offset in zip(spans, offsets.tolist(), strict=False):
        starts[offset + before : offset + before + count] = c_starts[begin : begin + count]
        ends[offset + before : offset + before + count] = c_ends[begin : begin + count]
    pairs = EncodedTexts(
        torch.from_numpy(np.concatenate(ids) if ids else np.zeros(0, np.int32)),
        torch.from_numpy(offsets),
        torch.tensor(first_lens, dtype=torch.int32),
        None if data.answers is None else torch.tensor(labels, dtype=torch.int64).view(-1, 2),
        pad_id=tokenizer.pad_id,
        max_len=max_len,
    )
    return EncodedQuestions(pairs, torch.tensor(begins), torch.from_numpy(starts), torch.from_numpy(ends), data)


class BERTQuestionAnswering(Head):
    """Scores of each token as the first and as the last of the answer.

    Data: EncodedQuestions. Metrics: exact match and F1 by SQuAD's rules, from 0 to 1. Arguments: see Head.

    settings    stride        tokens that neighbouring windows share
                max_answer    tokens of an answer at most
                no_answer     whether a question may have no answer (SQuAD 2.0). Then no answer is predicted if the
                              score of `<cls>` exceeds the best span's by more than `threshold`
    """

    task = "qa"
    metric = "f1"
    pooled = False
    ignored = -100  # as cross_entropy has it
    max_len = 384
    fields = (("question", "context"),)
    defaults: ClassVar[dict[str, Any]] = {"stride": 128, "max_answer": 30, "no_answer": False, "threshold": 0.0}

    def __init__(
        self,
        bert: BERTModel | Head,
        num_labels: int = 2,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        if num_labels != 2:
            raise ValueError(f"question answering has 2 outputs, not {num_labels}")
        super().__init__(bert, num_labels, label_names, 0.0 if dropout is None else dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """Half the summed cross-entropies of the first and the last token, over the tokens of each sequence."""
        assert batch.labels is not None
        return F.cross_entropy(_by_sequence(outputs, batch), batch.labels, reduction="sum") / 2

    def num_correct(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        return (_by_sequence(outputs, batch).argmax(1) == batch.labels).all(1).sum()

    def logits(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """The scores of each sequence's tokens as the first and as the last, [B, 2, L]."""
        return _by_sequence(outputs, batch).transpose(1, 2)

    def label_error(self, labels: Tensor) -> str | None:
        if labels.dtype != torch.int64 or labels.shape != (len(labels), 2):
            return f"labels of {labels.dtype} and shape {list(labels.shape)}; spans are int64 [N, 2]"
        return None if not labels.numel() or int(labels.min()) >= 0 else "labels below 0"

    def metrics(self, outputs: Tensor, data: EncodedQuestions) -> dict[str, Any]:
        assert data.data.answers is not None
        texts = [[text for _, text in answers] for answers in data.data.answers]
        return answer_metrics([answer.text for answer in self.predictions(outputs, data)], texts)

    def predictions(self, outputs: Tensor, data: EncodedQuestions) -> list[Answer]:
        """Each question's span with the largest sum of its first token's and its last token's score."""
        score, length = best_spans(outputs, data.starts >= 0, data.encoded.offsets, self.settings["max_answer"])
        offsets, cls_score = data.encoded.offsets.tolist(), outputs.sum(1)[data.encoded.offsets[:-1]].tolist()
        answers = []
        for i, context in enumerate(data.data.contexts):
            low, high = int(data.begins[i]), int(data.begins[i + 1])
            begin, end = offsets[low], offsets[high]
            first = begin + int(score[begin:end].argmax())
            best = float(score[first])
            if best == -np.inf or (
                self.settings["no_answer"] and min(cls_score[low:high]) > best + self.settings["threshold"]
            ):
                answers.append(Answer("", 0, 0, min(cls_score[low:high])))
            else:
                start, stop = int(data.starts[first]), int(data.ends[first + int(length[first]) - 1])
                answers.append(Answer(context[start:stop], start, stop, best))
        return answers

    def adapt(self, data: QuestionData) -> None:
        """Keep in `settings` whether questions of the training data may have no answer."""
        super().adapt(data)
        self.settings["no_answer"] = any(not answers for answers in data.answers or ())

    def encode(
        self,
        tokenizer: Tokenizer,
        data: QuestionData,
        max_len: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> EncodedQuestions:
        """Encode questions and contexts: see `encode_questions`. `truncation` has no effect, since long contexts are
        split into windows."""
        return encode_questions(tokenizer, data, self.sequence_len(max_len), self.settings["stride"])

    def inputs(self, *texts: Any) -> QuestionData:
        """Unlabelled data of `predict`'s arguments: questions and contexts; two strings are one of each."""
        questions, contexts = ([side] if isinstance(side, str) else sequence_of(side) for side in texts)
        if len(questions) != len(contexts):
            raise ValueError(f"{len(questions)} questions for {len(contexts)} contexts")
        ids = [str(i) for i in range(len(questions))]
        return QuestionData(questions, contexts, None, ids, ids)


def _by_sequence(outputs: Tensor, batch: PackedBatch) -> Tensor:
    """[T, 2] as [B, L, 2], minus infinity in the padding."""
    padded, valid = pad(outputs, batch.cu_seqlens, batch.max_seqlen)
    return padded.masked_fill(~valid[:, :, None], -torch.inf)


def best_spans(
    outputs: Tensor, allowed: Tensor, offsets: Tensor, max_answer: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """For each token the best sum s_i + e_j of a span i <= j that begins there, and the span's length.

    outputs: [T, 2]; allowed: bool [T], the tokens that spans may hold; offsets: int64 [N + 1], the bounds of the
    sequences, which spans do not cross. The sum is minus infinity at a token where no span may begin.
    """
    first, last = outputs.float().numpy().T
    free = allowed.numpy()
    sequence = np.repeat(np.arange(len(offsets) - 1), offsets.diff().numpy())
    score = np.full(len(first), -np.inf, np.float32)
    length = np.ones(len(first), np.int64)
    for d in range(min(max_answer, len(first))):
        n = len(first) - d
        valid = free[:n] & free[d:] & (sequence[:n] == sequence[d:])
        sums = np.where(valid, first[:n] + last[d:], -np.inf)
        better = sums > score[:n]
        score[:n][better] = sums[better]
        length[:n][better] = d + 1
    return score, length


def normalized(answer: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    letters = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def answer_metrics(guesses: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Exact match and F1 of answers, each against the most similar true one; no true answer means "".

    Means over the questions, from 0 to 1. If some questions have no answer, also over those with and those without.
    """
    exact, f1, answerable = [], [], []
    for guess, truth in zip(guesses, truths, strict=True):
        known = [text for text in truth if normalized(text)] or [""]
        exact.append(max(float(normalized(guess) == normalized(text)) for text in known))
        f1.append(max(_token_f1(guess, text) for text in known))
        answerable.append(bool(truth))

    def figures(keep: bool | None) -> dict[str, Any]:
        chosen = [i for i, has in enumerate(answerable) if keep is None or has == keep]
        return {
            "examples": len(chosen),
            "exact_match": sum(exact[i] for i in chosen) / max(1, len(chosen)),
            "f1": sum(f1[i] for i in chosen) / max(1, len(chosen)),
        }

    if all(answerable):
        return figures(None)
    return {**figures(None), "with_answer": figures(True), "without_answer": figures(False)}


def _token_f1(guess: str, truth: str) -> float:
    a, b = normalized(guess).split(), normalized(truth).split()
    if not a or not b:
        return float(a == b)
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b))
