"""Files that are shortened or rewritten while they are read: an error, not the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

# A thread shortens the file and writes it anew, again and again, while the main one reads it.
READ = """
import os, sys, threading
from pathlib import Path
from bertnli.data.snli import read_pairs
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import Vocab

words = WordTokenizer(Vocab(["w1 w2".split()], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))
path, suffix = Path(sys.argv[1]), sys.argv[2]
row = '{"label": "neutral", "premise": "w1 w2", "hypothesis": "w2"}\\n'
row = "neutral\\tw1 w2 w1\\tw2\\n" if suffix == ".tsv" else row
rows = 60_000
whole = ("label\\tpremise\\thypothesis\\n" if suffix == ".tsv" else "").encode() + row.encode() * rows
path.write_bytes(whole)
done = threading.Event()

def rewrite():
    while not done.is_set():
        os.truncate(path, len(whole) // 3)
        path.write_bytes(whole)

writer = threading.Thread(target=rewrite)
writer.start()
found = []
try:
    for i in range(24):
        try:
            if i % 2:
                found.append(len(read_pairs(path, "text")))
            else:
                found.append(len(words.encode_file(path, columns="text", num_threads=1 + i % 3)))
        except ValueError as error:
            assert str(path) in str(error) and "\\n" not in str(error), error
finally:
    done.set()
    writer.join()
assert set(found) <= {rows, rows // 3}, found  # whole, or shortened before it was opened
print("survived", len(read_pairs(path, "text")))
"""


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_a_pair_file_that_changes(tmp_path: Path, suffix: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READ, str(tmp_path / f"pairs{suffix}"), suffix]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, "survived 60000\n"), result.stderr[-2000:]


STORE = """
import os, sys
from pathlib import Path
import torch
from bertnli.text.encoded import EncodedTexts
from bertnli.checkpoint.files import read_safetensors

path = Path(sys.argv[1])
n = 200_000
ids, offsets = torch.arange(n, dtype=torch.int32), torch.arange(0, n + 1, 10)
EncodedTexts(ids, offsets, torch.full((n // 10,), 5, dtype=torch.int32), pad_id=0, max_len=20).save(path)
encoded, (state, _) = EncodedTexts.load(path), read_safetensors(path)
os.truncate(path, 100)
path.write_bytes(bytes(100))
assert torch.equal(encoded.ids, ids) and torch.equal(state["ids"], ids)
print(encoded.batch([n // 10 - 1]).input_ids.sum().item())
"""


def test_a_store_that_changes_after_it_was_loaded(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STORE, str(tmp_path / "store.safetensors")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, f"{sum(range(199_990, 200_000))}\n"), result.stderr[-2000:]
