import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from helpers import d2l_oracle
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data._utils.collate import default_collate

from bertnli.d2l.dataset import SNLIBERTDataset
from bertnli.data.snli import read_pairs, read_snli
from bertnli.data.texts import Texts
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

VOCAB = Vocab([f"w{i}" for i in range(50)], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])
WORDS = WordTokenizer(VOCAB)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def text(n, start=0):
    return " ".join(f"w{(start + i) % 50}" for i in range(n))


def random_pairs(rng, n, longest=12):
    premises = [text(rng.randint(0, longest), rng.randint(0, 49)) for _ in range(n)]
    for i in range(1, n):
        if rng.random() < 0.3:
            premises[i] = premises[i - 1]
    return premises, [text(rng.randint(0, longest), rng.randint(0, 49)) for _ in range(n)]


def kept(encoded):
    """(premise tokens, hypothesis tokens) of each row."""
    return [(f - 2, n - f - 1) for f, n in zip(encoded.first_lens.tolist(), encoded.lengths.tolist(), strict=True)]


# ---- truncation

LENGTHS = [(p, h) for p in range(13) for h in range(13)]


@pytest.mark.parametrize("max_len", range(3, 26))
def test_longest_first_equals_popping(max_len):
    premises, hypotheses = [text(p) for p, _ in LENGTHS], [text(h, 25) for _, h in LENGTHS]
    expected = d2l_oracle.encode_dataset(VOCAB, premises, hypotheses, max_len)
    for tensor, wanted in zip(WORDS.encode_padded(premises, hypotheses, max_len), expected, strict=True):
        assert tensor.tolist() == wanted
    encoded = WORDS.encode_pairs(premises, hypotheses, max_len)
    for tensor, wanted in zip(encoded.to_padded(), expected, strict=True):
        assert tensor.tolist() == wanted


def test_the_designs_examples():
    pairs = [(10, 10), (7, 20)]
    premises, hypotheses = [text(p) for p, _ in pairs], [text(h) for _, h in pairs]
    assert kept(WORDS.encode_pairs(premises, hypotheses, 16)) == [(7, 6), (7, 6)]
    assert kept(WORDS.encode_pairs(premises, hypotheses, 16, truncation="longest_first_hf")) == [(6, 7), (6, 7)]


def huggingface(strategy, max_len):
    model = tokenizers.models.WordLevel({**VOCAB.token_to_idx}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", VOCAB["<cls>"]), ("<sep>", VOCAB["<sep>"])],
    )
    tokenizer.enable_truncation(max_len, strategy=strategy)
    return tokenizer


@pytest.mark.parametrize("max_len", range(3, 26))
def test_longest_first_hf_equals_tokenizers(max_len):
    pairs = [(text(p), text(h, 25)) for p, h in LENGTHS]
    expected = huggingface("longest_first", max_len).encode_batch(pairs)
    encoded = WORDS.encode_pairs(*zip(*pairs, strict=True), max_len, truncation="longest_first_hf")
    ids, segments, lens = encoded.to_padded()
    for i, e in enumerate(expected):
        assert (ids[i, : lens[i]].tolist(), segments[i, : lens[i]].tolist()) == (e.ids, e.type_ids), LENGTHS[i]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("max_len", range(4, 26))
def test_only_one_is_cut(which, max_len):
    strategy = ("only_first", "only_second")[which]
    fit = [pair for pair in LENGTHS if pair[1 - which] < max_len - 3]  # (tokenizers wants one token to stay)
    pairs = [(text(p), text(h, 25)) for p, h in fit]
    expected = huggingface(strategy, max_len).encode_batch(pairs)
    encoded = WORDS.encode_pairs(*zip(*pairs, strict=True), max_len, truncation=strategy)
    assert encoded.ids.tolist() == [i for e in expected for i in e.ids]
    budget = max_len - 3
    names = ("hypotheses", "premises")
    full = [text(5), text(budget)], [text(5), text(budget)]
    long = [*full[1 - which][:1], text(budget + 1)]
    columns = (full[0], long) if which == 0 else (long, full[1])
    if budget >= 5:
        exact = kept(WORDS.encode_pairs(*full, max_len, truncation=strategy))[1]
        assert exact == ((0, budget) if which == 0 else (budget, 0))
        with pytest.raises(ValueError, match=rf"{names[which]}\[1\] has more than the {budget} tokens"):
            WORDS.encode_pairs(*columns, max_len, truncation=strategy)


def test_ratio_cuts_in_proportion():
    for max_len in range(3, 26):
        budget = max_len - 3
        encoded = WORDS.encode_pairs(
            [text(p) for p, _ in LENGTHS], [text(h) for _, h in LENGTHS], max_len, truncation="ratio"
        )
        for (p, h), (a, b) in zip(LENGTHS, kept(encoded), strict=True):
            if p + h <= budget:
                assert (a, b) == (p, h)
                continue
            assert a + b == budget
            assert a <= p
            assert b <= h
            if budget >= 2:
                assert (a > 0, b > 0) == (p > 0, h > 0)
                assert abs(a - budget * p / (p + h)) <= (0.5 if 0.5 < budget * p / (p + h) < budget - 0.5 else 1)


def test_texts_far_beyond_the_budget():
    # Counting stops early only where the rule cannot tell the difference.
    pairs = [(500, 500), (500, 400), (400, 500), (500, 3), (3, 500), (17, 500), (500, 17), (16, 18)]
    premises, hypotheses = [text(p) for p, _ in pairs], [text(h, 9) for _, h in pairs]
    wanted = d2l_oracle.encode_dataset(VOCAB, premises, hypotheses, 36)
    assert [t.tolist() for t in WORDS.encode_padded(premises, hypotheses, 36)] == list(wanted)
    hf = huggingface("longest_first", 36).encode_batch(list(zip(premises, hypotheses, strict=True)))
    ours = WORDS.encode_pairs(premises, hypotheses, 36, truncation="longest_first_hf")
    assert ours.ids.tolist() == [i for e in hf for i in e.ids]
    ratio = kept(WORDS.encode_pairs(premises, hypotheses, 36, truncation="ratio"))
    assert ratio == [(17, 16), (18, 15), (15, 18), (32, 1), (1, 32), (1, 32), (32, 1), (16, 17)]


def test_single_texts():
    encoded = WORDS.encode_texts([text(3), "", text(50)], max_len=6, labels=[0.5, 1, 2])
    cls, sep = VOCAB["<cls>"], VOCAB["<sep>"]
    w = [VOCAB[f"w{i}"] for i in range(4)]
    assert encoded.ids.tolist() == [cls, *w[:3], sep, cls, sep, cls, *w, sep]
    assert encoded.first_lens.tolist() == encoded.lengths.tolist() == [5, 2, 6]
    assert encoded.labels.dtype == torch.float32
    assert WORDS.encode_texts([text(3)], max_len=2).ids.tolist() == [cls, sep]


# ---- encoded pairs


@pytest.fixture(scope="module")
def encoded():
    rng = random.Random(0)
    return WORDS.encode_pairs(*random_pairs(rng, 300), 16, labels=[rng.randrange(3) for _ in range(300)])


def rows_of(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]


def test_threads_and_sources_give_the_same():
    premises, hypotheses = random_pairs(random.Random(1), 5000)
    for rule in ("longest_first", "longest_first_hf", "ratio"):
        one = WORDS.encode_pairs(premises, hypotheses, 14, truncation=rule, num_threads=1)
        dense = WORDS.encode_padded(premises, hypotheses, 14, truncation=rule, num_threads=1)
        assert all(torch.equal(a, b) for a, b in zip(dense, one.to_padded(), strict=True))
        for threads in (0, 2, 5):
            for p, h in ((premises, hypotheses), (Texts.of(premises), np.array(hypotheses, dtype=object))):
                more = WORDS.encode_pairs(p, h, 14, truncation=rule, num_threads=threads)
                for name in ("ids", "offsets", "first_lens"):
                    assert torch.equal(getattr(one, name), getattr(more, name))
                again = WORDS.encode_padded(p, h, 14, truncation=rule, num_threads=threads)
                assert all(torch.equal(a, b) for a, b in zip(dense, again, strict=True))
    hypotheses[4000] = hypotheses[3999] = text(30)
    with pytest.raises(ValueError, match=r"hypotheses\[3999\]"):
        WORDS.encode_pairs(premises, hypotheses, 20, truncation="only_first", num_threads=5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("max_len", [16, 17])
def test_more_rows_than_a_block(threads, max_len):
    """Lists are taken block by block: whatever the length, as if all at once. (A row of 16 fills two cache lines.)"""
    rng = random.Random(31)
    premises, hypotheses = random_pairs(rng, 40_000)
    premises[20_000] = "\u0130" + premises[20_000]  # lowered by Python
    labels = torch.arange(40_000)
    whole = WORDS.encode_pairs(Texts.of(premises), Texts.of(hypotheses), max_len, num_threads=1, labels=labels)
    for n in (8191, 8192, 8193, 16_384, 16_385, 40_000):
        found = WORDS.encode_pairs(premises[:n], tuple(hypotheses[:n]), max_len, num_threads=threads, labels=labels[:n])
        assert_equal_pairs(found, whole[:n])
        dense = WORDS.encode_padded(premises[:n], hypotheses[:n], max_len, num_threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(dense, found.to_padded(), strict=True))
    for row, bad, error in ((30_000, 7, TypeError), (39_999, "\ud800", ValueError)):
        broken = [*premises[:row], bad, *premises[row + 1 :]]
        with pytest.raises(error, match=rf"premises\[{row}\]"):
            WORDS.encode_pairs(broken, hypotheses, num_threads=threads)
    long = [*hypotheses[:25_000], text(30), *hypotheses[25_001:-1], text(30)]
    with pytest.raises(ValueError, match=r"hypotheses\[25000\] has more than"):
        WORDS.encode_pairs(premises, long, 23, "only_first", num_threads=threads)


def test_lists_that_change_meanwhile():
    """The GIL is free between the blocks: what others do to the lists then is found, or does no harm."""
    hypotheses = ["w1"] * 40_000

    class Lowering(str):
        def lower(self):
            changes[-1]()
            return "w2"

    premises: list[str] = []

    def encode():
        premises[:] = [f"w{i % 50}" for i in range(40_000)]
        premises[5] = Lowering("\u0130")
        return WORDS.encode_pairs(premises, hypotheses, num_threads=2)

    def replace():
        premises[:] = [f"w{i % 50 + 100}" for i in range(40_000)]  # the list held them alone

    changes = [replace]
    found = encode()
    assert found.ids[found.offsets[5] + 1] == VOCAB["w2"]
    assert found.ids[found.offsets[6] + 1] == VOCAB["w6"]  # of the block that was taken before
    assert found.ids[found.offsets[39_999] + 1] == VOCAB.unk
    for change in (premises.clear, lambda: premises.append("w1")):
        changes.append(change)
        with pytest.raises(RuntimeError, match="premises changed size while they were encoded"):
            encode()
    assert len(WORDS.encode_pairs(premises[:7], hypotheses[:7])) == 7


def test_types(encoded):
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (torch.int32, torch.int64)
    assert (encoded.first_lens.dtype, encoded.labels.dtype) == (torch.int32, torch.int64)
    assert (encoded.pad_id, encoded.max_len, len(encoded)) == (VOCAB["<pad>"], 16, 300)
    assert repr(encoded) == f"EncodedTexts(300 sequences, {len(encoded.ids)} tokens, max_len=16)"


def test_empty():
    nothing = WORDS.encode_pairs([], [], 16, labels=[])
    assert (len(nothing), nothing.offsets.tolist()) == (0, [0])
    assert [list(t.shape) for t in nothing.to_padded()] == [[0, 16], [0, 16], [0]]
    assert [list(t.shape) for t in WORDS.encode_padded([], [], 16)] == [[0, 16], [0, 16], [0]]
    assert len(nothing.batch([])) == 0


@pytest.mark.parametrize(
    "rows", [[3, 0, 0, 299], (5,), range(10, 4, -2), torch.tensor([7, 1]), np.array([2, 9], dtype=np.int32), []]
)
def test_batch(encoded, rows):
    batch = encoded.batch(rows)
    rows = [int(r) for r in rows]
    every = rows_of(encoded)
    assert batch.input_ids.tolist() == [i for r in rows for i in every[r]]
    firsts = encoded.first_lens.tolist()
    assert batch.segment_ids.tolist() == [int(k >= firsts[r]) for r in rows for k in range(len(every[r]))]
    assert batch.positions.tolist() == [k for r in rows for k in range(len(every[r]))]
    assert batch.cu_seqlens.tolist() == np.cumsum([0, *(len(every[r]) for r in rows)]).tolist()
    assert batch.max_seqlen == max((len(every[r]) for r in rows), default=0)
    assert batch.labels.tolist() == [int(encoded.labels[r]) for r in rows]
    assert {t.dtype for t in (batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens)} == {torch.int32}


def test_bad_rows(encoded):
    for rows in ([0, 300], [-1], range(299, 302), torch.tensor([1 << 40])):
        with pytest.raises(IndexError, match="out of range for 300"):
            encoded.batch(rows)
    with pytest.raises(TypeError, match="index must be a sequence of integers"):
        encoded.batch([0.5])
    damaged = EncodedTexts(encoded.ids, encoded.offsets + 1, encoded.first_lens, pad_id=1, max_len=16)
    with pytest.raises(ValueError, match="row 299 of the encoded pairs is damaged"):
        damaged.batch([0, 299])
    with pytest.raises(ValueError, match="does not fit into max_len 10"):
        encoded.to_padded(10)


def test_slices(encoded):
    every = rows_of(encoded)
    for s in (slice(3, 9), slice(None), slice(290, None), slice(5, 2), slice(None, None, -1), slice(1, 100, 7)):
        part = encoded[s]
        assert rows_of(part) == every[s]
        assert part.first_lens.tolist() == encoded.first_lens.tolist()[s]
        assert part.labels.tolist() == encoded.labels.tolist()[s]
        assert all(torch.equal(a, b[list(range(300)[s])]) for a, b in
                   zip(part.to_padded(), encoded.to_padded(), strict=True))  # fmt: skip
    assert encoded[3:9].ids.data_ptr() == encoded.ids.data_ptr() + 4 * int(encoded.offsets[3])
    with pytest.raises(TypeError, match="takes a slice"):
        encoded[0]


def test_save_and_load(encoded, tmp_path):
    for pairs in (encoded, encoded[5:50], WORDS.encode_pairs([text(3)], [text(2)], 9), WORDS.encode_texts([])):
        pairs.save(tmp_path / "x.safetensors")
        back = EncodedTexts.load(tmp_path / "x.safetensors")
        assert rows_of(back) == rows_of(pairs)
        assert (back.pad_id, back.max_len) == (pairs.pad_id, pairs.max_len)
        assert torch.equal(back.first_lens, pairs.first_lens)
        assert (back.labels is None) == (pairs.labels is None)
        assert back.labels is None or torch.equal(back.labels, pairs.labels)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    copy = pickle.loads(pickle.dumps(encoded))
    assert rows_of(copy) == rows_of(encoded)


def test_damaged_files(encoded, tmp_path):
    path = tmp_path / "x.safetensors"
    encoded.save(path)
    whole = path.read_bytes()
    for bad in (b"", b"hello", whole[:-5], whole[:100], whole.replace(b"bertnli.Enc", b"something.E")):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"x\.safetensors is corrupt or not an EncodedTexts file"):
            EncodedTexts.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        EncodedTexts.load(tmp_path / "absent")


def test_bad_labels():
    for labels in ([1], [1, 2, 3], torch.zeros(1, 2)):
        with pytest.raises(ValueError, match="as many as the sequences"):
            WORDS.encode_pairs(["a", "b"], ["a", "b"], labels=labels)


# ---- straight from files


def assert_equal_pairs(a, b):
    for name in ("ids", "offsets", "first_lens", "labels"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name
    assert (a.pad_id, a.max_len) == (b.pad_id, b.max_len)


def read_then_encode(tokenizer, path, columns, *arguments, **options):
    data = read_pairs(path, columns)
    return tokenizer.encode_pairs(data.first, data.second, *arguments, labels=data.labels, **options), data


@pytest.mark.parametrize("columns", ["parse", "text"])
@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_real_files_at_once(data_dir, minilm_dir, columns, kind):
    paths = [data_dir / "snli_1.0" / f"snli_1.0_{split}.txt" for split in ("train", "dev", "test")]
    paths += sorted((data_dir / "snli_1.0" / "official_sample_10_rows").glob("*dev*"))
    paths += [data_dir / "ocnli" / "dev.json"] if columns == "text" else []
    if kind == "pieces":
        tokenizer = WordPieceTokenizer.from_file(minilm_dir / "vocab.txt")
    else:
        tokenizer = WordTokenizer(book_vocabulary(*read_snli(paths[0], columns=columns)[:2]))
    for path in paths:
        for max_len, threads in ((128, 1), (21, 3)):
            wanted, data = read_then_encode(tokenizer, path, columns, max_len)
            found = tokenizer.encode_file(path, max_len, num_threads=threads, columns=columns)
            assert_equal_pairs(found, wanted)
            assert found.dropped == data.dropped


def random_file(rng, path, odd):
    """Rows in SNLI's layout whose parses have what official ones have, and with `odd` what they have not."""
    pieces = ["( ", ") ", "w1 ", "W2 ", "w33 ", "( w4 ) ", ". ", "supercalifragilistic "]
    strange = ["(", ")", "  ", "\xa0", "\x1c", "\x85", "é ", "É", "İ", "ΑΣ ", "w5(w6", "\u3000"]
    lines = ["gold_label\tsentence1_binary_parse\tsentence2_binary_parse"]
    for _ in range(400):
        texts = ["".join(rng.choices([*pieces, *strange] if rng.random() < odd else pieces, k=rng.randint(0, 30)))
                 for _ in range(2)]  # fmt: skip
        if len(lines) > 1 and rng.random() < 0.3:
            texts[0] = lines[-1].split("\t")[1]
        lines.append("\t".join([rng.choice(["neutral", "entailment", "-"]), *texts]))
    path.write_text("\n".join(lines), encoding="utf-8", newline="")


@pytest.mark.parametrize(
    "tokenizer", [WORDS, WordPieceTokenizer([*SPECIAL, "w", "##1", "##2", "e", "i", ".", "(", ")"])]
)
@pytest.mark.parametrize("rule", ["longest_first", "longest_first_hf", "ratio"])
def test_parses_at_once(tmp_path, tokenizer, rule):
    rng = random.Random(20)
    for i in range(30):
        path = tmp_path / "x.txt"
        random_file(rng, path, odd=0.3 if i % 2 else 0)
        wanted, data = read_then_encode(tokenizer, path, "parse", 17, truncation=rule)
        found = tokenizer.encode_file(path, 17, rule, columns="parse")
        assert_equal_pairs(found, wanted)
        assert found.dropped == data.dropped


def test_bad_files_at_once(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("label\tpremise\thypothesis\nneutral\tw1\tw2\nneutral\tw1 w2 w3\tw1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.tsv:3: the premise has more than the 2 tokens"):
        WORDS.encode_file(path, 5, "only_second", columns="text")
    with pytest.raises(ValueError, match=r"x\.tsv:1: expected a header with a column 'sentence1_binary_parse'"):
        WORDS.encode_file(path)
    with pytest.raises(ValueError, match=r"x\.tsv:2: unknown label 'neutral'; the known ones are no, yes"):
        WORDS.encode_file(path, columns="text", label_names=("no", "yes"))
    with pytest.raises(ValueError, match="at least 3"):
        WORDS.encode_file(path, 2, columns="text")
    with pytest.raises(FileNotFoundError, match="absent"):
        WORDS.encode_file(tmp_path / "absent.txt")


STREAM = """
import resource, sys
from bertnli.data.snli import SNLI_LABELS
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import Vocab
words = WordTokenizer(Vocab(["w1 w2".split()], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))
options = dict(columns="text", num_threads=2, label_names=SNLI_LABELS)
words.encode_file(sys.argv[1], **options)
with open("/proc/self/status") as file:
    data = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data + (48 << 20),) * 2)
try:
    open(sys.argv[2], "rb").read()
except MemoryError:
    pairs = words.encode_file(sys.argv[2], **options)
    print(len(pairs), pairs.ids.sum().item(), pairs.labels.sum().item())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory as Linux has them")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_files_larger_than_memory(tmp_path, suffix):
    """A process that may not have as much memory as the file is large encodes it all the same."""
    small, large = tmp_path / f"small{suffix}", tmp_path / f"large{suffix}"
    for path, rows in ((small, 3), (large, 150)):
        with path.open("w", encoding="utf-8") as file:
            if suffix == ".txt":
                file.write("label\tother\tpremise\thypothesis\n")
            for i in range(rows):
                row = {"label": str(i % 3), "other": "x" * 1_000_000, "premise": "w1 w2 w1", "hypothesis": "w2"}
                file.write((json.dumps(row) if suffix == ".jsonl" else "\t".join(row.values())) + "\n")
    root = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(
        [sys.executable, "-c", STREAM, small, large], capture_output=True, text=True, check=True, cwd=root
    )
    assert list(map(int, run.stdout.split())) == [150, 150 * (3 + 4 + 4 + 5 + 6 + 5 + 6), 150]


# ---- dataset


def book_vocabulary(*texts):
    return Vocab([t.lower().split() for column in texts for t in column], min_freq=2,
                 reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])  # fmt: skip


@pytest.mark.parametrize(("split", "max_len"), [("train", 128), ("dev", 24), ("test", 15)])
def test_dataset_equals_the_book_on_real_files(data_dir, capsys, split, max_len):
    data = read_snli(data_dir / "snli_1.0", split=split)
    vocab = book_vocabulary(*data[:2])
    dataset = SNLIBERTDataset(data, max_len, vocab)
    assert capsys.readouterr().out == f"read {len(data[2])} examples\n"
    path = data_dir / "snli_1.0" / f"snli_1.0_{split}.txt"
    premises, hypotheses, labels = d2l_oracle.read_snli(path)
    ids, segments, lens = d2l_oracle.encode_dataset(vocab, premises, hypotheses, max_len)
    assert torch.equal(dataset.all_token_ids, torch.tensor(ids))
    assert torch.equal(dataset.all_segments, torch.tensor(segments))
    assert torch.equal(dataset.valid_lens, torch.tensor(lens))
    assert torch.equal(dataset.labels, torch.tensor(labels))
    assert_equal_pairs(SNLIBERTDataset(path, max_len, vocab).encoded, dataset.encoded)
    assert (dataset.vocab, dataset.max_len, len(dataset)) == (vocab, max_len, len(labels))


def book_items(n=70, max_len=16):
    rng = random.Random(3)
    premises, hypotheses = random_pairs(rng, n)
    labels = [rng.randrange(3) for _ in range(n)]
    ids, segments, lens = map(torch.tensor, d2l_oracle.encode_dataset(VOCAB, premises, hypotheses, max_len))
    items = [((ids[i], segments[i], lens[i]), torch.tensor(labels[i])) for i in range(n)]
    return SNLIBERTDataset((premises, hypotheses, labels), max_len, VOCAB), items


def assert_same_tree(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_tree(x, y)


def test_items():
    dataset, items = book_items()
    for i, item in enumerate(items):
        assert_same_tree(dataset[i], item)
    assert_same_tree(dataset[-1], items[-1])
    for i in (70, -71):
        with pytest.raises(IndexError):
            dataset[i]
    with pytest.raises(ValueError, match="needs vocab"):
        SNLIBERTDataset(([], [], []), 16)


def test_dataset_with_each_kind_of_vocabulary():
    class Other:
        idx_to_token = VOCAB.idx_to_token
        token_to_idx = VOCAB.token_to_idx

    data = ([text(3)], [text(2)], [1])
    wanted = SNLIBERTDataset(data, 16, VOCAB).all_token_ids
    assert torch.equal(SNLIBERTDataset(data, 16, Other()).all_token_ids, wanted)
    assert torch.equal(SNLIBERTDataset(data, 16, WORDS).all_token_ids, wanted)
    pieces = SNLIBERTDataset((["a b"], ["b."], [2]), 8, WordPieceTokenizer([*SPECIAL, "a", "b", "."]))
    assert pieces.all_token_ids.tolist() == [[2, 5, 6, 3, 6, 7, 3, 0]]


@pytest.mark.parametrize("workers", [None, "fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # (of one processor)
def test_stock_loader_gives_the_books_batches(workers):
    dataset, items = book_items()
    options = {"num_workers": 2, "multiprocessing_context": workers} if workers else {}

    def batches(source, **more):
        sampler = RandomSampler(source, generator=torch.Generator().manual_seed(5))
        return list(DataLoader(source, batch_size=16, sampler=sampler, **more))

    ours, book = batches(dataset, **options), batches(items)
    assert len(ours) == len(book) == 5
    for a, b in zip(ours, book, strict=True):
        assert_same_tree(a, b)


def test_rows_of_a_batch_are_examples_too():
    dataset, items = book_items()
    rows = dataset.__getitems__([4, 2, 2])
    assert len(rows) == 3
    for row, i in zip(rows, [4, 2, 2], strict=True):
        assert_same_tree(tuple(row), items[i])
    assert_same_tree(default_collate(rows), default_collate([items[4], items[2], items[2]]))
    assert_same_tree(default_collate(list(rows)), default_collate([items[4], items[2], items[2]]))
    assert_same_tree(default_collate(rows[:2]), default_collate([items[4], items[2]]))


def _child(queue, tokenizer, premises, hypotheses):
    queue.put(tokenizer.encode_pairs(premises, hypotheses, 14, num_threads=2).ids.numpy())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_after_fork():
    premises, hypotheses = random_pairs(random.Random(6), 3000)
    wanted = WORDS.encode_pairs(premises, hypotheses, 14, num_threads=2).ids
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, WORDS, premises, hypotheses))
    child.start()
    assert np.array_equal(queue.get(timeout=60), wanted.numpy())
    child.join()
    assert child.exitcode == 0
