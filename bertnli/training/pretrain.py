"""Pretraining of a BERT on one's own text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertnli.data.files import open_text
from bertnli.encoder.bert import BERTModel
from bertnli.tasks.pretraining import BERTPretrainer, encode_paragraphs
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.training.history import History
from bertnli.training.loop import fit
from bertnli.training.options import TrainingOptions


def read_paragraphs(path: Path | str) -> list[list[str]]:
    """The paragraphs of a text file, one a line, as lists of sentences, which end at " . ", or at ".", "!" or "?" and
    white space. Raises what `open_text` does."""
    with open_text(Path(path)) as lines:
        paragraphs = ([s for s in re.split(r"(?<=[.!?])\s+", line.strip()) if s] for line in lines)
        return [paragraph for paragraph in paragraphs if paragraph]


def pretrain(
    bert: BERTModel,
    tokenizer: Tokenizer | Vocab,
    paragraphs: Sequence[Sequence[str]],
    dev: Sequence[Sequence[str]] | None = None,
    options: TrainingOptions | None = None,
    *,
    max_len: int = 128,
    whole_words: bool = False,
    copies: int = 1,
    **changes: Any,
) -> History:
    """Train a BERTModel in place on masked words and next sentences.

        paragraphs = bertnli.read_paragraphs("text.txt")
        tokenizer = WordPieceTokenizer.of_words([sentence for paragraph in paragraphs for sentence in paragraph])
        bert = BERTModel(BERTConfig(len(tokenizer)))  # bert.small
        bertnli.pretrain(bert, tokenizer, paragraphs, epochs=5, lr=5e-4)
        bertnli.save_pretrained(bert, "runs/bert", tokenizer)

    paragraphs    lists of sentences, of texts in their order
    dev           the same, not to be trained on
    max_len       tokens of a pair of sentences at most; longer pairs are truncated
    whole_words   mask whole words instead of pieces
    copies        how often each sentence is used in an epoch, masked in another way
    options       see TrainingOptions; each, and the other arguments of `fit`, can be given by keyword

    Raises ValueError for a model without pretraining heads, and for text without two sentences in a paragraph;
    otherwise as `fit`.
    """
    names = ("device", "progress", "state_file", "callbacks")
    fit_arguments = {name: changes.pop(name) for name in names if name in changes}
    options = (options or TrainingOptions()).changed(changes)
    model, max_len = BERTPretrainer(bert), min(max_len, bert.config.max_len)
    train = encode_paragraphs(tokenizer, paragraphs, max_len, whole_words=whole_words, copies=copies, seed=options.seed)
    dev_data = None if dev is None else encode_paragraphs(tokenizer, dev, max_len, whole_words=whole_words)
    history = fit(model, train, dev_data, options, **fit_arguments)
    bert.provenance["run"] = model.provenance["run"]  # for the model card
    return history
