"""Students: pruned tokenizers, and models that begin near their teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from helpers.models import block
from helpers.tiny_tasks import NAMES, PIECES, WORDS, teacher, texts

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    score,
)
from bertnli.distillation.student import make_student, pruned_tokenizer


def test_pruned_tokenizers() -> None:
    full = WordPieceTokenizer(PIECES)
    seen = ["red two", "greens red", "unheard"]
    small, ids = pruned_tokenizer(full, seen)
    assert [full.tokens[i] for i in ids] == small.tokens  # type: ignore[attr-defined]
    assert small.tokens == [  # type: ignore[attr-defined]
        *WordPieceTokenizer.SPECIAL, "red", "green", "two", "##s", "r", "##e", "##d",
    ]  # fmt: skip
    for text in (*seen, "red greens [SEP]"):
        assert small.tokenize(text) == full.tokenize(text)
    twice, _ = pruned_tokenizer(full, seen, 2)
    assert twice.tokenize("red two") == ["red", "[UNK]"]
    words = WordTokenizer(Vocab([WORDS], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))
    small, ids = pruned_tokenizer(words, ["Red two unheard"])
    assert [words.id_to_token(int(i)) for i in ids] == ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>", "red", "two"]
    assert small.tokenize("red") == ["red"]
    assert ids[small.encode("two red five")].tolist() == [*words.encode("two red"), words.unk_id]


def test_a_student_of_teacher_layers_begins_as_the_teacher() -> None:
    """With all layers and tokens the student equals the teacher; with some, it has those layers."""
    big = teacher().eval()
    full = WordPieceTokenizer(PIECES)
    same = make_student(big, torch.arange(len(PIECES)), num_hiddens=64, layers=[0, 1, 2], max_len=32).eval()
    data = texts(20)
    assert torch.equal(score(same, same.encode(full, data, 32)), score(big, big.encode(full, data, 32)))
    small, ids = pruned_tokenizer(full, [*data.first, *(data.second or ())])
    assert len(small) < len(full)
    same = make_student(big, ids, num_hiddens=64, layers=[0, 1, 2], max_len=32).eval()
    torch.testing.assert_close(score(same, same.encode(small, data, 32)), score(big, big.encode(full, data, 32)))
    some = make_student(big, ids, num_hiddens=64, layers=[2], max_len=32)
    assert torch.equal(block(some, 0).ffn.dense1.weight, block(big, 2).ffn.dense1.weight)
    for width, layer, message in ((32, 0, "narrower than the teacher's need a sample"), (96, 0, "cannot be 96 wide"),
                                  (64, 3, "layers 0 to 2, not 3"), (16, 0, "cannot be 16 wide")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_student(big, ids, num_hiddens=width, layers=[layer])
    rows, same = (
        big.encode(full, data),
        make_student(big, ids, num_hiddens=64, layers=[2, 0], num_layers=2, num_heads=2),
    )
    assert same.config == replace(big.config, num_layers=2, pretraining_heads=False, vocab_size=len(ids))
    for asked, message in ((dict(num_layers=4), "num_layers=4 does not go with .* which ask for 1"),
                           (dict(num_heads=1), "num_heads=1 .* ask for 2"), (dict(ffn_num_hiddens=64), "ask for 96"),
                           (dict(num_hiddens=32, ffn_num_hiddens=128), "ask for at most 96")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_student(big, ids, **{"num_hiddens": 64, "layers": [1], "sample": rows, **asked})


def test_narrow_layers_of_a_redundant_teacher() -> None:
    """A teacher whose vectors hold everything twice has an equal student of half its width."""
    torch.manual_seed(0)
    full, data = WordPieceTokenizer(PIECES), texts(300)
    sizes: dict[str, Any] = dict(ffn_num_hiddens=24, num_layers=2, max_len=32)
    single = BERTModel(BERTConfig.original(len(PIECES), num_hiddens=16, num_heads=1, **sizes))
    twice = BERTModel(BERTConfig.original(len(PIECES), num_hiddens=32, num_heads=2, **sizes))
    with torch.no_grad():
        for name, value in single.state_dict().items():
            if name.startswith("encoder.") and "weight" in name and value.dim() == 2 and "embedding" not in name:
                value = value * 8  # attention and units that matter
                if "dense1" not in name:
                    value = torch.cat([value, value])
                if "dense2" not in name:
                    value = torch.cat([value, value], 1) / 2
                twice.state_dict()[name].copy_(value)
            elif name.startswith("encoder."):
                wanted = twice.state_dict()[name]
                wanted.copy_(value if value.shape == wanted.shape else torch.cat([value, value], -1))
    big = BERTClassifier(twice, 2, NAMES)
    rows = big.encode(full, data, 32)
    ids = torch.arange(len(PIECES))
    small = make_student(big, ids, num_hiddens=16, ffn_num_hiddens=24, layers=[0, 1], sample=rows, max_len=32)
    assert small.training
    assert big.training
    other = make_student(big, ids, num_hiddens=16, ffn_num_hiddens=24, num_layers=2, max_len=32)
    wanted, *found = (head.eval().features(rows.batch(range(300))).detach() for head in (big, small, other))
    apart = []
    for features in found:
        features, target = features - features.mean(0), wanted - wanted.mean(0)
        nearest = features @ torch.linalg.lstsq(features, target).solution
        apart.append(float((nearest - target).norm() / target.norm()))
    assert apart[0] < 0.02, apart
    assert apart[1] > 0.2, apart


def test_narrow_embeddings_keep_the_teachers_geometry() -> None:
    """The student's width suffices for the rank of the embeddings: distances are the teacher's times one factor."""
    big = teacher()
    with torch.no_grad():
        table = big.encoder.token_embedding.weight
        table.copy_(torch.randn(len(PIECES), 6) @ torch.randn(6, 64) * 0.02)
    small = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
    table, narrow = table.detach(), small.encoder.token_embedding.weight.detach()
    ratio = torch.pdist(narrow) / torch.pdist(table)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert float(narrow.std()) == pytest.approx(float((table - table.mean(0)).std()), rel=1e-4)


def test_a_teacher_with_adapters_is_refused() -> None:
    """Its layers' weights alone are not what it computes."""
    head = teacher()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["W_q"], init_lora_weights=False), head)
    with pytest.raises(ValueError, match=r"encoder has blks\.0\.attention\.W_q\..*Merge PEFT's adapters first: merge_"):
        make_student(head, torch.arange(5), layers=[0], num_hiddens=64)
