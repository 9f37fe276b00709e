"""Tiny examples and models of every task, over a vocabulary of eight words."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from bertnli import (
    BERTConfig,
    BERTModel,
    Head,
    QuestionData,
    TextData,
    WordData,
    WordPieceTokenizer,
)
from bertnli.tasks.base import HEADS

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five"]
PIECES = [*WordPieceTokenizer.SPECIAL, *WORDS, "##s", "never", "r", "##e", "##d"]
NAMES = ("none", "some")


def texts(n: int, seed: int = 0) -> TextData:
    """Pairs; the class is whether a colour of the first text returns in the second."""
    rng = random.Random(seed)
    first = [rng.choices(WORDS, k=4) for _ in range(n)]
    second = [rng.choices(WORDS, k=3) for _ in range(n)]
    labels = [int(bool({"red", "green", "blue"} & set(a) & set(b))) for a, b in zip(first, second, strict=True)]
    return TextData([" ".join(a) for a in first], [" ".join(b) for b in second], labels, NAMES)


def words(n: int, seed: int = 0) -> WordData:
    """Sentences whose colours are tagged."""
    rng = random.Random(seed)
    sentences = [rng.choices(WORDS, k=rng.randint(0, 6)) for _ in range(n)]
    tags = [[int(word in WORDS[:3]) for word in sentence] for sentence in sentences]
    return WordData(sentences, tags, NAMES)


def questions(n: int, seed: int = 0) -> QuestionData:
    """Which word stands after that of the question?"""
    rng = random.Random(seed)
    contexts = [rng.sample(WORDS, k=rng.randint(3, 8)) for _ in range(n)]
    places = [rng.randrange(1, len(context)) for context in contexts]
    answers = [[(len(" ".join(c[:i])) + 1, c[i])] for c, i in zip(contexts, places, strict=True)]
    asked = [c[i - 1] for c, i in zip(contexts, places, strict=True)]
    ids = [str(i) for i in range(n)]
    return QuestionData(asked, [" ".join(c) for c in contexts], answers, ids, ids)


def scores(n: int, seed: int = 0) -> TextData:
    """The pairs again, with reals for classes."""
    data = texts(n, seed)
    return replace(data, labels=[0.5 * label for label in data.labels or ()], label_names=())


def several(n: int, seed: int = 0) -> TextData:
    """The pairs again: two classes of which each has one."""
    data = texts(n, seed)
    return replace(data, labels=[[1 - label, label] for label in data.labels or ()])


# Of each task its examples, and the same without what is to be learnt.
TASKS: dict[str, Any] = {
    "classification": (texts, lambda data: TextData.of(data.first, data.second)),
    "regression": (scores, lambda data: TextData.of(data.first, data.second)),
    "multilabel": (several, lambda data: TextData.of(data.first, data.second)),
    "tagging": (words, lambda data: WordData(data.sentences, None)),
    "qa": (questions, lambda data: replace(data, answers=None)),
}


def teacher(task: str = "classification", hidden: int = 64, dropout: float = 0.1) -> Head:
    torch.manual_seed(0)
    config = BERTConfig.original(
        len(PIECES), num_hiddens=hidden, ffn_num_hiddens=96, num_heads=2, num_layers=3, max_len=32, dropout=dropout
    )
    bert = BERTModel(config)
    return HEADS[task](bert, 2, NAMES) if task in ("classification", "multilabel", "tagging") else HEADS[task](bert)
