"""Questions on contexts: files in the layout of SQuAD."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

from bertnli.data.source import Source
from bertnli.data.texts import check_unicode


@dataclass(frozen=True)
class QuestionData:
    """Questions on contexts: the examples of question answering.

    questions, contexts   N texts each
    answers               the known answers of each question as (first character in the context, text), an empty list
                          where the context has no answer; None where answers are unknown
    ids, titles           N strings each; the title is the article's
    """

    questions: Sequence[str]
    contexts: Sequence[str]
    answers: Sequence[Sequence[tuple[int, str]]] | None
    ids: Sequence[str]
    titles: Sequence[str]
    label_names: ClassVar[tuple[str, ...]] = ()
    dropped: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, part: slice) -> QuestionData:
        """The questions of a slice."""
        return self._map(lambda values: values[part])

    def where(self, keep: Callable[[str], bool]) -> QuestionData:
        """The questions on articles for whose title `keep` returns True."""
        chosen = [i for i, title in enumerate(self.titles) if keep(title)]
        return self._map(lambda values: [values[i] for i in chosen])

    def _map(self, f: Callable[[Any], Any]) -> QuestionData:
        answers = None if self.answers is None else f(self.answers)
        return QuestionData(f(self.questions), f(self.contexts), answers, f(self.ids), f(self.titles))


def read_squad(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> QuestionData:
    """Read a file in the layout of SQuAD 1.1 or 2.0.

    A question has no answer if it `is_impossible`, or if its answers are missing, null, empty, or of empty texts.
    Answers may also be as in Hugging Face's `squad`: {"text": [...], "answer_start": [...]}.

    path        may have .gz or .zst behind its suffix
    encoding    of the text, by Python's name (default: "utf-8")

    Raises FileNotFoundError, and ValueError naming the file and the keys for another layout, an id that is there twice,
    or an answer that is not at its place in the context.
    """
    source = Source(path, encoding)
    return questions_of(read_whole(source), source.path)


def read_whole(source: Source) -> Any:
    """The value of a JSON file."""
    with source.text_lines() as lines:
        content = "".join(lines)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{source.path}: expected a JSON object with "data", as SQuAD has it: {error}') from None


def is_squad(source: Source) -> bool:
    """Whether a file is in SQuAD's layout, not JSON lines, an array, or of another kind."""
    if source.suffix != ".json" or not source.first_line(most=1)[1].startswith(b"{"):
        return False
    try:
        return "data" in json.loads(source.first_line()[1])
    except ValueError:
        return True  # an object of several lines


def questions_of(whole: Any, path: Path) -> QuestionData:
    """The questions of a file's JSON value: see `read_squad`."""
    questions: list[str] = []
    contexts, answers, titles = [], [], []
    ids: dict[str, str] = {}  # and their places
    for article, place in _items(whole, f"{path}: ", "data"):
        for paragraph, paragraph_place in _items(article, place, "paragraphs"):
            context = _text(paragraph, paragraph_place, "context")
            for question, question_place in _items(paragraph, paragraph_place, "qas"):
                questions.append(_text(question, question_place, "question"))
                contexts.append(context)
                identity = _text(question, question_place, "id")
                if identity in ids:
                    raise ValueError(f"{question_place}id is {identity!r}, as {ids[identity]}id; ids must differ")
                ids[identity] = question_place.removeprefix(f"{path}: ")
                titles.append(str(article.get("title") or ""))
                answers.append(_known_answers(question, question_place, context))
    if not questions:
        raise ValueError(f"{path} has no questions")
    return QuestionData(questions, contexts, answers, list(ids), titles)


def with_predictions(whole: Any, predictions: Sequence[Any]) -> Any:
    """The JSON value of a SQuAD file with a key "prediction" in each of its questions, in place."""
    found = iter(predictions)
    for article in whole["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["prediction"] = next(found)
    return whole


def _items(parent: Any, place: str, key: str) -> Iterator[tuple[Any, str]]:
    """The items of the list at `key`, and the place of each as a prefix for a further key."""
    items = _value(parent, place, key)
    if not isinstance(items, list):
        raise ValueError(f"{place}{key} is not as in SQuAD: expected a list, found {_shown(items)}")
    return ((item, f"{place}{key}[{i}].") for i, item in enumerate(items))


def _value(parent: Any, place: str, key: str) -> Any:
    if not isinstance(parent, Mapping) or key not in parent:
        found = f"the keys {', '.join(map(str, parent))}" if isinstance(parent, Mapping) else _shown(parent)
        raise ValueError(f"{place}{key} is missing: expected an object with {key!r}, as in SQuAD; found {found}")
    return parent[key]


def _text(parent: Any, place: str, key: str) -> str:
    value = _value(parent, place, key)
    if key == "id" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{place}{key} is not as in SQuAD: expected a text, found {_shown(value)}")
    check_unicode(value, f"{place}{key}")
    return value


def _known_answers(question: dict[str, Any], place: str, context: str) -> list[tuple[int, str]]:
    impossible = question.get("is_impossible")
    if impossible not in (None, False, True):
        raise ValueError(f"{place}is_impossible is not as in SQuAD: expected true or false, found {_shown(impossible)}")
    return [] if impossible else answer_spans(question.get("answers"), f"{place}answers", context)


def answer_spans(answers: Any, where: str, context: str) -> list[tuple[int, str]]:
    """The answers (first character, text) of SQuAD's list of objects or Hugging Face's object of lists; [] if there are
    none: null, empty, or of empty texts.

    where    their place, for errors. Raises ValueError for another layout, or an answer that is not in the context.
    """
    if isinstance(answers, Mapping):
        both = [answers.get(key) for key in ("text", "answer_start")]
        texts, starts = ([] if v is None else [v] if isinstance(v, (str, Real)) else list(v) for v in both)
        if any(texts) and len(texts) != len(starts):
            raise ValueError(f"{where} has {len(texts)} items in text and {len(starts)} in answer_start")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=False)]
    if answers is None:
        return []
    if isinstance(answers, str) or not isinstance(answers, Iterable):
        raise ValueError(f"{where} is not as in SQuAD: expected a list, found {_shown(answers)}")
    spans: list[tuple[int, str]] = []
    for i, answer in enumerate(answers):
        if answer is None or (isinstance(answer, Mapping) and not answer.get("text", True)):
            continue
        place = f"{where}[{i}]"
        text, start = (_value(answer, f"{place}.", key) for key in ("text", "answer_start"))
        if not isinstance(text, str) or not isinstance(start, Real) or not float(start).is_integer():
            raise ValueError(f"{place} is not as in SQuAD: text {_shown(text)}, answer_start {_shown(start)}")
        first = int(float(start))
        if first < 0 or context[first : first + len(text)] != text:
            raise ValueError(f"{place}: the context does not have {text!r} at character {first}")
        spans.append((first, text))
    return spans


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
