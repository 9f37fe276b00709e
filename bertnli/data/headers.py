"""Headers of tables: which columns there are, and whether a first row is a header."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from bertnli.data.columns import Table
from bertnli.data.labels import NUMBER, class_index, find_class, is_no_label

_TEXT_HEADER = re.compile(  # usual names of columns of texts, and below of labels
    "(text|sentence|question)s?_?[12ab]?|premise|hypothesis|query|passage|context|review|content|comment|tweet|title|"
    "body|message|document|utterance|words?|tokens?|form",
    re.IGNORECASE,
)
_LABEL_HEADER = re.compile(
    "(gold_)?labels?|label_text|class|category|target|scores?|rating|stars|sentiment|polarity|intent|topic|emotion|"
    "((ner|pos)_)?tags?|ner|similarity|answers?",
    re.IGNORECASE,
)


def is_by_number(columns: Sequence[str]) -> bool:
    """Whether columns are given by number, in a table without a header."""
    return all(name.isdecimal() and int(name) for name in columns)


def looks_like_header(names: Sequence[str]) -> bool:
    """Whether a row of texts, or of texts and a label, has nothing but usual names of such columns."""
    return all(_TEXT_HEADER.fullmatch(name.strip()) or _LABEL_HEADER.fullmatch(name.strip()) for name in names)


def likely_options(names: Sequence[str]) -> str:
    """The options that read a table with these columns, guessed from their names."""
    label = next((name for name in names if _LABEL_HEADER.fullmatch(name)), names[-1] if names else "label")
    others = [name for name in names if name != label]
    texts = [name for name in others if _TEXT_HEADER.fullmatch(name)] or others[:1] or ["text"]
    return f"--text-columns {','.join(texts[:2])} --label-column {label}"


def check_columns(where: object, columns: Sequence[str], present: Sequence[str]) -> None:
    """Raise ValueError for a repeated name among those present, and for a column that is not there."""
    for name, count in Counter(filter(None, present)).items() if len(set(present)) < len(present) else ():
        if count > 1:
            raise ValueError(f"{where}: the column {name!r} is repeated; give each column a name of its own")
    if columns and not any(present):
        raise ValueError(f"{where}: expected a header with the columns {', '.join(map(repr, columns))}; found nothing")
    for name in columns:
        if name not in present:
            raise ValueError(
                f"{where}: there is no column {name!r}{_hint(name, present)}; the columns are "
                f"{', '.join(map(repr, present))}"
            )


def _hint(name: str, present: Sequence[str]) -> str:
    """Why a column may seem to be missing."""
    if name.isdecimal():
        return " (numbers count columns only if all columns, the labels' too, are numbers)"
    for mark in ";\t,|":
        if len(present) == 1 and name in present[0].split(mark):
            return f" (the columns seem to be separated by {mark!r}: give it as the delimiter)"
    return ""


def check_no_header(table: Table, columns: Sequence[str], labelled: bool, label_names: Sequence[str]) -> None:
    """Raise ValueError where the first row of a table whose columns are given by number looks like a header."""
    if not len(table):
        return
    first = [column.texts[0] for column in table.columns]
    is_header = looks_like_header(first) or first in (list(columns), [str(int(name) - 1) for name in columns])
    if labelled and not is_header:
        labels = table.columns[-1]
        index, codes = labels.distinct()
        counts: Counter[str] = Counter()
        for code, i in enumerate(index):
            counts[labels.texts[i].strip()] += int((codes[1:] == code).sum())
        label, others = first[-1].strip(), +counts
        found = [other for other in others if not is_no_label(other, real=True)]
        if label not in others and find_class(class_index(label_names), label) is None:
            is_header = (
                _LABEL_HEADER.fullmatch(label) is not None
                or (bool(found) and not NUMBER.fullmatch(label) and all(map(NUMBER.fullmatch, found))
                    and not is_no_label(label, real=True))
                or (len(table) > 10 and min(others.values()) > 1 and _only_first_has_names(table))
            )  # fmt: skip
    if is_header:
        raise ValueError(
            f"{table.place(0)}: {', '.join(map(repr, first))} looks like a header, but the columns are given by "
            "number. Give them by name, or remove the line; if it is an example, name its class in label_names "
            "(--labels)"
        )


def _only_first_has_names(table: Table) -> bool:
    """Whether the first row alone has identifiers only."""
    rows = zip(*(column.texts for column in table.columns), strict=True)
    named = [all(map(str.isidentifier, row)) for row in rows]
    return named[0] and not any(named[1:])
