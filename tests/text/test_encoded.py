"""EncodedTexts: encoding from every kind of source, batches, slices, padding, files."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.texts import WORD_VOCAB, WORDS, assert_equal_encoded, random_pairs, sequences_of, word_text

from bertnli.data.texts import Texts
from bertnli.text.encoded import EncodedTexts


@pytest.fixture(scope="module")
def encoded() -> EncodedTexts:
    rng = random.Random(0)
    return WORDS.encode_pairs(*random_pairs(rng, 300), 16, labels=[rng.randrange(3) for _ in range(300)])


def test_single_texts() -> None:
    encoded = WORDS.encode_texts([word_text(3), "", word_text(50)], max_len=6, labels=[0.5, 1, 2])
    cls, sep = WORD_VOCAB["<cls>"], WORD_VOCAB["<sep>"]
    w = [WORD_VOCAB[f"w{i}"] for i in range(4)]
    assert encoded.ids.tolist() == [cls, *w[:3], sep, cls, sep, cls, *w, sep]
    assert encoded.first_lens.tolist() == encoded.lengths.tolist() == [5, 2, 6]
    assert encoded.labels is not None
    assert encoded.labels.dtype == torch.float32
    assert WORDS.encode_texts([word_text(3)], max_len=2).ids.tolist() == [cls, sep]


def test_labels_that_are_no_numbers() -> None:
    cases: list[tuple[Any, str]] = [
        (["entailment", "neutral"], r"labels\[0\] is 'entailment', not a number; give its index in your class names"),
        ([0, None], r"labels\[1\] is None, not a number; leave out the examples without a label"),
        (np.array([0, "a"], dtype=object), r"labels\[1\] is 'a', not a number"),
    ]
    for labels, message in cases:
        with pytest.raises(TypeError, match=message):
            WORDS.encode_pairs(["w1", "w2"], ["w1", "w2"], 16, labels=labels)


def test_threads_and_sources_give_the_same() -> None:
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
    hypotheses[4000] = hypotheses[3999] = word_text(30)
    with pytest.raises(ValueError, match=r"hypotheses\[3999\]"):
        WORDS.encode_pairs(premises, hypotheses, 20, truncation="only_first", num_threads=5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("max_len", [16, 17])
def test_more_rows_than_a_block(threads: int, max_len: int) -> None:
    """Lists are taken block by block: whatever the length, as if all at once. (A row of 16 fills two cache lines.)"""
    rng = random.Random(31)
    premises, hypotheses = random_pairs(rng, 40_000)
    premises[20_000] = "\u0130" + premises[20_000]  # lowered by Python
    labels = torch.arange(40_000)
    whole = WORDS.encode_pairs(Texts.of(premises), Texts.of(hypotheses), max_len, num_threads=1, labels=labels)
    for n in (8191, 8192, 8193, 16_384, 16_385, 40_000):
        found = WORDS.encode_pairs(premises[:n], tuple(hypotheses[:n]), max_len, num_threads=threads, labels=labels[:n])
        assert_equal_encoded(found, whole[:n])
        dense = WORDS.encode_padded(premises[:n], hypotheses[:n], max_len, num_threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(dense, found.to_padded(), strict=True))
    for row, bad, error in ((30_000, 7, TypeError), (39_999, "\ud800", ValueError)):
        broken = [*premises[:row], bad, *premises[row + 1 :]]
        with pytest.raises(error, match=rf"premises\[{row}\]"):
            WORDS.encode_pairs(broken, hypotheses, num_threads=threads)  # type: ignore[arg-type]
    long = [*hypotheses[:25_000], word_text(30), *hypotheses[25_001:-1], word_text(30)]
    with pytest.raises(ValueError, match=r"hypotheses\[25000\] has more than"):
        WORDS.encode_pairs(premises, long, 23, "only_first", num_threads=threads)


def test_lists_that_change_meanwhile() -> None:
    """The GIL is free between the blocks: what others do to the lists then is found, or does no harm."""
    hypotheses = ["w1"] * 40_000

    class Lowering(str):
        def lower(self) -> str:
            changes[-1]()
            return "w2"

    premises: list[str] = []

    def encode() -> EncodedTexts:
        premises[:] = [f"w{i % 50}" for i in range(40_000)]
        premises[5] = Lowering("\u0130")
        return WORDS.encode_pairs(premises, hypotheses, num_threads=2)

    def replace() -> None:
        premises[:] = [f"w{i % 50 + 100}" for i in range(40_000)]  # the list held them alone

    changes = [replace]
    found = encode()
    assert found.ids[found.offsets[5] + 1] == WORD_VOCAB["w2"]
    assert found.ids[found.offsets[6] + 1] == WORD_VOCAB["w6"]  # of the block that was taken before
    assert found.ids[found.offsets[39_999] + 1] == WORD_VOCAB.unk
    for change in (premises.clear, lambda: premises.append("w1")):
        changes.append(change)
        with pytest.raises(RuntimeError, match="premises changed size while they were encoded"):
            encode()
    assert len(WORDS.encode_pairs(premises[:7], hypotheses[:7])) == 7


def test_types(encoded: EncodedTexts) -> None:
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (torch.int32, torch.int64)
    assert encoded.labels is not None
    assert (encoded.first_lens.dtype, encoded.labels.dtype) == (torch.int32, torch.int64)
    assert (encoded.pad_id, encoded.max_len, len(encoded)) == (WORD_VOCAB["<pad>"], 16, 300)
    assert repr(encoded) == f"EncodedTexts(300 sequences, {len(encoded.ids)} tokens, max_len=16)"


def test_empty() -> None:
    nothing = WORDS.encode_pairs([], [], 16, labels=[])
    assert (len(nothing), nothing.offsets.tolist()) == (0, [0])
    assert [list(t.shape) for t in nothing.to_padded()] == [[0, 16], [0, 16], [0]]
    assert [list(t.shape) for t in WORDS.encode_padded([], [], 16)] == [[0, 16], [0, 16], [0]]
    assert len(nothing.batch([])) == 0


@pytest.mark.parametrize(
    "rows", [[3, 0, 0, 299], (5,), range(10, 4, -2), torch.tensor([7, 1]), np.array([2, 9], dtype=np.int32), []]
)
def test_batch(encoded: EncodedTexts, rows: Any) -> None:
    batch = encoded.batch(rows)
    rows = [int(r) for r in rows]
    every = sequences_of(encoded)
    assert batch.input_ids.tolist() == [i for r in rows for i in every[r]]
    firsts = encoded.first_lens.tolist()
    assert batch.segment_ids.tolist() == [int(k >= firsts[r]) for r in rows for k in range(len(every[r]))]
    assert batch.positions.tolist() == [k for r in rows for k in range(len(every[r]))]
    assert batch.cu_seqlens.tolist() == np.cumsum([0, *(len(every[r]) for r in rows)]).tolist()
    assert batch.max_seqlen == max((len(every[r]) for r in rows), default=0)
    assert batch.labels is not None
    assert encoded.labels is not None
    assert batch.labels.tolist() == [int(encoded.labels[r]) for r in rows]
    assert {t.dtype for t in (batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens)} == {torch.int32}


def test_bad_rows(encoded: EncodedTexts) -> None:
    for rows in ([0, 300], [-1], range(299, 302), torch.tensor([1 << 40])):
        with pytest.raises(IndexError, match="out of range for 300"):
            encoded.batch(rows)
    with pytest.raises(TypeError, match="index must be a sequence of integers"):
        encoded.batch([0.5])  # type: ignore[list-item]
    damaged = EncodedTexts(encoded.ids, encoded.offsets + 1, encoded.first_lens, pad_id=1, max_len=16)
    with pytest.raises(ValueError, match="sequence 299 of the encoded texts is corrupt"):
        damaged.batch([0, 299])
    with pytest.raises(ValueError, match="does not fit into max_len 10"):
        encoded.to_padded(10)
    with pytest.raises(MemoryError):  # which the system might grant, and then end the process
        encoded.to_padded(2**44)


def test_offsets_that_another_thread_changes() -> None:
    """What is gathered lies within the store whatever the offsets become after they were checked."""
    encoded = WORDS.encode_pairs([word_text(3)] * 300, [word_text(1)] * 300)
    offsets, intact = encoded.offsets.numpy(), int(encoded.offsets[150])
    done = False

    def toggle() -> None:
        while not done:
            offsets[150] = 1
            offsets[150] = intact

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        for _ in range(2000):
            for gather in (encoded.batch, lambda rows: encoded.to_padded(index=rows)):
                with contextlib.suppress(ValueError):
                    gather(range(140, 160))
    finally:
        done = True
        thread.join()


def test_slices(encoded: EncodedTexts) -> None:
    every = sequences_of(encoded)
    for s in (slice(3, 9), slice(None), slice(290, None), slice(5, 2), slice(None, None, -1), slice(1, 100, 7)):
        part = encoded[s]
        assert sequences_of(part) == every[s]
        assert part.first_lens.tolist() == encoded.first_lens.tolist()[s]
        assert part.labels is not None
        assert encoded.labels is not None
        assert part.labels.tolist() == encoded.labels.tolist()[s]
        assert all(torch.equal(a, b[list(range(300)[s])]) for a, b in
                   zip(part.to_padded(), encoded.to_padded(), strict=True))  # fmt: skip
    assert encoded[3:9].ids.data_ptr() == encoded.ids.data_ptr() + 4 * int(encoded.offsets[3])
    with pytest.raises(TypeError, match="interpreted as an integer"):
        encoded["0"]  # type: ignore[index]


def test_save_and_load(encoded: EncodedTexts, tmp_path: Path) -> None:
    for pairs in (
        encoded,
        encoded[5:50],
        WORDS.encode_pairs([word_text(3)], [word_text(2)], 9),
        WORDS.encode_texts([]),
    ):
        pairs.save(tmp_path / "x.safetensors")
        back = EncodedTexts.load(tmp_path / "x.safetensors")
        assert sequences_of(back) == sequences_of(pairs)
        assert (back.pad_id, back.max_len) == (pairs.pad_id, pairs.max_len)
        assert torch.equal(back.first_lens, pairs.first_lens)
        if pairs.labels is None:
            assert back.labels is None
        else:
            assert back.labels is not None
            assert torch.equal(back.labels, pairs.labels)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    copy = pickle.loads(pickle.dumps(encoded))
    assert sequences_of(copy) == sequences_of(encoded)


def test_damaged_files(encoded: EncodedTexts, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    encoded.save(path)
    whole = path.read_bytes()
    for bad in (b"", b"hello", whole[:-5], whole[:100], whole.replace(b"bertnli.Enc", b"something.E")):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"x\.safetensors is corrupt or not an EncodedTexts file"):
            EncodedTexts.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        EncodedTexts.load(tmp_path / "absent")


def test_bad_labels() -> None:
    for labels in ([1], [1, 2, 3], torch.zeros(1, 2)):
        with pytest.raises(ValueError, match="as many as the sequences"):
            WORDS.encode_pairs(["a", "b"], ["a", "b"], labels=labels)


def _encode_in_child(queue: Any, premises: list[str], hypotheses: list[str]) -> None:
    queue.put(WORDS.encode_pairs(premises, hypotheses, 14, num_threads=2).ids.numpy())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_after_fork() -> None:
    premises, hypotheses = random_pairs(random.Random(6), 3000)
    wanted = WORDS.encode_pairs(premises, hypotheses, 14, num_threads=2).ids
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_encode_in_child, args=(queue, premises, hypotheses))
    child.start()
    assert np.array_equal(queue.get(timeout=60), wanted.numpy())
    child.join()
    assert child.exitcode == 0
