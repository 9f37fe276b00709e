"""PackedBatch made from padded tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertnli.text.batch import PackedBatch
from bertnli.text.wordpiece import WordPieceTokenizer

PREMISES = ["A man is sleeping.", "Two dogs run.", "A child"]
HYPOTHESES = ["A person is asleep in a bed.", "", "The child plays with a red ball outdoors."]


def test_tokenizer_output_of_transformers(minilm_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(minilm_dir)
    inputs = tokenizer(PREMISES, HYPOTHESES, padding=True, return_tensors="pt")
    batch = PackedBatch.from_huggingface(**inputs)
    expected = (
        WordPieceTokenizer.from_file(minilm_dir / "vocab.txt").encode_pairs(PREMISES, HYPOTHESES).batch([0, 1, 2])
    )
    for name in ("input_ids", "segment_ids", "positions", "cu_seqlens"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert batch.max_seqlen == expected.max_seqlen
    single = tokenizer(PREMISES, padding="max_length", max_length=20, return_tensors="pt", return_token_type_ids=False)
    batch = PackedBatch.from_huggingface(**single)
    assert batch.cu_seqlens.diff().tolist() == single["attention_mask"].sum(1).tolist()
    assert not batch.segment_ids.any()


def test_masks() -> None:
    ids = torch.tensor([[2, 7, 3], [2, 3, 0]])
    for dtype in (torch.int64, torch.bool, torch.float32):
        batch = PackedBatch.from_huggingface(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]).to(dtype))
        assert (batch.input_ids.tolist(), batch.cu_seqlens.tolist()) == ([2, 7, 3, 2, 3], [0, 3, 5])
    for row in ([0, 1, 1], [1, 0, 1], [1, 2, 0]):
        with pytest.raises(ValueError, match="row 1 is not"):
            PackedBatch.from_huggingface(ids, torch.tensor([[1, 1, 1], row]))
    with pytest.raises(ValueError, match=r"found \[2, 3\] and \[2, 2\]"):
        PackedBatch.from_huggingface(ids, torch.ones(2, 2))
    with pytest.raises(ValueError, match="one shape"):
        PackedBatch.from_huggingface(ids, torch.ones(2, 3), torch.zeros(2, 2, dtype=torch.int64))
    assert len(PackedBatch.from_huggingface(ids[:0], torch.ones(0, 3))) == 0
