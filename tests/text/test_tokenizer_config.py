"""Files beside the vocabulary that change ids are honoured as in transformers, or refused by file and key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bertnli.text.wordpiece import WordPieceTokenizer

TEXTS = ["Naïve Hello", "the [SEP] DOG", "中文 text", "unaffable"]


@pytest.fixture
def folder(tmp_path: Path, minilm_dir: Path) -> Path:
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(minilm_dir / name, tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("changes", [{}, {"do_lower_case": False}, {"do_lower_case": False, "strip_accents": False}])
def test_case_is_honoured(folder: Path, name: str, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    edit(folder / "tokenizer_config.json", **changes)
    (folder / ({"vocab.txt", "tokenizer.json"} - {name}).pop()).unlink()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = WordPieceTokenizer.from_file(folder / name)
    assert tokenizer.lowercase is changes.get("do_lower_case", True)
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
    with pytest.raises(ValueError, match=f"lowercase={tokenizer.lowercase}, but lowercase={not tokenizer.lowercase}"):
        WordPieceTokenizer.from_file(folder / name, lowercase=not tokenizer.lowercase)


def test_split_special_tokens_is_honoured(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", split_special_tokens=True)
    for name in ("vocab.txt", "tokenizer.json"):
        assert WordPieceTokenizer.from_file(folder / name).tokenize("[SEP]") == ["[", "sep", "]"]


NEW = {"content": "[NEW]", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
SEP = {**NEW, "content": "[SEP]"}


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"strip_accents": False}, "strip_accents is False"),
        ("tokenizer_config.json", {"do_lower_case": "false"}, "do_lower_case is 'false'"),
        ("tokenizer_config.json", {"do_lower_case": False, "strip_accents": True}, "strip_accents is True"),
        ("tokenizer_config.json", {"tokenize_chinese_chars": False}, "tokenize_chinese_chars is False"),
        ("tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize is False"),
        ("tokenizer_config.json", {"never_split": ["U.S."]}, r"never_split is \['U.S.'\]"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class is 'BertJapanese"),
        ("tokenizer_config.json", {"sep_token": "</s>"}, "sep_token is '</s>'"),
        ("tokenizer_config.json", {"sep_token": "[CLS]"}, r"sep_token is '\[CLS\]'"),
        ("tokenizer_config.json", {"sep_token": {**SEP, "lstrip": True}}, r"lstrip of the added token \[SEP\] is True"),
        ("tokenizer_config.json", {"bos_token": "<s>"}, "bos_token is '<s>'"),
        ("tokenizer_config.json", {"additional_special_tokens": ["[NEW]"]}, r"additional_special_tokens is '\[NEW\]'"),
        ("tokenizer_config.json", {"extra_special_tokens": {"x": "[NEW]"}}, r"extra_special_tokens is '\[NEW\]'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"30522": NEW}}, r"added_tokens_decoder.30522 is '\[NEW\]'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": SEP}}, r"id of the added token \[SEP\] is '5'"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "is not a file of a Hugging Face tokenizer"),
        ("special_tokens_map.json", {"unk_token": "<unk>"}, "unk_token is '<unk>'"),
        ("special_tokens_map.json", {"additional_special_tokens": [NEW]}, r"additional_special_tokens is '\[NEW\]'"),
        ("added_tokens.json", {"[NEW]": 30522}, r"an added token is '\[NEW\]'"),
        ("added_tokens.json", {"the": 1996}, "an added token is 'the'"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    folder: Path, name: str, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(ValueError, match=rf"{file} beside {name}: .*{message}|{file} {message}"):
        WordPieceTokenizer.from_file(folder / name)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_class_in_the_models_own_file(folder: Path, name: str) -> None:
    edit(folder / "config.json", tokenizer_class="BertJapaneseTokenizer")
    WordPieceTokenizer.from_file(folder / name)  # transformers looks there only without a class in the other file
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=rf"config\.json beside {name}: tokenizer_class is 'BertJapaneseTokenizer'"):
        WordPieceTokenizer.from_file(folder / name)


def test_two_files_that_contradict_each_other(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no do_lower_case.*tokenizer\.json has normalizer"):
        WordPieceTokenizer.from_file(folder / "tokenizer.json")
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert not WordPieceTokenizer.from_file(folder / "tokenizer.json").lowercase
    edit(folder / "tokenizer_config.json", do_lower_case=True)
    with pytest.raises(ValueError, match=r"do_lower_case=True, but .*tokenizer\.json has normalizer\.lowercase=False"):
        WordPieceTokenizer.from_file(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no do_lower_case, which then is true for transformers"):
        WordPieceTokenizer.from_file(folder / "tokenizer.json")
    (folder / "config.json").unlink()  # a tokenizer of no model
    assert not WordPieceTokenizer.from_file(folder / "tokenizer.json").lowercase
