"""Any bytes as a file of every kind that is read: each reader returns, or raises ValueError or OSError.

    PYTHONPATH=.:tests python tests/fuzz/loaders.py SECONDS [folder of the corpus]

`make fuzz` runs it by Atheris, which looks for inputs that reach new lines. `mutate` makes random ones without it.
"""

from __future__ import annotations

import gzip
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import feather, parquet

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["bertnli"]):
        import bertnli
        from bertnli import *  # noqa: F403  (now: a name that is used later is imported later, and not instrumented)
else:
    import bertnli
from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, Vocab, WordPieceTokenizer
from bertnli.tasks.load import read_inputs

SIZES: dict[str, Any] = dict(num_hiddens=4, ffn_num_hiddens=4, num_heads=1, num_layers=1, max_len=8)
PIECES = WordPieceTokenizer([*WordPieceTokenizer.SPECIAL, "a", "##b"])
HEAD = BERTClassifier(BERTModel(BERTConfig.original(7, **SIZES, pretraining_heads=False)), 2, ("no", "yes"))
TOKENS = [
    b'"',
    b"\t",
    b"\n",
    b",",
    b"{",
    b"[",
    b"}",
    b"null",
    b"-1",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"1e999",
    b"\0",
]
ROWS = "label\tsentence1\tsentence2\nno\ta\tb\n-\t\tb\n"


def read_rows(path: Path) -> Any:
    return bertnli.read_table(path, "text", "label")


def packed_tables() -> dict[str, bytes]:
    """The same table in each binary format."""
    table = pyarrow.table({"text": ["a", "b"], "label": ["no", "yes"]})
    files = {name: io.BytesIO() for name in ("x.parquet", "x.arrow", "x.feather")}
    parquet.write_table(table, files["x.parquet"])
    with pyarrow.ipc.new_stream(files["x.arrow"], table.schema) as writer:
        writer.write_table(table)
    feather.write_feather(table, files["x.feather"])
    contents = {name: file.getvalue() for name, file in files.items()}
    lines = b'{"text": "a", "label": "no"}\n{"text": "b", "label": "yes"}\n'
    return contents | {"x.csv.gz": gzip.compress(b"text,label\na,no\n"), "x.jsonl.zst": zstd(lines)}


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def targets(folder: Path) -> dict[str, tuple[bytes, Path, Callable[[Path], Any]]]:
    """Of each kind of file: a good content, its place, and a function that reads it. Makes the files beside it."""
    for name in ("bertnli", "huggingface"):
        bertnli.save_pretrained(HEAD, folder / name, PIECES, format=name)
    words = Vocab(["a"], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"])
    bertnli.save_pretrained(BERTModel(BERTConfig(6, **SIZES)), folder / "d2l", words, format="d2l")
    PIECES.encode_pairs(["a ab"], ["b"], labels=[1]).save(folder / "x.encoded")
    texts: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "x.csv": ('text,label\n"a, ""b""\n",yes\nc,\n', lambda p: bertnli.read_table(p, "text", "label")),
        "x.tsv": ("a\t1.0\n\n-\t-1\n", lambda p: bertnli.read_table(p, "1", "2", real=True)),
        "x.jsonl": ('{"text": "a\\u00e9", "label": 1}\n', lambda p: bertnli.read_table(p, "text", "label")),
        "x.json": ('[{"text": "a", "label": null}, {"text": "b", "label": 1}]', read_rows),
        "pairs.tsv": (ROWS, lambda p: bertnli.read_pairs(p, "text", ("no", "yes"))),
        "pairs.jsonl": (
            '{"label": 1.0, "sentence1": "a", "sentence2": "b"}\n',
            lambda p: PIECES.encode_file(p, 8, columns="text", label_names=("no", "yes")),
        ),
        "snli_1.0_train.txt": (ROWS.replace("1", "1_binary_parse").replace("2", "2_binary_parse"), bertnli.read_snli),
        "x.conll": ("-DOCSTART- -X- O\n\n# text = 1\nEU NNP B-ORG\na VBZ O\n", bertnli.read_conll),
        "x.conllu": ("# id\n1\ta\ta\tX\tY\t_\t0\t_\t_\t_\n", bertnli.read_conllu),
        "squad.json": (
            '{"data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "q", '
            '"answers": [{"text": "b", "answer_start": 2}], "is_impossible": false}]}]}]}',
            bertnli.read_squad,
        ),
        "input.txt": ("a\tb\n\tc\n", lambda p: list(read_inputs(p, HEAD))),
        "vocab.json": ('["<unk>", "<pad>", "a"]', Vocab.from_json),
        "vocab.txt": (PIECES.to_text(), WordPieceTokenizer.from_file),
    }
    found: dict[str, tuple[bytes, Path, Callable[[Path], Any]]] = {
        name: (content.encode(), folder / name, read) for name, (content, read) in texts.items()
    }
    for name, content in packed_tables().items():
        found[name] = content, folder / name, read_rows
    for name in ("bertnli", "huggingface", "d2l"):
        for path in sorted((folder / name).iterdir()):
            found[f"{name}/{path.name}"] = path.read_bytes(), path, lambda p: bertnli.load_pretrained_model(p.parent)
    found["x.encoded"] = (folder / "x.encoded").read_bytes(), folder / "x.encoded", EncodedTexts.load
    return found


def make_one_input(folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    """A function from an input, whose first byte chooses the kind of file, and an input of each kind."""
    kinds = list(targets(folder).values())
    for content, path, read in kinds:
        path.write_bytes(content)
        read(path)
        if path.parent == folder and path.suffix != ".encoded":
            path.unlink()
    good = folder.parent / "good"
    shutil.copytree(folder, good)

    def one_input(data: bytes) -> None:
        _, path, read = kinds[data[0] % len(kinds)] if data else kinds[0]
        path.write_bytes(data[1:])
        try:
            with suppress(ValueError, OSError):
                read(path)
        finally:  # a reader may leave nothing changed but this file
            origin = good / path.relative_to(folder)
            shutil.copy(origin, path) if origin.exists() else path.unlink()

    return one_input, [bytes([i]) + content for i, (content, *_) in enumerate(kinds)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, repeated or put in; the first stays."""
    kind, body = data[:1], bytearray(data[1:])
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randint(0, len(body))
        end = min(len(body), at + rng.choice([1, 1, 4, 20, 200]))
        what = rng.randrange(5)
        if what == 0 and body:
            body[at % len(body)] = rng.randrange(256)
        elif what == 1:
            del body[at:end]
        elif what == 2:
            body[at:at] = body[at:end]
        elif what == 3:
            body[at:at] = rng.choice(TOKENS)
        else:
            del body[at:]
    return kind + bytes(body)


def main() -> None:
    seconds, corpus = int(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "build/cpp/corpus_loaders")
    corpus.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(), "files")
    one_input, good = make_one_input(folder)
    for i, data in enumerate(good):
        (corpus / f"good{i}").write_bytes(data)
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", "-timeout=60", str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
