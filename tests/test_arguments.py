"""Arguments of wrong types, to every public function that hands them to the extension or reads a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    EncodedTexts,
    InferenceSession,
    TrainingOptions,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    evaluate,
    fit,
    from_pretrained,
    load_pretrained_model,
    predict,
    read_conll,
    read_conllu,
    read_pairs,
    read_snli,
    read_squad,
    read_table,
    save_pretrained,
    score,
)
from bertnli.tasks.load import load_examples

PIECES = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])
WORDS = WordTokenizer(Vocab(["a", "b"], reserved_tokens=WordTokenizer.SPECIAL))
ENCODED = PIECES.encode_pairs(["a"], ["b"], labels=[0])
BERT = BERTModel(BERTConfig(len(PIECES), num_hiddens=64, ffn_num_hiddens=8, num_heads=1, num_layers=1, max_len=64))
HEAD = BERTClassifier(BERT, 2).eval()
WRONG: list[Any] = [
    None, 3, -1, 2**40, 2**70, 1.5, float("nan"), True, "x", b"x", ["a"], [1], [None], [b"a"], [["a"]], (), {},
    {"a": 1}, object(), np.int64(3), np.float32(2), np.array(["a"]), torch.tensor(3), torch.zeros(2), Path("x"),
]  # fmt: skip


def options_with(name: str, value: Any) -> TrainingOptions:
    return TrainingOptions(**{name: value})


def calls(file: Path) -> dict[str, Callable[[Any], Any]]:
    """Calls with one argument to be replaced, by what they are named and the argument's name."""
    return {
        "encode text": lambda v: PIECES.encode(v),
        "encode_pairs premises": lambda v: PIECES.encode_pairs(v, ["a"]),
        "encode_pairs hypotheses": lambda v: WORDS.encode_pairs(["a"], v),
        "encode_pairs max_len": lambda v: WORDS.encode_pairs(["a"], ["a"], v),
        "encode_pairs truncation": lambda v: PIECES.encode_pairs(["a"], ["a"], 8, v),
        "encode_pairs num_threads": lambda v: PIECES.encode_pairs(["a"], ["a"], num_threads=v),
        "encode_pairs labels": lambda v: PIECES.encode_pairs(["a"], ["a"], labels=v),
        "encode_texts texts": lambda v: PIECES.encode_texts(v),
        "encode_texts max_len": lambda v: PIECES.encode_texts(["a"], v),
        "encode_padded premises": lambda v: PIECES.encode_padded(v, ["a"]),
        "encode_padded max_len": lambda v: PIECES.encode_padded(["a"], ["a"], min(v, 64) if isinstance(v, int) else v),
        "encode_padded truncation": lambda v: PIECES.encode_padded(["a"], ["a"], 8, v),
        "encode_file path": lambda v: PIECES.encode_file(v),
        "encode_file max_len": lambda v: PIECES.encode_file(file, v),
        "encode_file truncation": lambda v: PIECES.encode_file(file, 8, v),
        "encode_file num_threads": lambda v: PIECES.encode_file(file, 8, num_threads=v),
        "encode_file columns": lambda v: PIECES.encode_file(file, 8, columns=v),
        "encode_file label_names": lambda v: PIECES.encode_file(file, 8, label_names=v),
        "encode_texts_with_offsets texts": lambda v: PIECES.encode_texts_with_offsets(v),
        "encode_texts_with_offsets num_threads": lambda v: PIECES.encode_texts_with_offsets(["a"], v),
        "decode ids": lambda v: PIECES.decode(v),
        "WordPieceTokenizer tokens": lambda v: WordPieceTokenizer(v),
        "WordPieceTokenizer lowercase": lambda v: WordPieceTokenizer(PIECES.tokens, v),
        "WordPieceTokenizer split_special_tokens": lambda v: WordPieceTokenizer(PIECES.tokens, True, v),
        "WordPieceTokenizer.from_file path": lambda v: WordPieceTokenizer.from_file(v),
        "WordPieceTokenizer.of_characters texts": lambda v: WordPieceTokenizer.of_characters(v),
        "WordPieceTokenizer.of_characters min_freq": lambda v: WordPieceTokenizer.of_characters(["a"], v),
        "WordPieceTokenizer.of_words min_freq": lambda v: WordPieceTokenizer.of_words(["a"], v),
        "WordTokenizer vocab": lambda v: WordTokenizer(v),
        "WordTokenizer.from_texts texts": lambda v: WordTokenizer.from_texts(v),
        "WordTokenizer.from_texts min_freq": lambda v: WordTokenizer.from_texts(["a"], v),
        "Vocab.from_json path": lambda v: Vocab.from_json(v),
        "batch index": lambda v: ENCODED.batch(v),
        "to_padded max_len": lambda v: ENCODED.to_padded(min(v, 64) if isinstance(v, int) else v),
        "to_padded index": lambda v: ENCODED.to_padded(8, v),
        "EncodedTexts.load path": lambda v: EncodedTexts.load(v),
        "read_pairs path": lambda v: read_pairs(v),
        "read_pairs columns": lambda v: read_pairs(file, v),
        "read_pairs label_names": lambda v: read_pairs(file, "text", v),
        "read_snli data_dir": lambda v: read_snli(v),
        "read_snli split": lambda v: read_snli(file, split=v, columns="text"),
        "read_table path": lambda v: read_table(v, "sentence1", "label"),
        "read_table text": lambda v: read_table(file, v, "label"),
        "read_table label": lambda v: read_table(file, "sentence1", v),
        "read_table label_names": lambda v: read_table(file, "sentence1", "label", v),
        "read_conll path": lambda v: read_conll(v),
        "read_conll word": lambda v: read_conll(file, word=v),
        "read_conll tag": lambda v: read_conll(file, tag=v),
        "read_conllu path": lambda v: read_conllu(v),
        "read_squad path": lambda v: read_squad(v),
        "load_examples path": lambda v: load_examples(v),
        "from_pretrained checkpoint": lambda v: from_pretrained(v, folder=file.parent),
        "load_pretrained_model checkpoint": lambda v: load_pretrained_model(v, folder=file.parent),
        "save_pretrained folder": lambda v: save_pretrained(HEAD, v, PIECES),
        "save_pretrained format": lambda v: save_pretrained(HEAD, file.parent / "out", PIECES, format=v),
        "save_pretrained model": lambda v: save_pretrained(v, file.parent / "out", PIECES),
        "save_pretrained tokenizer": lambda v: save_pretrained(HEAD, file.parent / "out", v),
        "predict model": lambda v: predict(v, PIECES, ["a"], ["b"]),
        "predict tokenizer": lambda v: predict(HEAD, v, ["a"], ["b"]),
        "predict precision": lambda v: predict(HEAD, PIECES, ["a"], ["b"], precision=v),
        "predict batch_size": lambda v: predict(HEAD, PIECES, ["a"], ["b"], batch_size=v),
        "score model": lambda v: score(v, ENCODED),
        "score encoded": lambda v: score(HEAD, v),
        "evaluate encoded": lambda v: evaluate(HEAD, v),
        "evaluate batch_size": lambda v: evaluate(HEAD, ENCODED, batch_size=v),
        "fit model": lambda v: fit(v, ENCODED),
        "fit train": lambda v: fit(HEAD, v),
        "fit dev": lambda v: fit(HEAD, ENCODED, v),
        **{f"fit {option.name}": partial(options_with, option.name) for option in fields(TrainingOptions)},
        "InferenceSession model": lambda v: InferenceSession(v),
        "BERTConfig vocab_size": lambda v: BERTConfig(v),
        "BERTConfig num_hiddens": lambda v: BERTConfig(7, num_hiddens=v),
        "BERTConfig dropout": lambda v: BERTConfig(7, dropout=v),
        "BERTClassifier bert": lambda v: BERTClassifier(v, 3),
        "BERTClassifier num_labels": lambda v: BERTClassifier(BERT, min(v, 64) if isinstance(v, int) else v),
        "BERTClassifier label_names": lambda v: BERTClassifier(BERT, 3, v),
    }


@pytest.mark.parametrize("name", calls(Path()))
def test_errors_name_the_argument(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the file in which the value, of the right type, has no place."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "data.tsv"
    file.write_text("label\tsentence1\tsentence2\nneutral\ta\tb\n")
    for value in WRONG:
        try:
            calls(file)[name](value)
        except (TypeError, ValueError, IndexError, OSError, MemoryError) as error:
            message = str(error)
            argument = name.split()[-1]
            named = any(what in message for what in (argument, file.name, "the vocabulary has no", "sequence 1 is out"))
            named |= isinstance(error, OSError | MemoryError)
            assert named and "incompatible function arguments" not in message, f"{value!r}: {error!r}"  # noqa: PT017, PT018


def test_a_large_value_is_named_by_its_type() -> None:
    frame = pd.DataFrame({"text": ["a"], "label": ["b"]})
    with pytest.raises(TypeError, match=r"^path must be .*; found a value of the type pandas.*DataFrame$"):
        read_table(frame, "text", "label")
