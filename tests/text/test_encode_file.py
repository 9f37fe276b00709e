"""Files encoded in one pass: the same as reading them first, in little memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.texts import SPECIAL, WORDS, assert_equal_encoded, d2l_vocabulary

from bertnli.data.snli import Columns, read_pairs, read_snli
from bertnli.data.texts import TextData
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.wordpiece import WordPieceTokenizer


def read_then_encode(
    tokenizer: Tokenizer, path: Path, columns: Columns, max_len: int, truncation: Truncation = "longest_first"
) -> tuple[EncodedTexts, TextData]:
    data = read_pairs(path, columns)
    assert data.second is not None
    return tokenizer.encode_pairs(data.first, data.second, max_len, truncation, labels=data.labels), data


@pytest.mark.parametrize("columns", ["parse", "text"])
@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_real_files_at_once(data_dir: Path, minilm_dir: Path, columns: Columns, kind: str) -> None:
    paths = [data_dir / "snli_1.0" / f"snli_1.0_{split}.txt" for split in ("train", "dev", "test")]
    paths += sorted((data_dir / "snli_1.0" / "official_sample_10_rows").glob("*dev*"))
    paths += [data_dir / "ocnli" / "dev.json"] if columns == "text" else []
    if kind == "pieces":
        tokenizer: Tokenizer = WordPieceTokenizer.from_file(minilm_dir / "vocab.txt")
    else:
        tokenizer = WordTokenizer(d2l_vocabulary(*read_snli(paths[0], columns=columns)[:2]))
    for path in paths:
        for max_len, threads in ((128, 1), (21, 3)):
            wanted, data = read_then_encode(tokenizer, path, columns, max_len)
            found = tokenizer.encode_file(path, max_len, num_threads=threads, columns=columns)
            assert_equal_encoded(found, wanted)
            assert found.dropped == data.dropped


def random_file(rng: random.Random, path: Path, odd: float) -> None:
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
def test_parses_at_once(tmp_path: Path, tokenizer: Tokenizer, rule: Truncation) -> None:
    rng = random.Random(20)
    for i in range(30):
        path = tmp_path / "x.txt"
        random_file(rng, path, odd=0.3 if i % 2 else 0)
        wanted, data = read_then_encode(tokenizer, path, "parse", 17, truncation=rule)
        found = tokenizer.encode_file(path, 17, rule, columns="parse")
        assert_equal_encoded(found, wanted)
        assert found.dropped == data.dropped


def test_bad_files_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("label\tpremise\thypothesis\nneutral\tw1\tw2\nneutral\tw1 w2 w3\tw1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.tsv:3: the premise has more than the 2 tokens"):
        WORDS.encode_file(path, 5, "only_second", columns="text")
    with pytest.raises(ValueError, match=r"x\.tsv:1: expected a header with a column 'sentence1_binary_parse'"):
        WORDS.encode_file(path)
    with pytest.raises(ValueError, match=r"x\.tsv:2: unknown label 'neutral'; expected one of no, yes"):
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
def test_files_larger_than_memory(tmp_path: Path, suffix: str) -> None:
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
