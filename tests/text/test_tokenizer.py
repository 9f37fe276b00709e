# ruff: noqa: RUF001  (other alphabets are the point)
import json
import pickle
import random
import threading
import unicodedata

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bertnli.data.snli import read_snli
from bertnli.data.texts import Texts
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
MARKS = [c for c in CODE_POINTS if unicodedata.combining(c)]
# Whole words, pieces, and letters of several scripts, so that small texts exercise every branch.
SMALL = [
    *SPECIAL, "the", "un", "##aff", "##able", "run", "##ning", "a", "##a", "##b", "b", "strasse", "####", "#", "[", "]",
    ".", ",", "!", "'", "$", "5", "##5", "中", "文", "e", "##e", "##́", "é", "##é", "σ", "##σ", "ς", "##ς", "A", "##A",
    "İ", "i", "##i", "한", "ᄒ", "##ᅡ", "##ᆫ", "##〮", "##𝅥", "sep", "mask", "SEP", "x", "##y", "##x", "y",
]  # fmt: skip


def reference(tokens, lowercase=True, split_special_tokens=False):
    """BERT's pipeline out of the `tokenizers` package."""
    model = models.WordPiece(
        {token: i for i, token in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.encode_special_tokens = split_special_tokens
    return tokenizer


def assert_same(reference_tokenizer, ours, texts):
    expected = reference_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    for text, encoding in zip(texts, expected, strict=True):
        assert ours.encode(text) == encoding.ids, ascii(text)


def assert_same_offsets(reference_tokenizer, ours, texts, num_threads=1):
    expected = reference_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    found = ours.encode_texts_with_offsets(texts, num_threads)
    ids, starts, ends, words = (t.tolist() for t in (found.ids, found.starts, found.ends, found.word_ids))
    bounds = found.offsets.tolist()
    assert len(bounds) == len(texts) + 1
    for i, (text, e) in enumerate(zip(texts, expected, strict=True)):
        a, b = bounds[i], bounds[i + 1]
        assert ids[a:b] == e.ids, ascii(text)
        assert list(zip(starts[a:b], ends[a:b], strict=True)) == e.offsets, ascii(text)
        assert words[a:b] == e.word_ids, ascii(text)
    return found


@pytest.fixture(scope="module")
def minilm_tokens(minilm_dir):
    return (minilm_dir / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def real(minilm_tokens):
    return WordPieceTokenizer(minilm_tokens), reference(minilm_tokens)


# ---- WordPiece


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_code_point(lowercase):
    # A vocabulary of single characters shows what each became; kept characters outside it make the word unknown.
    many = ("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT", "EGYPTIAN")
    chars = [c for c in CODE_POINTS[:0x20000] if unicodedata.category(c) not in ("Cn", "Co")]
    chars = [c for c in chars if not unicodedata.name(c, "").startswith(many)]
    tokens = [*SPECIAL, *chars, *("##" + c for c in chars)]
    expected, ours = reference(tokens, lowercase), WordPieceTokenizer(tokens, lowercase)
    words = [f"x{c}y" for c in CODE_POINTS]
    assert_same(expected, ours, [" ".join(words[i : i + 32]) for i in range(0, len(words), 32)])


def test_probe_file(data_dir):
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
def test_traps(text, tokens):
    ours = WordPieceTokenizer(SMALL)
    assert ours.tokenize(text) == tokens
    assert_same(reference(SMALL), ours, [text])


def test_marks_that_survive_are_reordered():
    # U+302E (class 224) and U+1D165 (216) are not stripped; U+034F, stripped, has class 0 and keeps them apart.
    ours = WordPieceTokenizer(SMALL)
    assert ours.tokenize("x\u302e\U0001d165") == ours.tokenize("x\U0001d165\u302e") == ["x", "##\U0001d165", "##\u302e"]
    assert ours.tokenize("x\u302e\u034f\U0001d165") == ["x", "##\u302e", "##\U0001d165"]
    assert ours.tokenize("x\u302e\u200b\u0301\U0001d165") == ["x", "##\U0001d165", "##\u302e"]
    rng = random.Random(0)
    pool = [*MARKS, "\u034f", "\u200b", "\u0903", "a"]
    texts = ["x" + "".join(rng.choices(pool, k=rng.randint(1, 9))) for _ in range(20_000)]
    tokens = [*SPECIAL, "x", "a", "##a", *MARKS, *("##" + m for m in MARKS)]
    assert_same(reference(tokens), WordPieceTokenizer(tokens), texts)


def random_texts(rng, n):
    pools = [
        CODE_POINTS, MARKS, "abexyABEXYσΣİ", " \t\n\r\x0b\x85\u3000\u2028\u200b\0", ".,!'#[]$5", "中文한글",
        ["[SEP]", "[sep]", "[MASK]", "[PAD", "un", "affable", " the ", " ", " ", "🙂", "👩\u200d👧", "é" * 50],
        ["a" * k for k in range(97, 104)],
    ]  # fmt: skip
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 25))) for _ in range(n)]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_random_texts_small(lowercase, split):
    texts = random_texts(random.Random(1), 10_000)
    assert_same(reference(SMALL, lowercase, split), WordPieceTokenizer(SMALL, lowercase, split), texts)


@pytest.mark.parametrize("lowercase", [True, False])
def test_random_texts_real(minilm_tokens, lowercase):
    texts = random_texts(random.Random(2), 10_000)
    assert_same(reference(minilm_tokens, lowercase), WordPieceTokenizer(minilm_tokens, lowercase), texts)


def test_every_text_of_the_data(data_dir, real):
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


def test_transformers(minilm_dir, real):
    transformers = pytest.importorskip("transformers")
    hf = transformers.BertTokenizerFast.from_pretrained(minilm_dir)
    texts = random_texts(random.Random(3), 500)
    hypotheses = texts[::-1]
    wanted = hf(texts, hypotheses, max_length=22, truncation="longest_first", padding="max_length", return_tensors="pt")
    ids, segments, lens = real[0].encode_padded(texts, hypotheses, 22, truncation="longest_first_hf")
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(segments, wanted["token_type_ids"])
    assert torch.equal(lens, wanted["attention_mask"].sum(1))


def test_decode(real):
    ours, _ = real
    decoder = decoders.WordPiece(prefix="##", cleanup=False)
    rng = random.Random(4)
    for text in random_texts(rng, 300):
        tokens = [t for t in ours.tokenize(text) if t not in SPECIAL]
        assert ours.decode(ours.encode(text)) == decoder.decode(tokens)
    row = [ours.cls_id, *ours.encode("unbelievably good"), ours.sep_id, ours.pad_id]
    assert ours.decode(torch.tensor(row)) == "unbelievably good"
    assert WordPieceTokenizer(SMALL).decode([SMALL.index("##able"), SMALL.index("##a")]) == "##ablea"


def test_files(tmp_path, minilm_dir, minilm_tokens):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["normalizer"].update(strip_accents=False), "normalizer.strip_accents is False"),
        (lambda s: s["normalizer"].update(clean_text=False), "normalizer.clean_text is False"),
        (lambda s: s.update(normalizer=None), "normalizer.type is None"),
        (lambda s: s["model"].update(max_input_chars_per_word=50), "max_input_chars_per_word is 50"),
        (lambda s: s["model"].update(type="BPE"), "model.type is 'BPE'"),
        (lambda s: s["post_processor"]["pair"].pop(), "post_processor is"),
        (lambda s: s["added_tokens"][3].update(lstrip=True), r"lstrip of the added token \[SEP\] is True"),
        (lambda s: s["added_tokens"].append({"content": "[NEW]"}), "the set of added tokens is"),
        (lambda s: s.pop("model"), "expected a Hugging Face tokenizer.json"),
        (lambda s: s["model"]["vocab"].pop("the"), "without gaps"),
    ],
)
def test_tokenizer_json_that_cannot_be_reproduced(tmp_path, minilm_dir, change, message):
    settings = json.loads((minilm_dir / "tokenizer.json").read_text(encoding="utf-8"))
    change(settings)
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        WordPieceTokenizer.from_file(tmp_path / "tokenizer.json")


def test_missing_special_tokens(tmp_path):
    (tmp_path / "v.txt").write_text("[PAD]\n[UNK]\n[CLS]\nthe\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"v\.txt: the vocabulary has no \[SEP\] and no \[MASK\]"):
        WordPieceTokenizer.from_file(tmp_path / "v.txt")


def test_vocabulary_without_continuations_and_with_equal_tokens():
    tokens = [*SPECIAL, "a", "b", "a"]
    ours = WordPieceTokenizer(tokens)
    assert ours.encode("a ab b") == [7, 1, 6]
    assert_same(reference(tokens), ours, ["a ab b"])


# ---- places of tokens


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_offsets_of_random_texts(lowercase, split):
    texts = random_texts(random.Random(11), 6000)
    ours = WordPieceTokenizer(SMALL, lowercase, split)
    found = assert_same_offsets(reference(SMALL, lowercase, split), ours, texts, num_threads=3)
    dtypes = [t.dtype for t in (found.ids, found.offsets, found.starts, found.ends, found.word_ids)]
    assert dtypes == [torch.int32, torch.int64, torch.int32, torch.int32, torch.int32]
    assert len(found) == len(texts)


@pytest.mark.parametrize("lowercase", [True, False])
def test_offsets_with_a_real_vocabulary(minilm_tokens, lowercase):
    ours = WordPieceTokenizer(minilm_tokens, lowercase)
    assert_same_offsets(reference(minilm_tokens, lowercase), ours, random_texts(random.Random(12), 6000))


def test_offsets_of_every_code_point():
    # Pieces of single letters, so that each character's own place shows.
    tokens = [*SPECIAL, *"abxyAE", *("##" + c for c in "abxyAE"), *MARKS, *("##" + m for m in MARKS)]
    expected, ours = reference(tokens), WordPieceTokenizer(tokens)
    words = [f"x{c}y" for c in CODE_POINTS]
    assert_same_offsets(expected, ours, [" ".join(words[i : i + 64]) for i in range(0, len(words), 64)])


def test_offsets_where_marks_change_places():
    composed = [c for c in CODE_POINTS if len(unicodedata.normalize("NFD", c)) > 1 and not "가" <= c <= "힣"]
    pools = [MARKS, composed, ["\u302e", "\U0001d165", "\U0001d15e", "\u0344", "\u0f73", "a", "\u034f", "\u200b", " "]]
    rng = random.Random(13)
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 9))) for _ in range(20_000)]
    kept = {c for text in texts for c in normalizers.BertNormalizer().normalize_str(text)} - {" "}
    tokens = [*SPECIAL, *sorted(kept), *("##" + c for c in sorted(kept))]
    assert_same_offsets(reference(tokens), WordPieceTokenizer(tokens), texts)


def test_offsets_of_real_texts(data_dir, real):
    texts = (data_dir / "xquad" / "xquad.zh.json").read_text(encoding="utf-8").split('"')[:4000]
    texts += read_snli(data_dir / "snli_1.0", split="dev", columns="text")[1][:3000]
    assert_same_offsets(real[1], real[0], texts)


def test_offsets_of_words():
    ours = WordTokenizer(WORDS)
    rng = random.Random(14)
    pools = [CODE_POINTS[:0x3000], " \t\x1c\x85\u3000", WORDS.idx_to_token, ["ΑΣ", "DOG", "İİ"]]
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 12))) for _ in range(5000)]
    found = ours.encode_texts_with_offsets(texts, num_threads=2)
    for i, text in enumerate(texts):
        a, b = found.offsets[i], found.offsets[i + 1]
        spans = zip(found.starts[a:b].tolist(), found.ends[a:b].tolist(), strict=True)
        assert [text[start:end] for start, end in spans] == text.split()
        assert found.ids[a:b].tolist() == ours.encode(text)
        assert found.word_ids[a:b].tolist() == list(range(b - a))


def test_offsets_of_nothing(real):
    for texts in ([], ["", " "]):
        found = real[0].encode_texts_with_offsets(texts)
        assert (found.offsets.tolist(), len(found.ids), len(found)) == ([0] * (len(texts) + 1), 0, len(texts))
    with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate"):
        real[0].encode_texts_with_offsets(["a", "\ud800"])


# ---- Vocab


def test_vocab():
    vocab = Vocab([["b", "a", "b"], ["c", "a", "rare"]], min_freq=1, reserved_tokens=["<pad>", "<cls>", "<sep>"])
    assert vocab.idx_to_token == ["<unk>", "<pad>", "<cls>", "<sep>", "b", "a", "c", "rare"]
    assert Vocab(["b", "a", "b"], min_freq=2).idx_to_token == ["<unk>", "b"]
    assert vocab.token_freqs == [("b", 2), ("a", 2), ("c", 1), ("rare", 1)]
    assert (vocab["a"], vocab[["a", "z", ["b"]]], vocab[("c",)], len(vocab), vocab.unk) == (5, [5, 0, [4]], [6], 8, 0)
    assert (vocab.to_tokens(4), vocab.to_tokens([4]), vocab.to_tokens((4, 5))) == ("b", ["b"], ["b", "a"])
    assert (vocab.to_tokens(torch.tensor(4)), vocab.to_tokens(torch.tensor([4, 5]))) == ("b", ["b", "a"])
    empty = Vocab()
    assert (empty.idx_to_token, empty["x"]) == (["<unk>"], 0)
    empty.idx_to_token = ["<pad>", "<unk>"]
    empty.token_to_idx = {"<pad>": 0, "<unk>": 1}
    assert (empty.unk, empty["x"]) == (1, 1)
    assert pickle.loads(pickle.dumps(vocab)).__dict__ == vocab.__dict__


def test_vocab_files(tmp_path):
    vocab = Vocab(["é", "中", '"', "\u2028"], reserved_tokens=["<pad>"])
    vocab.save(tmp_path / "vocab.json")
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocab.idx_to_token
    assert Vocab.from_json(tmp_path / "vocab.json").token_to_idx == vocab.token_to_idx
    for text in ('{"a": 1}', '["a", 1]', "["):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"bad\.json: expected a JSON list of tokens"):
            Vocab.from_json(tmp_path / "bad.json")


# ---- words

WORDS = Vocab(
    ["a", "dog", "ας", "ασ", "straße", "i̇", "é", "a\u200bb", "x" * 20, "x" * 16, "x" * 15, "中文", "."],
    reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"],
)


def test_words_equal_python():
    ours = WordTokenizer(WORDS)
    rng = random.Random(6)
    spaces = [c for c in CODE_POINTS if c.isspace()]
    pools = [CODE_POINTS[:0x3000], spaces, WORDS.idx_to_token, ["ΑΣ", "A", "DOG", "Straße", "İ", "X" * 16, "K"], " "]
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 12))) for _ in range(20_000)]
    expected = [WORDS[text.lower().split()] for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    for source in (texts, tuple(texts), Texts.of(texts)):
        encoded = ours.encode_texts(source, max_len=1000)
        offsets, ids = encoded.offsets.tolist(), encoded.ids.tolist()
        assert [ids[offsets[i] + 1 : offsets[i + 1] - 1] for i in range(len(texts))] == expected
    assert ours.tokenize("A  DOG.") == ["a", "dog."]


def test_every_code_point_between_words():
    ours = WordTokenizer(WORDS)
    for c in CODE_POINTS[:0x11000]:
        text = f"dog{c}a {c}É{c}"
        assert ours.encode(text) == WORDS[text.lower().split()], hex(ord(c))


def test_word_tokenizer_interface():
    ours = WordTokenizer(WORDS)
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id) == (1, 3, 4, 0)
    assert (len(ours), ours.vocab_size) == (len(WORDS), len(WORDS))
    assert (ours.token_to_id("dog"), ours.id_to_token(WORDS["dog"])) == (WORDS["dog"], "dog")
    assert ours.decode([3, *ours.encode("a dog zebra"), 4, 1]) == "a dog <unk>"
    assert pickle.loads(pickle.dumps(ours)).encode("A dog") == ours.encode("a DOG")
    incomplete = WordTokenizer(Vocab(["a"], reserved_tokens=["<pad>"]))
    assert incomplete.encode("a b") == [2, 0]
    for encode in (incomplete.encode_pairs, incomplete.encode_padded):
        with pytest.raises(ValueError, match="no <cls> and no <sep>"):
            encode(["a"], ["a"])


# ---- bad input and sharing


@pytest.mark.parametrize("ours", [WordPieceTokenizer(SMALL), WordTokenizer(WORDS)])
def test_bad_texts(ours):
    good = ["a"] * 20
    for bad, name in ((None, "NoneType"), (3, "int"), (b"a", "bytes")):
        with pytest.raises(TypeError, match=rf"premises\[17\] must be str, not {name}"):
            ours.encode_pairs([*good[:17], bad, "a"], good[:19])
    with pytest.raises(TypeError, match=r"hypotheses\[1\] must be str, not float"):
        ours.encode_padded(["a", "b"], ["a", float("nan")])
    with pytest.raises(ValueError, match=r"texts\[2\] has a lone surrogate"):
        ours.encode_texts(["a", "b", "x\ud800"])
    with pytest.raises(ValueError, match="text has a lone surrogate"):
        ours.encode("\udfff")
    with pytest.raises(TypeError, match="text must be str, not int"):
        ours.encode(3)
    with pytest.raises(ValueError, match="equally many: found 2 and 1"):
        ours.encode_pairs(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="hypotheses must be a sequence of str, not one str"):
        ours.encode_pairs(["a"], "a")
    with pytest.raises(ValueError, match=r"at least 3 .* not 2"):
        ours.encode_pairs(["a"], ["a"], max_len=2)
    with pytest.raises(ValueError, match=r"at least 3 .* not -1"):
        ours.encode_padded(["a"], ["a"], max_len=-1)
    with pytest.raises(ValueError, match=r"at least 2 .* not 1"):
        ours.encode_texts(["a"], max_len=1)
    with pytest.raises(ValueError, match=r"truncation must be 'longest_first', .* not 'longest'"):
        ours.encode_pairs(["a"], ["a"], truncation="longest")
    with pytest.raises(ValueError, match="num_threads"):
        ours.encode_pairs(["a"], ["a"], num_threads=-1)
    broken = Texts.of(["a", "b"])
    broken.ends[1] = 99
    with pytest.raises(ValueError, match=r"premises\[1\] lies outside its arena"):
        ours.encode_pairs(broken, ["a", "b"])


def test_short_and_unaligned_texts(real):
    # Chunks are read 16 bytes at a time: every length, every place of the spaces, in strings and within an arena.
    ours, expected = real
    rng = random.Random(7)
    texts = ["".join(rng.choices("ab dog,. é", k=k)) for k in range(50) for _ in range(40)]
    assert_same(expected, ours, texts)
    wanted = [e.ids for e in expected.encode_batch_fast(texts)]
    whole = [[ours.cls_id, *e, ours.sep_id] for e in wanted]
    encoded = ours.encode_texts(Texts.of(texts), max_len=100)
    assert encoded.ids.tolist() == [i for row in whole for i in row]


def test_more_words_than_the_cache_holds(real):
    ours, expected = real
    texts = [" ".join(f"w{i * 50 + k}z" for k in range(50)) for i in range(3000)]
    assert_same(expected, ours, texts + texts[:100])


def test_huge_texts_are_read_no_further_than_needed(real):
    ours, _ = real
    huge = ["a" * 2_000_000, "." * 2_000_000, "e\u0301" * 600_000, "the " * 600_000, "[SEP]" * 400_000]
    short = [text[:3000] for text in huge]
    short[0], short[2] = "a" * 101, "e" * 101
    assert torch.equal(ours.encode_texts(huge, 50).ids, ours.encode_texts(short, 50).ids)
    pairs = ours.encode_pairs(huge, huge[::-1], 50, truncation="longest_first_hf")
    assert pairs.lengths.tolist() == [50, 50, 5, 50, 50]  # (two unknown words against each other: [UNK] alone)
    assert pairs.first_lens.tolist() == [3, 26, 3, 25, 48]


def test_python_threads_at_once(real):
    ours, _ = real
    texts = random_texts(random.Random(8), 2000)
    wanted = ours.encode_texts(texts, 64).ids
    results = {}

    def work(k):
        results[k] = all(torch.equal(ours.encode_texts(texts, 64, num_threads=2).ids, wanted) for _ in range(5))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == dict.fromkeys(range(6), True)
