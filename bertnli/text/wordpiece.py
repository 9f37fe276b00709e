"""BERT's WordPiece, id for id as `transformers` has it."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from bertnli import _text
from bertnli.data.files import atomic_path
from bertnli.text.tokenizer import Tokenizer, id_list


class WordPieceTokenizer(Tokenizer):
    """BERT's WordPiece: the ids that `transformers.BertTokenizerFast` gives.

    tokens                 the vocabulary in the order of the ids, with [PAD], [UNK], [CLS], [SEP] and [MASK]
    lowercase              whether to lower-case the text and strip its accents, as uncased models do (default: True)
    split_special_tokens   whether a literal "[SEP]" in a text is ordinary text (default: False). Otherwise it becomes
                           the special token, as in `transformers`, and whoever writes the text can forge the end of a
                           segment: set it for text that you do not trust
    """

    _columns = "text"
    SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(self, tokens: Iterable[str], lowercase: bool = True, split_special_tokens: bool = False) -> None:
        self.tokens = list(tokens)
        self.lowercase = lowercase
        self.split_special_tokens = split_special_tokens
        self._index = {token: i for i, token in enumerate(self.tokens)}  # of equal tokens the last counts
        missing = [token for token in self.SPECIAL if token not in self._index]
        if missing:
            raise ValueError(f"the vocabulary has no {' and no '.join(missing)}")
        special = [(token, self._index[token]) for token in self.SPECIAL]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (i for _, i in special)
        self._core = _text.WordPieceTokenizer(
            list(self._index.items()),
            self.pad_id,
            self.cls_id,
            self.sep_id,
            self.unk_id,
            [] if split_special_tokens else special,
            lowercase,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return WordPieceTokenizer, (self.tokens, self.lowercase, self.split_special_tokens)

    @classmethod
    def of_characters(cls, texts: Iterable[str], min_freq: int = 1) -> WordPieceTokenizer:
        """Take the single characters of the texts as pieces, by falling frequency: a vocabulary for Chinese.

        Pieces that occur fewer than `min_freq` times are unknown. Case and accents are dropped.
        """
        special = list(cls.SPECIAL)
        texts = list(texts)
        words = cls(special).encode_texts_with_offsets(texts)  # all are unknown; their places matter
        counts: Counter[str] = Counter()
        bounds = words.offsets.tolist()
        places = list(zip(words.starts.tolist(), words.ends.tolist(), strict=True))
        for text, low, high in zip(texts, bounds, bounds[1:], strict=False):
            for start, end in places[low:high]:
                plain = unicodedata.normalize("NFD", text[start:end].lower())
                first, *rest = [c for c in plain if unicodedata.category(c) != "Mn"] or [""]
                counts.update([first, *(f"##{c}" for c in rest)])
        del counts[""]
        return cls([*special, *(piece for piece, n in counts.most_common() if n >= min_freq)])

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], lowercase: bool | None = None, split_special_tokens: bool = False
    ) -> WordPieceTokenizer:
        """Read `vocab.txt` (one token a line) or a Hugging Face `tokenizer.json`.

        lowercase   as in the class (default: True for `vocab.txt`, what the file says for `tokenizer.json`)

        Truncation and padding in `tokenizer.json` are ignored. Raises ValueError for settings that this class does not
        have.
        """
        path = Path(path)
        text = path.read_bytes().decode("utf-8")
        if path.suffix == ".json":
            tokens, lower = _read_tokenizer_json(path, text)
            if lowercase is not None and lowercase != lower:
                raise ValueError(f"{path} says lowercase={lower}, but lowercase={lowercase} was asked for")
            return cls(tokens, lower, split_special_tokens)
        lines = text.removeprefix("\ufeff").split("\n")
        if lines[-1] == "":
            lines.pop()
        try:
            return cls((line.removesuffix("\r") for line in lines), lowercase is not False, split_special_tokens)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary, one token a line. Raises ValueError for a token with a line feed."""
        if any("\n" in token for token in self.tokens):
            raise ValueError("a token with a line feed cannot be saved in a vocab.txt")
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{token}\n" for token in self.tokens), encoding="utf-8", newline="\n")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"WordPieceTokenizer({len(self)} tokens, lowercase={self.lowercase})"

    def tokenize(self, text: str) -> list[str]:
        """The pieces, with `##` before those that continue a word, and [UNK] for a word without pieces."""
        return [self.tokens[i] for i in self.encode(text)]

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The words joined by spaces, without special tokens."""
        special = {self._index[token] for token in self.SPECIAL}
        tokens = [self.tokens[i] for i in id_list(ids) if i not in special]
        return "".join(
            token if i == 0 else token[2:] if token.startswith("##") else " " + token for i, token in enumerate(tokens)
        )

    def token_to_id(self, token: str) -> int:
        return self._index.get(token, self.unk_id)

    def id_to_token(self, index: int) -> str:
        return self.tokens[index]


def _read_tokenizer_json(path: Path, text: str) -> tuple[list[str], bool]:
    """The tokens and `lowercase` of a Hugging Face tokenizer.json. Raises ValueError where it is not plain BERT."""
    try:
        settings = json.loads(text)
        model, normalizer = settings["model"], settings["normalizer"] or {}
        vocab: dict[str, int] = model["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a Hugging Face tokenizer.json: {error!r}") from None

    def require(what: str, found: object, *allowed: object) -> None:
        if found not in allowed:
            raise ValueError(
                f"{path}: {what} is {found!r}; only {' or '.join(map(repr, allowed))} can be reproduced exactly"
            )

    require("model.type", model.get("type", "WordPiece"), "WordPiece")
    require("model.unk_token", model.get("unk_token"), "[UNK]")
    require("model.continuing_subword_prefix", model.get("continuing_subword_prefix"), "##")
    require("model.max_input_chars_per_word", model.get("max_input_chars_per_word"), 100)
    require("normalizer.type", normalizer.get("type"), "BertNormalizer")
    require("normalizer.clean_text", normalizer.get("clean_text"), True)
    require("normalizer.handle_chinese_chars", normalizer.get("handle_chinese_chars"), True)
    require("normalizer.lowercase", normalizer.get("lowercase"), True, False)
    lowercase = bool(normalizer["lowercase"])
    require("normalizer.strip_accents", normalizer.get("strip_accents"), None, lowercase)
    require("pre_tokenizer.type", (settings.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer")
    post = settings.get("post_processor") or {}
    require("post_processor.type", post.get("type"), "TemplateProcessing", "BertProcessing")
    if post["type"] == "TemplateProcessing":
        shape = ["".join(f"{k[0]}{v['id']}{v['type_id']} " for item in post[which] for k, v in item.items())
                 for which in ("single", "pair")]  # fmt: skip
        single = "S[CLS]0 SA0 S[SEP]0 "
        require("post_processor", shape, [single, single + "SB1 S[SEP]1 "])
    else:
        require("post_processor.cls", post["cls"][0], "[CLS]")
        require("post_processor.sep", post["sep"][0], "[SEP]")
    added = {token["content"]: token for token in settings.get("added_tokens", ())}
    require("the set of added tokens", sorted(added), sorted(WordPieceTokenizer.SPECIAL))
    for content, token in added.items():
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            require(f"{flag} of the added token {content}", token.get(flag), False)
        require(f"the id of the added token {content}", token["id"], vocab.get(content))
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"{path}: expected the ids of model.vocab to be 0 to {len(tokens) - 1} without gaps")
    return tokens, lowercase
