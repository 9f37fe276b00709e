"""Checkpoints that cannot be right are refused before a module is built, naming file and key."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    Vocab,
    WordPieceTokenizer,
    from_pretrained,
    save_pretrained,
)

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "run", "##s", "sleep"]
NAMES = ["entailment", "neutral", "contradiction"]


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors, which do not lie in the file any more: the tests write it again."""
    return {name: value.clone() for name, value in load_file(path).items()}


def save(folder: Path, format: str = "huggingface") -> Path:
    torch.manual_seed(0)
    sizes = dict(num_hiddens=8, ffn_num_hiddens=8, num_heads=2, num_layers=1, max_len=8)
    bert = BERTModel(BERTConfig.original(len(PIECES), **sizes, pretraining_heads=False))
    save_pretrained(BERTClassifier(bert, 3, NAMES), folder, WordPieceTokenizer(PIECES), format=format)
    save_file(load(folder / "model.safetensors"), folder / "model.safetensors")  # without the fingerprint
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**7, "num_hidden_layers is 10000000, but the weights have 1 layers"),
        ("num_hidden_layers", -1, "num_hidden_layers must be at least 0"),
        ("num_hidden_layers", "2", "num_hidden_layers must be an integer; found '2'"),
        ("hidden_size", 10**30, "hidden_size is 10{30}, but"),
        ("hidden_size", 8.0, "hidden_size must be an integer; found 8.0"),
        ("hidden_size", True, "hidden_size must be an integer; found True"),
        ("vocab_size", 10**12, "vocab_size is 10{12}, but"),
        ("intermediate_size", 9, "intermediate_size is 9, but"),
        ("max_position_embeddings", 512, "max_position_embeddings is 512, but"),
        ("type_vocab_size", 3, "type_vocab_size is 3, but"),
        ("num_attention_heads", 3, "num_attention_heads=3 must divide hidden_size=8"),
        ("num_attention_heads", None, "num_attention_heads must be an integer; found None"),
        ("hidden_dropout_prob", "0.1", "hidden_dropout_prob must be a number"),
        ("hidden_dropout_prob", float("nan"), "hidden_dropout_prob must be at least 0"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps must be a number"),
        ("hidden_act", ["gelu"], "has hidden_act"),
        ("architectures", "BertModel", "architectures must be a list"),
        ("classifier_dropout", 2, "classifier_dropout must be a number from 0"),
        ("id2label", dict(zip(NAMES, range(3), strict=True)), "id2label is .*; expected each column and its label"),
        ("id2label", NAMES, "id2label is .*; expected each column and its label"),
        ("id2label", {"0": "e", "1": "n", "3": "c"}, "id2label has the keys 0, 1, 3; expected 0 to 2"),
        ("id2label", {"0": "e", "1": "n"}, "id2label has the keys 0, 1; expected 0 to 2"),
        ("id2label", {"0": "e", "1": "n", "2": "n"}, "id2label must be 3 different names"),
        ("id2label", {"0": "e", "1": "n", "x": "c"}, "id2label is .*; expected each column and its label"),
        ("id2label", {"0": "e", "1": "n", "2": None}, "id2label is .*; expected labels that are strings"),
    ],
)
def test_hugging_face_keys(tmp_path: Path, key: str, value: Any, message: str) -> None:
    edit(save(tmp_path), **{key: value})
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        from_pretrained(tmp_path)


def test_placeholders_and_swapped_keys_of_id2label(tmp_path: Path) -> None:
    edit(save(tmp_path), id2label={"2": "c", "0": "e", "1": "n"})
    model, _ = from_pretrained(tmp_path)
    assert isinstance(model, BERTClassifier)
    assert model.label_names == ("e", "n", "c")
    edit(tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    model, _ = from_pretrained(tmp_path)
    assert isinstance(model, BERTClassifier)
    assert model.label_names is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2; this bertnli reads 1"),
        ({"format_version": None}, "format_version is None"),
        ({"model": []}, r"model must be an object; found \[\]"),
        ({"model": {"vocab_size": 10, "depth": 3}}, "model: .*'depth'"),
        ({"tokenizer": {"type": "bytes"}}, "tokenizer.type is 'bytes'"),
        ({"tokenizer": {"type": "wordpiece", "lowercase": "no"}}, "tokenizer.lowercase must be true or false"),
        ({"labels": "abc"}, "labels must be a list of strings"),
        ({"labels": ["e", "n"]}, "labels must be 3 different names"),
        ({"task": ["x"]}, "task must be a string"),
        ({"settings": [1]}, "settings must be an object"),
        ({"classifier_dropout": "x"}, "classifier_dropout must be a number"),
    ],
)
def test_own_keys(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(save(tmp_path, "bertnli"), **changes)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        from_pretrained(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["num_layers", "num_hiddens", "vocab_size", "max_len", "num_heads", "dropout", "activation"]),
        st.integers() | st.floats() | st.text() | st.none() | st.booleans() | st.lists(st.integers()),
        min_size=1,
    )
)
def test_any_edited_configuration_loads_or_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = save(tmp_path_factory.mktemp("model"), "bertnli")
    model = json.loads((folder / "config.json").read_text())["model"]
    edit(folder, model={**model, **changes})
    with suppress(ValueError):
        from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_are_floating_point(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save(tmp_path) / "model.safetensors"
    state = load(path)
    state["bert.embeddings.word_embeddings.weight"] = torch.zeros(10, 8, dtype=dtype)
    save_file(state, path)
    with pytest.raises(ValueError, match=rf"encoder.token_embedding.weight is of {dtype}; expected floating-point"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [[], [3], [10**6, 0], [0, 8]])
def test_output_layers_of_no_shape(tmp_path: Path, shape: list[int]) -> None:
    path = save(tmp_path) / "model.safetensors"
    save_file({**load(path), "classifier.weight": torch.zeros(shape)}, path)
    with pytest.raises(ValueError, match=r"output\.weight has shape"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped(tmp_path: Path, prefix: str) -> None:
    expected = from_pretrained(save(tmp_path))[0].state_dict()
    path = tmp_path / "model.safetensors"
    torch.save({prefix + name: value for name, value in load(path).items()}, tmp_path / "pytorch_model.bin")
    path.unlink()
    state = from_pretrained(tmp_path)[0].state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_parameter_under_two_names(tmp_path: Path) -> None:
    path = save(tmp_path) / "model.safetensors"
    state = load(path)
    save_file({**state, "embeddings.word_embeddings.weight": torch.ones(10, 8)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*word_embeddings.weight is there twice"):
        from_pretrained(tmp_path)
    save_file({**state, "module.bert.embeddings.word_embeddings.weight": torch.ones(10, 8)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors has bert.embeddings.word_embeddings.weight twice"):
        from_pretrained(tmp_path)


def test_deep_json(tmp_path: Path) -> None:
    save(tmp_path)
    for name in ("config.json", "tokenizer_config.json"):
        content = (tmp_path / name).read_text()
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(ValueError, match=rf"{name} is nested too deeply"):
            from_pretrained(tmp_path)
        (tmp_path / name).write_text(content)


def test_files_of_tensors_that_are_larger_than_they_are(tmp_path: Path) -> None:
    path = save(tmp_path) / "pytorch_model.bin"
    state = load(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({**state, "more": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(ValueError, match=r"model\.bin: more has shape \[1000000000000\] without as many values"):
        from_pretrained(tmp_path)
    torch.save({**state, "more": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    (tmp_path / "bomb").replace(path)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a file of tensors: it holds more bytes"):
        from_pretrained(tmp_path)


def test_padded_tables_load(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    theirs = transformers.BertModel(config).eval()
    theirs.save_pretrained(tmp_path / "padded")
    (tmp_path / "padded" / "vocab.txt").write_text("\n".join(PIECES))
    model, tokenizer = from_pretrained(tmp_path / "padded")
    assert isinstance(model, BERTModel)
    assert (len(tokenizer), model.config.vocab_size) == (10, 64)
    tokens, segments, lens = tokenizer.encode_padded(["the dogs"], ["sleep unknown"], 8)
    assert int(tokens.max()) < 10
    with torch.no_grad():
        expected = theirs(input_ids=tokens[:, : int(lens)], token_type_ids=segments[:, : int(lens)]).last_hidden_state
        torch.testing.assert_close(model.encoder(tokens, segments, lens)[:, : int(lens)], expected)
    for format in ("bertnli", "huggingface"):
        save_pretrained(model, tmp_path / format, tokenizer, format=format)
        again, _ = from_pretrained(tmp_path / format)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    words = Vocab([], reserved_tokens=["<pad>", "<cls>", "<sep>"])
    with pytest.raises(ValueError, match="needs a vocabulary of vocab_size=10 tokens; found 4"):
        save_pretrained(BERTModel(BERTConfig(10, num_hiddens=64, num_heads=1)), tmp_path / "d2l", words, format="d2l")
