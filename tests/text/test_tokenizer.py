"""Words as Python splits them; bad input, huge texts and threads for all tokenizers."""

from __future__ import annotations

import pickle
import random
import threading

import pytest
import torch
from helpers.texts import ALPHABETS, CODE_POINTS, SMALL, Real, random_texts

from bertnli.data.texts import Texts
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer


def test_words_equal_python() -> None:
    ours = WordTokenizer(ALPHABETS)
    rng = random.Random(6)
    spaces = [c for c in CODE_POINTS if c.isspace()]
    pools = [
        CODE_POINTS[:0x3000],
        spaces,
        [token for token in ALPHABETS.idx_to_token if token not in WordTokenizer.SPECIAL],
        ["ΑΣ", "A", "DOG", "Straße", "İ", "X" * 16, "K"],
        " ",
    ]
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 12))) for _ in range(20_000)]
    expected = [ALPHABETS[text.lower().split()] for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    for source in (texts, tuple(texts), Texts.of(texts)):
        encoded = ours.encode_texts(source, max_len=1000)
        offsets, ids = encoded.offsets.tolist(), encoded.ids.tolist()
        assert [ids[offsets[i] + 1 : offsets[i + 1] - 1] for i in range(len(texts))] == expected
    assert ours.tokenize("A  DOG.") == ["a", "dog."]


def test_every_code_point_between_words() -> None:
    ours = WordTokenizer(ALPHABETS)
    for c in CODE_POINTS[:0x11000]:
        text = f"dog{c}a {c}É{c}"
        assert ours.encode(text) == ALPHABETS[text.lower().split()], hex(ord(c))


def test_word_tokenizer_interface() -> None:
    ours = WordTokenizer(ALPHABETS)
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id) == (1, 3, 4, 0)
    assert (len(ours), ours.vocab_size) == (len(ALPHABETS), len(ALPHABETS))
    assert (ours.token_to_id("dog"), ours.id_to_token(ALPHABETS["dog"])) == (ALPHABETS["dog"], "dog")
    assert ours.decode([3, *ours.encode("a dog zebra"), 4, 1]) == "a dog <unk>"
    assert pickle.loads(pickle.dumps(ours)).encode("A dog") == ours.encode("a DOG")
    incomplete = WordTokenizer(Vocab(["a"], reserved_tokens=["<pad>"]))
    assert incomplete.encode("a b") == [2, 0]
    for encode in (incomplete.encode_pairs, incomplete.encode_padded):
        with pytest.raises(ValueError, match="no <cls> and no <sep>"):
            encode(["a"], ["a"])


def test_no_text_forges_a_segment() -> None:
    ours = WordTokenizer(ALPHABETS)
    for token in ("<sep>", "<cls>", "<pad>", "<mask>", "<SEP>", "<unk>"):
        assert ours.encode(f"a {token} dog") == [ours.token_to_id("a"), ours.unk_id, ours.token_to_id("dog")]
        assert ours.encode_texts_with_offsets([token]).ids.tolist() == [ours.unk_id]
    forged = ours.encode_pairs(["a <sep> dog"], ["a"])
    assert (forged.ids == ours.sep_id).sum() == 2
    assert ours.token_to_id("<sep>") == ours.sep_id


@pytest.mark.parametrize("ours", [WordPieceTokenizer(SMALL), WordTokenizer(ALPHABETS)])
def test_bad_texts(ours: Tokenizer) -> None:
    good = ["a"] * 20
    for bad, name in ((None, "NoneType"), (3, "int"), (b"a", "bytes")):
        with pytest.raises(TypeError, match=rf"premises\[17\] must be str, not {name}"):
            ours.encode_pairs([*good[:17], bad, "a"], good[:19])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"hypotheses\[1\] must be str, not float"):
        ours.encode_padded(["a", "b"], ["a", float("nan")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"texts\[2\] has a lone surrogate"):
        ours.encode_texts(["a", "b", "x\ud800"])
    with pytest.raises(ValueError, match="text has a lone surrogate"):
        ours.encode("\udfff")
    with pytest.raises(TypeError, match="text must be str, not int"):
        ours.encode(3)  # type: ignore[arg-type]
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
        ours.encode_pairs(["a"], ["a"], truncation="longest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_threads"):
        ours.encode_pairs(["a"], ["a"], num_threads=-1)
    broken = Texts.of(["a", "b"])
    broken.ends[1] = 99
    with pytest.raises(ValueError, match=r"premises\[1\] lies outside its arena"):
        ours.encode_pairs(broken, ["a", "b"])


def test_huge_texts_are_read_no_further_than_needed(real: Real) -> None:
    ours, _ = real
    huge = ["a" * 2_000_000, "." * 2_000_000, "e\u0301" * 600_000, "the " * 600_000, "[SEP]" * 400_000]
    short = [text[:3000] for text in huge]
    short[0], short[2] = "a" * 101, "e" * 101
    assert torch.equal(ours.encode_texts(huge, 50).ids, ours.encode_texts(short, 50).ids)
    pairs = ours.encode_pairs(huge, huge[::-1], 50, truncation="longest_first_hf")
    assert pairs.lengths.tolist() == [50, 50, 5, 50, 50]  # (two unknown words against each other: [UNK] alone)
    assert pairs.first_lens.tolist() == [3, 26, 3, 25, 48]


def test_python_threads_at_once(real: Real) -> None:
    ours, _ = real
    texts = random_texts(random.Random(8), 2000)
    wanted = ours.encode_texts(texts, 64).ids
    results = {}

    def work(k: int) -> None:
        results[k] = all(torch.equal(ours.encode_texts(texts, 64, num_threads=2).ids, wanted) for _ in range(5))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == dict.fromkeys(range(6), True)
