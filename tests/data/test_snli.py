"""Files of labelled pairs: read as D2L and Python's json module read them; errors name file and line."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import d2l_oracle

from bertnli import _text
from bertnli.data.snli import SNLI_LABELS, Columns, read_pairs, read_snli
from bertnli.data.texts import Texts
from bertnli.text.wordpiece import WordPieceTokenizer

COLUMNS = [
    "gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
    "sentence1", "sentence2", "captionID", "pairID", "label1", "label2", "label3", "label4", "label5",
]  # fmt: skip
HEADER = "\t".join(COLUMNS)


def row(
    label: str = "neutral",
    parse1: str = "( A dog )",
    parse2: str = "( A ( cat . ) )",
    text1: str = "A dog",
    text2: str = "A cat.",
) -> str:
    return "\t".join([label, parse1, parse2, "(ROOT)", "(ROOT)", text1, text2, "", "1", label, "", "", "", ""])


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


SAMPLE = "snli_1.0/official_sample_10_rows"


@pytest.mark.parametrize(
    ("folder", "split"),
    [("snli_1.0", "train"), ("snli_1.0", "dev"), ("snli_1.0", "test"), (SAMPLE, "dev"), (SAMPLE, "test")],
)
def test_real_files_equal_d2l(data_dir: Path, folder: str, split: Any) -> None:
    premises, hypotheses, labels = read_snli(data_dir / folder, split=split)
    expected = d2l_oracle.read_snli(data_dir / folder / f"snli_1.0_{split}.txt")
    assert (list(premises), list(hypotheses), labels) == expected
    assert len(labels) > 5


def test_is_train_names_the_split(data_dir: Path) -> None:
    folder = data_dir / "snli_1.0"
    assert read_snli(folder, True) == read_snli(folder, split="train")
    assert read_snli(folder, is_train=False) == read_snli(folder / "snli_1.0_test.txt")


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("columns", ["parse", "text"])
def test_json_lines_equal_txt(data_dir: Path, split: Any, columns: Columns) -> None:
    folder = data_dir / "snli_1.0" / "official_sample_10_rows"
    a = read_snli(folder / f"snli_1.0_{split}.txt", columns=columns)
    b = read_snli(folder / f"snli_1.0_{split}.jsonl", columns=columns)
    with open(folder / f"snli_1.0_{split}.jsonl", encoding="utf-8") as file:
        rows = [r for r in map(json.loads, file) if r["gold_label"] != "-"]
    if columns == "text":
        assert list(b[0]) == [r["sentence1"] for r in rows]
        assert list(b[1]) == [r["sentence2"] for r in rows]
    assert [list(x) for x in a] == [list(x) for x in b]


def test_folder_with_json_lines_only(data_dir: Path) -> None:
    folder = data_dir / "snli_1.0" / "official_sample_10_rows"
    assert not (folder / "snli_1.0_train.txt").exists()
    assert read_snli(folder, split="train") == read_snli(folder / "snli_1.0_train.jsonl")


def test_ocnli(data_dir: Path) -> None:
    path = data_dir / "ocnli" / "dev.json"
    data = read_pairs(path, columns="text")
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kept = [r for r in rows if r["label"] != "-"]
    assert data.dropped == len(rows) - len(kept) > 0
    assert data.first == [r["sentence1"] for r in kept]
    assert data.second == [r["sentence2"] for r in kept]
    assert data.labels is not None
    assert [data.label_names[i] for i in data.labels] == [r["label"] for r in kept]


SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"


def test_extract_text_equals_the_regular_expressions() -> None:
    rng = random.Random(0)
    alphabet = [*SPACES, "(", ")", "(", ")", " ", "  ", "a", "Zz", "é", "中", "\u200b", "\u180e", "\0"]
    for _ in range(20_000):
        s = "".join(rng.choices(alphabet, k=rng.randint(0, 15)))
        assert _text.extract_text(s) == d2l_oracle.extract_text(s), ascii(s)


def test_extract_text_in_blocks() -> None:
    # Long ASCII runs take another path than what is around them.
    rng = random.Random(9)
    pieces = ["( ", " ) ", "(", ")", " ", "  ", "word", "a", "hyphen-ated", "x" * 17, "\xa0", "\t", "é", "中文"]
    weights = [9, 9, 2, 2, 9, 3, 9, 9, 5, 2, 1, 1, 1, 1]
    for _ in range(20_000):
        s = "".join(rng.choices(pieces, weights, k=rng.randint(0, 40)))
        assert _text.extract_text(s) == d2l_oracle.extract_text(s), ascii(s)


def test_every_character_as_white_space() -> None:
    for c in map(chr, (*range(0xD800), *range(0xE000, 0x11000))):
        assert _text.extract_text(f"a{c}{c}b{c}") == d2l_oracle.extract_text(f"a{c}{c}b{c}"), hex(ord(c))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(tmp_path: Path, newline: str, bom: bytes, last: bool) -> None:
    lines = [HEADER, row(text1="one\0two"), "", row("-"), row("entailment", parse1="( é )")]
    path = write(tmp_path / "snli_1.0_train.txt", bom + (newline.join(lines) + newline * last).encode())
    data = read_pairs(path)
    assert (list(data.first), data.labels, data.dropped) == (["A dog", "é"], [2, 0], 1)
    assert data.second == ["A cat ."] * 2
    assert read_pairs(path, columns="text").first[0] == "one\0two"


def test_mixed_line_ends_as_python_reads_them(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(200):
        lines = [HEADER] + [row(rng.choice([*d2l_oracle.LABELS, "-"]), f"( w{i} )") for i in range(rng.randint(0, 9))]
        text = "".join(line + rng.choice(["\n", "\r\n", "\r", "\n\n", "\r\r\n"]) for line in lines)
        path = write(tmp_path / "x.txt", text)
        premises, hypotheses, labels = read_snli(path)
        assert (list(premises), list(hypotheses), labels) == d2l_oracle.read_snli(path)


def test_other_headers(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", "premise\tlabel\thypothesis\np1\t1\th1\n p  2 \tneutral\th2\nx\t-1\ty\n")
    data = read_pairs(tsv, columns="text", label_names=SNLI_LABELS)
    assert data.first == ["p1", " p  2 "]
    assert data.second == ["h1", "h2"]
    assert (data.labels, data.dropped) == ([1, 2], 1)
    jsonl = write(tmp_path / "a.jsonl", '{"premise": "a", "hypothesis": "b", "label": 1, "x": [{"y": null}, -1.5e3]}\n')
    assert read_pairs(jsonl, columns="text", label_names=("no", "yes")).labels == [1]


def test_classes_called_by_numbers_have_no_indices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "premise\tlabel\thypothesis\np\t2\th\nq\t1\th\n")
    assert read_pairs(path, columns="text", label_names=("1", "2")).labels == [1, 0]
    with pytest.raises(ValueError, match=r"a\.tsv:3: unknown label '1'; expected one of 2, 3, none"):
        read_pairs(path, columns="text", label_names=("2", "3", "none"))


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl"])
def test_numbers_are_no_labels_until_the_classes_are_named(tmp_path: Path, name: str) -> None:
    rows = [("p", "h", -1), ("p", "h", "neutral"), ("p", "h", 1), ("q", "h", 0)]
    lines = [f"{premise}\t{label}\t{hypothesis}" for premise, hypothesis, label in rows]
    if name.endswith("jsonl"):
        lines = [json.dumps(dict(zip(("premise", "hypothesis", "label"), row, strict=True))) for row in rows]
    else:
        lines.insert(0, "premise\tlabel\thypothesis")
    path = write(tmp_path / name, "\n".join(lines))
    line = lines.index(next(line for line in lines if "1" in line.replace("-1", ""))) + 1
    tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "p", "h", "q"])
    readers: list[Callable[..., Any]] = [read_pairs, tokenizer.encode_file]
    for read in readers:
        with pytest.raises(ValueError, match=rf"{name}:{line}: the label is the number 1; .*label_names \(--labels\)"):
            read(path, columns="text")
        found = read(path, columns="text", label_names=("entailment", "neutral", "contradiction"))
        assert list(found.labels) == [1, 1, 0]
        assert found.dropped == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("\t".join(row().split("\t")[:9]), r"x\.txt:2: expected 14 tab-separated columns, found 9"),
        (row() + "\nneutral\t( a )\n", r"x\.txt:3: expected 14 tab-separated columns, found 2"),
        (row() + "\n" + row() + "\tmore", r"x\.txt:3: expected 14 tab-separated columns, found 15"),
        (row("Neutral"), r"x\.txt:2: unknown label 'Neutral'; expected one of entailment, contradiction, neutral"),
        (row("7"), r"x\.txt:2: the label is the number 7"),
        (row().encode() + b"\n" + row().encode() + b"\xff", r"x\.txt:3: byte 0xff at position 312 is not UTF-8"),
    ],
)
def test_broken_rows(tmp_path: Path, body: str | bytes, message: str) -> None:
    body = body if isinstance(body, bytes) else body.encode()
    path = write(tmp_path / "x.txt", HEADER.encode() + b"\n" + body)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_labels_of_any_length_anywhere_in_a_row(tmp_path: Path) -> None:
    rng = random.Random(5)
    for trial in range(60):
        names = list({"".join(rng.choices("ab\u00e9", k=rng.randint(1, 20))) for _ in range(rng.randint(1, 5))})
        columns = rng.sample(["premise", "label", "hypothesis"], 3)
        rows = [{"premise": "p", "hypothesis": "h", "label": rng.choice([*names, "-"])} for _ in range(20)]
        lines = ["\t".join(columns), *("\t".join(r[c] for c in columns) for r in rows)]
        data = read_pairs(write(tmp_path / f"{trial}.tsv", "\n".join(lines)), columns="text", label_names=names)
        assert data.labels == [names.index(r["label"]) for r in rows if r["label"] != "-"]


def test_read_snli_drops_unknown_labels_as_d2l(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "\n".join([HEADER, row("Neutral"), row("1"), row("entailment"), row("")]))
    assert read_snli(path)[2] == d2l_oracle.read_snli(path)[2] == [0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": "neutral", "sentence1": "a"', ":1:38: expected ',' or '}', found the line's end"),
        ('{"label": "neutral", "sentence1": 3}', ":1:35: expected a string for 'sentence1'"),
        ('{"é": "é", "label": tru}', ":1:21: expected a value, found 'tru}'"),
        ('{"label": "neutral", "sentence1": "a"}', ":1: expected a field 'sentence2' or 'hypothesis'"),
        ('{"sentence1": "a", "sentence2": "b"}', ":1: expected a field 'gold_label' or 'label'"),
        (r'{"label": "\ud800x"}', ":1:18: a lone surrogate is no text"),
        (r'{"label": "\q"}', ":1:13: unknown escape"),
        ('{"label": "a\tb"}', ":1:13: a control character"),
        ('{"label": [1]}', ":1:11: expected a string, a number or null for 'label'"),
        ('{"label": "neutral", "x": {"é": 1, "\\u00e9": 2}}', ":1:36: the key 'é' is repeated"),
        ('{"label": "neutral", "sentence1": "a", "label": "neutral"}', ":1:40: the key 'label' is repeated"),
        ('{"label": 1.5, "sentence1": "a", "sentence2": "b"}', ":1: the label is the number 1.5"),
        ('{"label": true, "sentence1": "a", "sentence2": "b"}', ":1: unknown label 'True'; expected one of"),
        ("[1]", r":1: expected JSON lines \(one object a line\), found a JSON array"),
        ("{", ":1: expected JSON lines .one object a line., found indented JSON"),
        ("7", ":1:1: expected an object, found '7'"),
        ('{"a": 01}', ":1:8: expected ',' or '}'"),
        ("{} x", ":1:4: expected the line's end"),
        ('{"a": ' + "[" * 300 + "1", "nested too deeply"),
    ],
)
def test_broken_json(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "x.jsonl", line + "\n")
    with pytest.raises(ValueError, match=message):
        read_pairs(path, columns="text")


def test_json_strings_equal_pythons(tmp_path: Path) -> None:
    rng = random.Random(2)
    alphabet = ['"', "\\", "/", "\n", "\t", "\b", "\0", "a", "é", "\u2028", "中", "😀", "\U0010ffff", "\x7f", "\r"]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 12))) for _ in range(2000)]
    rows = [
        json.dumps({"x": {"y": [t, None, True, -0.5e-3]}, "sentence1": t, "sentence2": t[::-1], "label": i % 3},
                   ensure_ascii=bool(i % 2))
        for i, t in enumerate(texts)
    ]  # fmt: skip
    data = read_pairs(write(tmp_path / "x.jsonl", "\n".join(rows)), columns="text", label_names=SNLI_LABELS)
    assert data.first == texts
    assert data.second == [t[::-1] for t in texts]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither snli_1\.0_dev\.txt nor snli_1\.0_dev\.jsonl"):
        read_snli(tmp_path, split="dev")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_pairs(tmp_path / "nothing.txt")
    with pytest.raises(IsADirectoryError):
        read_pairs(tmp_path)
    with pytest.raises(ValueError, match="split must be"):
        read_snli(tmp_path, split="valid")  # type: ignore[arg-type]
    for empty in ("", "\n"):
        with pytest.raises(ValueError, match=r"x\.txt:1: the file is empty"):
            read_pairs(write(tmp_path / "x.txt", empty))
    with pytest.raises(ValueError, match=r"expected a header with a column 'sentence1_binary_parse'.*columns=.text"):
        read_pairs(write(tmp_path / "x.tsv", "label\tsentence1\tsentence2\n"))
    for name, content in (("x.tsv", "label\tpremise\tpremise\n"), ("x.csv", "text,label\n")):
        with pytest.raises(
            ValueError, match=r"x\.tsv:1: the column 'premise' is repeated|--text-columns text --label-column label"
        ):
            read_pairs(write(tmp_path / name, content))
    with pytest.raises(ValueError, match="columns must be"):
        read_pairs(tmp_path / "x.tsv", columns="raw")  # type: ignore[arg-type]


def test_threads_give_the_same(tmp_path: Path) -> None:
    rng = random.Random(3)
    lines = [row(rng.choice(["neutral", "-", "entailment"]), f"( {'wé' * rng.randint(0, 200)} )") for _ in range(6000)]
    path = write(tmp_path / "x.txt", "\n".join([HEADER, *lines]))
    assert path.stat().st_size > 1 << 20
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            data = read_pairs(path)
            assert data.second is not None
            results.append((list(data.first), list(data.second), data.labels, data.dropped))
        assert results[0] == results[1] == results[2]
        assert results[0][:3] == d2l_oracle.read_snli(path)
        write(path, "\n".join([HEADER, *lines[:2000], "oh no", *lines[2000:4000], "oh no", *lines[4000:]]))
        with pytest.raises(ValueError, match=r"x\.txt:2002: .*found 1"):
            read_pairs(path)
    finally:
        torch.set_num_threads(before)


def test_texts() -> None:
    words = ["a", "", "é中", "last"]
    texts = Texts.of(words)
    assert list(texts) == words
    assert texts == words
    assert texts != words[:3]
    assert texts != [*words[:3], "x"]
    assert texts[-1] == "last"
    assert texts[1:3] == words[1:3]
    assert texts[::-1] == words[::-1]
    assert texts[1:3].arena is texts.arena
    assert pickle.loads(pickle.dumps(texts[2:])) == words[2:]
    assert len(pickle.dumps(Texts.of(["x" * 100_000, "y"])[1:])) < 2000
    assert pickle.loads(pickle.dumps(texts[:0])) == []
    assert repr(texts) == "Texts(['a', '', 'é中', ...], 4 in all)"
    assert "é中" in texts
    assert texts.arena.dtype == np.uint8
    with pytest.raises(IndexError):
        texts[4]
    assert Texts.of([]) == []
