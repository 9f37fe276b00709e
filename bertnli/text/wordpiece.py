"""BERT's WordPiece, id for id as `transformers` has it."""

from __future__ import annotations

import os
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from bertnli import _text
from bertnli.data.arguments import integer, path_of, strings, switch
from bertnli.data.files import atomic_path, read_json
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
        self.tokens = strings(tokens, "tokens")
        self.lowercase = switch(lowercase, "lowercase")
        self.split_special_tokens = switch(split_special_tokens, "split_special_tokens")
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
        min_freq, counts = integer(min_freq, "min_freq"), Counter[str]()
        for word, n in cls._count_words(texts).items():
            for i, c in enumerate(word):
                counts[c if i == 0 else f"##{c}"] += n
        return cls([*cls.SPECIAL, *(piece for piece, n in counts.most_common() if n >= min_freq)])

    @classmethod
    def of_words(cls, texts: Iterable[str], min_freq: int = 5) -> WordPieceTokenizer:
        """Take the words of the texts, and single characters and pairs of them as pieces of all other words.

        Words, and pairs in different words, that occur fewer than `min_freq` times are left out. Latin letters and
        digits are all in, so that no word of them is unknown. Case and accents are dropped.
        """
        min_freq = integer(min_freq, "min_freq")
        words, pieces = cls._count_words(texts), Counter(string.ascii_lowercase + string.digits)
        for word in words:
            pieces.update(word[i : i + n] for n in (1, 2) for i in range(len(word) - n + 1))
        kept = [piece for piece, n in pieces.most_common() if len(piece) == 1 or n >= min_freq]
        known = [word for word, n in words.most_common() if n >= min_freq]
        return cls(dict.fromkeys([*cls.SPECIAL, *known, *kept, *(f"##{piece}" for piece in kept)]))

    @classmethod
    def _count_words(cls, texts: Iterable[str]) -> Counter[str]:
        """The words and punctuation marks of the texts, without case and accents, and how often they occur."""
        texts = strings(texts, "texts")
        words = cls(cls.SPECIAL).encode_texts_with_offsets(texts)  # all are unknown; their places matter
        counts: Counter[str] = Counter()
        bounds = words.offsets.tolist()
        places = list(zip(words.starts.tolist(), words.ends.tolist(), strict=True))
        for text, low, high in zip(texts, bounds, bounds[1:], strict=False):
            counts.update(text[start:end] for start, end in places[low:high])
        plain: Counter[str] = Counter()
        for word, n in counts.items():
            decomposed = unicodedata.normalize("NFD", word.lower())
            plain["".join(c for c in decomposed if unicodedata.category(c) != "Mn")] += n
        del plain[""]
        return plain

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], lowercase: bool | None = None, split_special_tokens: bool = False
    ) -> WordPieceTokenizer:
        """Read `vocab.txt` (one token a line) or a Hugging Face `tokenizer.json`.

        The files tokenizer_config.json, special_tokens_map.json and added_tokens.json beside it count as they do in
        `transformers`; so does the direction of the truncation in `tokenizer.json`, whose lengths it ignores.

        lowercase              as in the class (default: what the files say, else True)
        split_special_tokens   as in the class; the files can set it too

        Raises ValueError naming file and key for settings that this class does not have.
        """
        path = path_of(path)
        is_json = path.suffix == ".json"
        tokens, stored = _read_tokenizer_json(path) if is_json else (_read_lines(path), None)
        settings = _read_settings(path, {token: i for i, token in enumerate(tokens)})
        where, chosen = path.parent / "tokenizer_config.json", _stored_case(path, stored, settings)
        if lowercase is not None and chosen is not None and lowercase != chosen:
            source = path if chosen == stored else where
            raise ValueError(f"{source} says lowercase={chosen}, but lowercase={lowercase} was asked for")
        lower = chosen is not False if lowercase is None else lowercase
        _require(f"{where} beside {path.name}", "strip_accents", settings.get("strip_accents"), None, lower)
        try:
            return cls(tokens, lower, split_special_tokens or settings.get("split_special_tokens") is True)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary, one token a line. Raises ValueError for a token with a line feed."""
        text = self.to_text()
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")

    def to_text(self) -> str:
        """The content of `vocab.txt`. Raises ValueError for a token with a line feed."""
        if any("\n" in token for token in self.tokens):
            raise ValueError("a token with a line feed cannot be saved in a vocab.txt")
        return "".join(f"{token}\n" for token in self.tokens)

    def to_tokenizer_json(self) -> dict[str, Any]:
        """The content of a Hugging Face `tokenizer.json`. Raises ValueError if a token is there twice."""
        if len(self._index) < len(self.tokens):
            raise ValueError("a vocabulary with a repeated token cannot be saved in a tokenizer.json")
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        special = sorted((self._index[token], token) for token in self.SPECIAL)
        cls_, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
        first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        single = [cls_, first, sep]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": index, "content": token, **plain} for index, token in special],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": self.lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": single,
                "pair": [*single, second, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
                "special_tokens": {
                    token: {"id": token, "ids": [index], "tokens": [token]}
                    for token, index in (("[CLS]", self.cls_id), ("[SEP]", self.sep_id))
                },
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {token: i for i, token in enumerate(self.tokens)},
            },
        }

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


# Of transformers; the classes of DistilBERT and ELECTRA are BERT's under other names.
_BERT_CLASSES = tuple(f"{name}Tokenizer{fast}" for name in ("Bert", "DistilBert", "Electra") for fast in ("", "Fast"))
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # these use tokenizer.json as it is


def gives_segments(folder: Path) -> bool:
    """Whether transformers' tokenizer of a Hugging Face folder tells the texts of a pair apart by `token_type_ids`."""
    files = (folder / name for name in ("tokenizer_config.json", "config.json"))
    own, model = (read_json(path) if path.exists() else {} for path in files)
    if isinstance(names := own.get("model_input_names"), list):
        return "token_type_ids" in names
    kind = own.get("tokenizer_class") or model.get("tokenizer_class") or ""
    return kind not in _PLAIN_CLASSES and not kind.startswith("DistilBert")


def read_vocab_txt(path: Path, lowercase: bool, split_special_tokens: bool) -> WordPieceTokenizer:
    """The tokenizer of a vocab.txt alone, whatever files are beside it. Raises ValueError naming the file."""
    try:
        return WordPieceTokenizer(_read_lines(path), lowercase, split_special_tokens)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if lines[-1] == "":
        lines.pop()
    tokens = [line.removesuffix("\r") for line in lines]
    for number, token in enumerate(tokens, 1):
        if token != token.rstrip() != "":  # transformers removes the space or keeps it, by its version
            raise ValueError(f"{path}:{number}: the token {token!r} ends in white space; remove that")
    return tokens


def _require(where: Path | str, what: str, found: object, *allowed: object) -> None:
    if not any(type(found) is type(value) and found == value for value in allowed):
        expected = " or ".join(map(repr, allowed))
        raise ValueError(f"{where}: {what} is {found!r}; only {expected} can be reproduced exactly")


def _require_special(where: Path | str, what: str, token: Any) -> str:
    """The content of a token that must be one of BERT's five, matched as it is. It is a str or an object."""
    content = token["content"] if isinstance(token, dict) else token
    _require(where, what, content, *WordPieceTokenizer.SPECIAL)
    if isinstance(token, dict):
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            _require(where, f"{flag} of the added token {content}", token.get(flag, False), False)
    return str(content)


def _read_settings(vocab: Path, ids: dict[str, int]) -> dict[str, Any]:
    """tokenizer_config.json, after a check of it and of the other files beside the vocabulary that change ids.

    Raises ValueError naming file and key of what this class does not have.
    """
    settings: dict[str, Any] = {}
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        path = vocab.parent / name
        where = f"{path} beside {vocab.name}"
        settings = read_json(path) if path.exists() else {}
        try:
            if name == "added_tokens.json":
                for content, index in settings.items():
                    _require_special(where, "an added token", content)
                    _require(where, f"the id of the added token {content}", index, ids.get(content))
            else:
                _check_special_tokens(where, settings, ids)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of a Hugging Face tokenizer: {error!r}") from None
    classes = _BERT_CLASSES + (_PLAIN_CLASSES if vocab.suffix == ".json" else ())
    _require(where, "tokenizer_class", settings.setdefault("tokenizer_class"), None, *classes)
    config = vocab.with_name("config.json")
    if settings["tokenizer_class"] is None and config.exists() and isinstance(model := read_json(config), dict):
        settings["tokenizer_class"] = model.get("tokenizer_class")  # transformers looks there then
        _require(f"{config} beside {vocab.name}", "tokenizer_class", settings["tokenizer_class"], None, *classes)
    for key in ("do_lower_case", "split_special_tokens"):
        _require(where, key, settings.get(key), None, True, False)
    for key in ("tokenize_chinese_chars", "do_basic_tokenize", "clean_text"):
        _require(where, key, settings.get(key), None, True)
    _require(where, "never_split", settings.get("never_split") or None, None)
    _require(where, "truncation_side", settings.get("truncation_side"), None, "right")
    _require(where, "wordpieces_prefix", settings.get("wordpieces_prefix"), None, "##")
    return settings


def _stored_case(path: Path, stored: bool | None, settings: dict[str, Any]) -> bool | None:
    """`lowercase` as the files have it, which in tokenizer.json is `stored`; None if they have it nowhere.

    BertTokenizer takes it from tokenizer_config.json, the plain classes from tokenizer.json.
    """
    where, chosen = path.parent / "tokenizer_config.json", settings.get("do_lower_case")
    if stored is None:
        return None if chosen is None else bool(chosen)
    is_plain = settings.get("tokenizer_class") in _PLAIN_CLASSES
    of_model = where.exists() or path.with_name("config.json").exists()
    if chosen is None and of_model and not is_plain and not stored:
        raise ValueError(
            f"{where} has no do_lower_case, which then is true for transformers, but {path} has "
            f"normalizer.lowercase=False. Add do_lower_case to {where.name}"
        )
    if chosen is not None and is_plain and chosen != stored:
        raise ValueError(f"{where} has do_lower_case={chosen}, but {path} has normalizer.lowercase={stored}")
    return stored if chosen is None else bool(chosen)


def _check_special_tokens(where: str, settings: dict[str, Any], ids: dict[str, int]) -> None:
    """Check the special tokens that tokenizer_config.json or special_tokens_map.json names."""
    for key, token in settings.items():
        if key.endswith("_token") and isinstance(token, str | dict):
            content, own = _require_special(where, key, token), f"[{key.removesuffix('_token').upper()}]"
            if own in WordPieceTokenizer.SPECIAL:
                _require(where, key, content, own)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or []
        for token in more.values() if isinstance(more, dict) else more:
            _require_special(where, key, token)
    for index, token in (settings.get("added_tokens_decoder") or {}).items():
        content = _require_special(where, f"added_tokens_decoder.{index}", token)
        _require(where, f"the id of the added token {content}", index, str(ids.get(content)))


def _read_tokenizer_json(path: Path) -> tuple[list[str], bool]:
    """The tokens and `lowercase` of a Hugging Face tokenizer.json. Raises ValueError where it is not plain BERT."""
    try:
        return _parse_tokenizer_json(path, read_json(path))
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: expected a Hugging Face tokenizer.json: {error!r}") from None


def _parse_tokenizer_json(path: Path, settings: dict[str, Any]) -> tuple[list[str], bool]:
    require = partial(_require, path)
    model, normalizer = settings["model"], settings["normalizer"] or {}
    vocab: dict[str, int] = model["vocab"]
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
        for token in ("[CLS]", "[SEP]"):
            require(
                f"post_processor.special_tokens.{token}.ids", post["special_tokens"][token]["ids"], [vocab.get(token)]
            )
    else:
        for key, token in (("cls", "[CLS]"), ("sep", "[SEP]")):
            require(f"post_processor.{key}", post[key], [token, vocab.get(token)])
    require("truncation.direction", (settings.get("truncation") or {}).get("direction", "Right"), "Right")
    added = {token["content"]: token for token in settings.get("added_tokens", ())}
    require("the set of added tokens", sorted(added), sorted(WordPieceTokenizer.SPECIAL))
    for content, token in added.items():
        _require_special(path, "an added token", token)
        require(f"the id of the added token {content}", token["id"], vocab.get(content))
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"{path}: expected the ids of model.vocab to be 0 to {len(tokens) - 1} without gaps")
    return tokens, lowercase
