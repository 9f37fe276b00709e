"""WordPiece: the ids of `tokenizers` and `transformers` for every text."""

# ruff: noqa: RUF001  (other alphabets are the point)
from __future__ import annotations

import json
import pickle
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.texts import CODE_POINTS, MARKS, SMALL, SPECIAL, Real, assert_same_ids, random_texts, reference
from tokenizers import decoders

from bertnli.data.snli import read_snli
from bertnli.data.texts import Texts
from bertnli.text.wordpiece import WordPieceTokenizer


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_code_point(lowercase: bool) -> None:
    # A vocabulary of single characters shows what each became; kept characters outside it make the word unknown.
    many = ("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT", "EGYPTIAN")
    chars = [c for c in CODE_POINTS[:0x20000] if unicodedata.category(c) not in ("Cn", "Co")]
    chars = [c for c in chars if not unicodedata.name(c, "").startswith(many)]
    tokens = [*SPECIAL, *chars, *("##" + c for c in chars)]
    expected, ours = reference(tokens, lowercase), WordPieceTokenizer(tokens, lowercase)
    words = [f"x{c}y" for c in CODE_POINTS]
    assert_same_ids(expected, ours, [" ".join(words[i : i + 32]) for i in range(0, len(words), 32)])


def test_probe_file(data_dir: Path) -> None:
    with open(data_dir / "tokenizer" / "hf_bert_uncased_codepoints.json", encoding="utf-8") as file:
        probe = json.load(file)
    ours = WordPieceTokenizer([*SPECIAL, "xy", "x", "y"])
    for first, last in probe["deleted"]:
        for c in range(first, last + 1):
            assert ours.tokenize(f"x{chr(c)}y") == ["xy"], hex(c)
    for first, last in probe["to_space"]:
        for c in range(first, last + 1):
            assert ours.tokenize(f"x{chr(c)}y") == ["x", "y"], hex(c)
    for first, last in (*probe["cjk_padded"], *probe["isolated_punct_after_normalisation"]):
        for c in range(first, last + 1):
            assert ours.tokenize(f"x{chr(c)}y") == ["x", "[UNK]", "y"], hex(c)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("x\x0by x\x1cy x\x85y", ["x", "##y"] * 3),
        ("x\u2028y x\u2029y x\u3000y", ["x", "y"] * 3),
        ("x\ufffdy x\u200by x\ue000y", ["x", "##y"] * 3),
        ("x\u0378y", ["[UNK]"]),  # unassigned: kept
        ("$5", ["$", "5"]),
        ("中文x", ["中", "文", "x"]),
        ("한", ["ᄒ", "##ᅡ", "##ᆫ"]),
        ("ΑΣ σς", ["[UNK]", "σ", "##ς"]),
        ("Éé", ["e", "##e"]),
        ("İ", ["i"]),
        ("a" * 100, ["a"] + ["##a"] * 99),
        ("a" * 101, ["[UNK]"]),
        ("É" * 100 + " " + "e\u0301" * 100 + " " + "é" * 101, (["e"] + ["##e"] * 99) * 2 + ["[UNK]"]),
        ("a" * 99 + "한", ["[UNK]"]),
        ("x[SEP]y", ["x", "[SEP]", "y"]),
        ("[sep] [S EP] [[MASK]]", ["[", "sep", "]", "[", "[UNK]", "[UNK]", "]", "[", "[MASK]", "]"]),
        ("[S\u200bEP]", ["[", "sep", "]"]),
        ("un unaffable unaffableness", ["un", "un", "##aff", "##able", "[UNK]"]),
        ("##a #", ["#", "#", "a", "#"]),
        ("x\0y", ["x", "##y"]),
        ("   \t ", []),
        ("", []),
    ],
)
def test_traps(text: str, tokens: list[str]) -> None:
    ours = WordPieceTokenizer(SMALL)
    assert ours.tokenize(text) == tokens
    assert_same_ids(reference(SMALL), ours, [text])


def test_marks_that_survive_are_reordered() -> None:
    # U+302E (class 224) and U+1D165 (216) are not stripped; U+034F, stripped, has class 0 and keeps them apart.
    ours = WordPieceTokenizer(SMALL)
    assert ours.tokenize("x\u302e\U0001d165") == ours.tokenize("x\U0001d165\u302e") == ["x", "##\U0001d165", "##\u302e"]
    assert ours.tokenize("x\u302e\u034f\U0001d165") == ["x", "##\u302e", "##\U0001d165"]
    assert ours.tokenize("x\u302e\u200b\u0301\U0001d165") == ["x", "##\U0001d165", "##\u302e"]
    rng = random.Random(0)
    pool = [*MARKS, "\u034f", "\u200b", "\u0903", "a"]
    texts = ["x" + "".join(rng.choices(pool, k=rng.randint(1, 9))) for _ in range(20_000)]
    tokens = [*SPECIAL, "x", "a", "##a", *MARKS, *("##" + m for m in MARKS)]
    assert_same_ids(reference(tokens), WordPieceTokenizer(tokens), texts)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_random_texts_small(lowercase: bool, split: bool) -> None:
    texts = random_texts(random.Random(1), 10_000)
    assert_same_ids(reference(SMALL, lowercase, split), WordPieceTokenizer(SMALL, lowercase, split), texts)


@pytest.mark.parametrize("lowercase", [True, False])
def test_random_texts_real(minilm_tokens: list[str], lowercase: bool) -> None:
    texts = random_texts(random.Random(2), 10_000)
    assert_same_ids(reference(minilm_tokens, lowercase), WordPieceTokenizer(minilm_tokens, lowercase), texts)


def test_every_text_of_the_data(data_dir: Path, real: Real) -> None:
    ours, expected = real
    texts = []
    for split in ("train", "dev", "test"):
        for columns in ("parse", "text"):
            premises, hypotheses, _ = read_snli(data_dir / "snli_1.0", split=split, columns=columns)
            texts += [*set(premises), *hypotheses]
    for pattern in ("ocnli/*", "sick/*", "sst2/*", "wnut17/*", "xquad/*"):
        for path in data_dir.glob(pattern):
            texts += path.read_text(encoding="utf-8").split("\n")
    texts = list(dict.fromkeys(texts))
    assert len(texts) > 100_000
    expected_ids = []
    for i in range(0, len(texts), 10_000):
        expected_ids += [e.ids for e in expected.encode_batch_fast(texts[i : i + 10_000], add_special_tokens=False)]
    encoded = ours.encode_texts(texts, max_len=1 << 20, num_threads=2)
    offsets, ids = encoded.offsets.tolist(), encoded.ids.tolist()
    for i, text in enumerate(texts):
        assert ids[offsets[i] + 1 : offsets[i + 1] - 1] == expected_ids[i], ascii(text)


def test_transformers(minilm_dir: Path, real: Real) -> None:
    transformers = pytest.importorskip("transformers")
    hf = transformers.BertTokenizerFast.from_pretrained(minilm_dir)
    texts = random_texts(random.Random(3), 500)
    hypotheses = texts[::-1]
    wanted = hf(texts, hypotheses, max_length=22, truncation="longest_first", padding="max_length", return_tensors="pt")
    ids, segments, lens = real[0].encode_padded(texts, hypotheses, 22, truncation="longest_first_hf")
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(segments, wanted["token_type_ids"])
    assert torch.equal(lens, wanted["attention_mask"].sum(1))


def test_decode(real: Real) -> None:
    ours, _ = real
    decoder = decoders.WordPiece(prefix="##", cleanup=False)
    rng = random.Random(4)
    for text in random_texts(rng, 300):
        tokens = [t for t in ours.tokenize(text) if t not in SPECIAL]
        assert ours.decode(ours.encode(text)) == decoder.decode(tokens)
    row = [ours.cls_id, *ours.encode("unbelievably good"), ours.sep_id, ours.pad_id]
    assert ours.decode(torch.tensor(row)) == "unbelievably good"
    assert WordPieceTokenizer(SMALL).decode([SMALL.index("##able"), SMALL.index("##a")]) == "##ablea"


def test_files(tmp_path: Path, minilm_dir: Path, minilm_tokens: list[str]) -> None:
    texts = random_texts(random.Random(5), 200)
    a = WordPieceTokenizer.from_file(minilm_dir / "vocab.txt")
    b = WordPieceTokenizer.from_file(minilm_dir / "tokenizer.json")
    a.save(tmp_path / "vocab.txt")
    (tmp_path / "crlf.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(minilm_tokens).encode())
    c = WordPieceTokenizer.from_file(tmp_path / "vocab.txt")
    d = WordPieceTokenizer.from_file(tmp_path / "crlf.txt")
    e = pickle.loads(pickle.dumps(a))
    assert a.tokens == b.tokens == c.tokens == d.tokens == minilm_tokens
    assert all(t.encode(x) == a.encode(x) for t in (b, c, d, e) for x in texts)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(ValueError, match="lowercase=True, but lowercase=False"):
        WordPieceTokenizer.from_file(minilm_dir / "tokenizer.json", lowercase=False)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword \n")
    with pytest.raises(ValueError, match=r"vocab\.txt:3: the token 'word ' ends in white space"):
        WordPieceTokenizer.from_file(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["normalizer"].update(strip_accents=False), "normalizer.strip_accents is False"),
        (lambda s: s["normalizer"].update(clean_text=False), "normalizer.clean_text is False"),
        (lambda s: s.update(normalizer=None), "normalizer.type is None"),
        (lambda s: s["model"].update(max_input_chars_per_word=50), "max_input_chars_per_word is 50"),
        (lambda s: s["model"].update(type="BPE"), "model.type is 'BPE'"),
        (lambda s: s["post_processor"]["pair"].pop(), "post_processor is"),
        (
            lambda s: s["post_processor"]["special_tokens"]["[CLS]"].update(ids=[5]),
            r"special_tokens.\[CLS\].ids is \[5\]; only \[101\]",
        ),
        (
            lambda s: s.update(post_processor={"type": "BertProcessing", "cls": ["[CLS]", 101], "sep": ["[SEP]", 5]}),
            r"post_processor.sep is \['\[SEP\]', 5\]",
        ),
        (lambda s: s.update(truncation={"direction": "Left", "max_length": 9}), "truncation.direction is 'Left'"),
        (lambda s: s["added_tokens"][3].update(lstrip=True), r"lstrip of the added token \[SEP\] is True"),
        (lambda s: s["added_tokens"].append({"content": "[NEW]"}), "the set of added tokens is"),
        (lambda s: s.pop("model"), "expected a Hugging Face tokenizer.json"),
        (lambda s: s["model"]["vocab"].pop("the"), "without gaps"),
    ],
)
def test_tokenizer_json_that_cannot_be_reproduced(
    tmp_path: Path, minilm_dir: Path, change: Callable[[Any], Any], message: str
) -> None:
    settings = json.loads((minilm_dir / "tokenizer.json").read_text(encoding="utf-8"))
    change(settings)
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        WordPieceTokenizer.from_file(tmp_path / "tokenizer.json")


def test_missing_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("[PAD]\n[UNK]\n[CLS]\nthe\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"v\.txt: the vocabulary has no \[SEP\] and no \[MASK\]"):
        WordPieceTokenizer.from_file(tmp_path / "v.txt")


def test_vocabulary_without_continuations_and_with_equal_tokens() -> None:
    tokens = [*SPECIAL, "a", "b", "a"]
    ours = WordPieceTokenizer(tokens)
    assert ours.encode("a ab b") == [7, 1, 6]
    assert_same_ids(reference(tokens), ours, ["a ab b"])


def test_short_and_unaligned_texts(real: Real) -> None:
    # Chunks are read 16 bytes at a time: every length, every place of the spaces, in strings and within an arena.
    ours, expected = real
    rng = random.Random(7)
    texts = ["".join(rng.choices("ab dog,. é", k=k)) for k in range(50) for _ in range(40)]
    assert_same_ids(expected, ours, texts)
    wanted = [e.ids for e in expected.encode_batch_fast(texts)]
    whole = [[ours.cls_id, *e, ours.sep_id] for e in wanted]
    encoded = ours.encode_texts(Texts.of(texts), max_len=100)
    assert encoded.ids.tolist() == [i for row in whole for i in row]


def test_more_words_than_the_cache_holds(real: Real) -> None:
    ours, expected = real
    texts = [" ".join(f"w{i * 50 + k}z" for k in range(50)) for i in range(3000)]
    assert_same_ids(expected, ours, texts + texts[:100])


def test_pieces_of_words() -> None:
    texts = ["The cat sat.", "the Cät", "that hat", "x"]
    tokenizer = WordPieceTokenizer.of_words(texts, 2)
    assert tokenizer.tokens[5:7] == ["the", "cat"]
    assert tokenizer.tokenize("The cats") == ["the", "ca", "##t", "##s"][:1] + tokenizer.tokenize("cats")
    assert tokenizer.tokenize("sat") == ["s", "##at"]  # "at" is in four words, "sa" in one
    assert "[UNK]" not in tokenizer.tokenize("zebra 7 quartz.")
    assert tokenizer.tokenize("中") == ["[UNK]"]
    assert len(set(tokenizer.tokens)) == len(tokenizer)
