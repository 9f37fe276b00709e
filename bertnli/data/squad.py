"""Questions on contexts: files in the layout of SQuAD."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bertnli.data.files import open_text


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


def read_squad(path: str | os.PathLike[str]) -> QuestionData:
    """Read a file in the layout of SQuAD 1.1 or 2.0; questions that 2.0 calls impossible have no answers.

    Raises FileNotFoundError, and ValueError naming the file and the question for another layout or an answer that is
    not at its place in the context.
    """
    path = Path(path)
    with open_text(path) as lines:
        content = "".join(lines)
    try:
        articles = json.loads(content)["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected a JSON object with "data", as SQuAD has it: {error!r}') from None
    questions: list[str] = []
    contexts, answers, ids, titles = [], [], [], []
    where = f"{path}: data"
    try:
        for number, article in enumerate(articles, 1):
            where = f"{path}: article {number}"
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    where = f"{path}: question {len(questions) + 1}"
                    where = f"{path}: question {question['id']!r}"
                    known = [] if question.get("is_impossible") else question["answers"]
                    spans = [(int(answer["answer_start"]), str(answer["text"])) for answer in known]
                    for start, text in spans:
                        if context[start : start + len(text)] != text:
                            raise ValueError(f"the context does not have {text!r} at character {start}")
                    questions.append(str(question["question"]))
                    contexts.append(str(context))
                    answers.append(spans)
                    ids.append(str(question["id"]))
                    titles.append(str(article.get("title", "")))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not as in SQuAD: {error!r}") from None
    if not questions:
        raise ValueError(f"{path} has no questions")
    return QuestionData(questions, contexts, answers, ids, titles)
