"""Checkpoints in and out: D2L's, Hugging Face's and bertnli's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.oracles import OracleConfig, d2l_bert_classifier, random_state
from safetensors.torch import load_file, save_file

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    PackedBatch,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    from_pretrained,
    load_pretrained_model,
    save_pretrained,
)

WORDS = ["<unk>", "<pad>", "<cls>", "<sep>", *["the", "a", "dog", "cat", "runs", "sleeps"]]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "run", "##s", "sleep"]


def word_vocab() -> Vocab:
    return Vocab([], reserved_tokens=WORDS[1:])


def small(original: bool, **changes: Any) -> BERTConfig:
    sizes: dict[str, Any] = dict(
        num_hiddens=128, ffn_num_hiddens=40, num_heads=2, num_layers=2, max_len=16, dropout=0.1
    )
    return (BERTConfig.original if original else BERTConfig)(10, **{**sizes, **changes})


def batch(vocab_size: int = 10, rows: int = 5, length: int = 9) -> PackedBatch:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (rows, length), generator=g)
    lens = torch.randint(1, length + 1, (rows,), generator=g)
    return PackedBatch.from_padded(tokens, torch.randint(0, 2, (rows, length), generator=g), lens)


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_own_format_keeps_everything(tmp_path: Path, original: bool, heads: bool) -> None:
    torch.manual_seed(0)
    bert = BERTModel(small(original, pretraining_heads=heads))
    net = BERTClassifier(bert, 3, ("entailment", "contradiction", "neutral"), dropout=0.25).eval()
    tokenizer = WordPieceTokenizer(PIECES, False, True) if original else WordTokenizer(word_vocab())
    save_pretrained(net, tmp_path / "out", tokenizer)
    again, read = from_pretrained(tmp_path / "out")
    assert isinstance(again, BERTClassifier)
    assert same_state(net, again)
    assert again.label_names == net.label_names
    assert again.config == net.config
    assert again.dropout.p == 0.25
    other, _ = from_pretrained(tmp_path / "out", dropout=0.0)
    assert isinstance(other, BERTClassifier)
    assert (other.config.dropout, other.dropout.p) == (0, 0)
    assert not again.training
    for text in ("the dog runs", "The [SEP]"):
        assert read.encode(text) == tokenizer.encode(text)
    with pytest.raises(ValueError, match=r"num_heads=4, but num_heads in .* has 2"):
        load_pretrained_model(tmp_path / "out", num_heads=4)
    assert torch.equal(net(batch()), again(batch()))
    for before, after in zip(net.carried.values(), again.carried.values(), strict=True):
        assert (before is None) == (after is None) == (not heads)
        assert before is None or after is None or same_state(before, after)
    # The same folder as a plain model: its output layer is left aside.
    model, vocab = load_pretrained_model(tmp_path / "out")
    assert same_state(model, bert)
    assert isinstance(vocab, WordPieceTokenizer if original else Vocab)


def test_d2l_files_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = random_state(10, 128, 40, 2, 2, 16, seed=7, dtype=torch.float32)
    folder = tmp_path / "bert.tiny"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(WORDS))
    torch.save({k: v for k, v in state.items() if not k.startswith("output.")}, folder / "pretrained.params")
    bert, vocab = load_pretrained_model(folder, 128, 40, 2, 2, 0.3, 16, [torch.device("cpu")])
    assert isinstance(vocab, Vocab)
    assert vocab.idx_to_token == WORDS
    assert vocab["dog"] == WORDS.index("dog")
    assert vocab["unseen"] == vocab.unk == 0
    assert bert.config == BERTConfig(
        10, num_hiddens=128, ffn_num_hiddens=40, num_heads=2, num_layers=2, dropout=0.3, max_len=16
    )
    net = BERTClassifier(bert).eval()
    state.update({f"output.{k}": v for k, v in net.output.state_dict().items()})
    inputs = (torch.randint(0, 10, (4, 8)), torch.randint(0, 2, (4, 8)), torch.tensor([8, 3, 1, 5]))
    wanted = d2l_bert_classifier(state, OracleConfig(2, 2), *inputs)
    torch.testing.assert_close(net(inputs), wanted, rtol=1e-4, atol=1e-5)
    # Out again, from the classifier: bit for bit what came in.
    save_pretrained(net, tmp_path / "again", vocab, format="d2l")
    written = torch.load(tmp_path / "again" / "pretrained.params", weights_only=True)
    assert written.keys() == {k for k in state if not k.startswith("output.")}
    assert all(torch.equal(written[k], state[k]) for k in written)
    assert load_pretrained_model(folder)[0].config.dropout == 0.2
    assert load_pretrained_model(folder, num_heads=4, num_blks=2)[0].config.num_heads == 4
    with pytest.raises(ValueError, match="no place for activation='gelu'"):
        save_pretrained(BERTModel(small(True)), tmp_path / "no", vocab, format="d2l")
    with pytest.raises(ValueError, match="a vocabulary of 11 tokens for a model of vocab_size 10"):
        save_pretrained(bert, tmp_path / "no", Vocab(["x"], reserved_tokens=WORDS[1:]))
    # A folder that is used again holds what was written last.
    save_pretrained(net, tmp_path / "again", vocab)
    assert isinstance(from_pretrained(tmp_path / "again")[0], BERTClassifier)
    save_pretrained(bert, tmp_path / "again", vocab, format="d2l")
    assert isinstance(from_pretrained(tmp_path / "again")[0], BERTModel)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_hiddens": 256}, r"num_hiddens=256, but encoder.token_embedding.weight in .* has 128"),
        ({"ffn_num_hiddens": 41}, r"ffn_num_hiddens=41, but encoder.blks.0.ffn.dense1.weight in .* has 40"),
        ({"num_layers": 3}, r"num_layers=3, but encoder.blks in .* has 2"),
        ({"num_blks": 1}, r"num_layers=1, but encoder.blks in .* has 2"),
        ({"max_len": 512}, r"max_len=512, but encoder.pos_embedding in .* has 16"),
        ({"num_heads": 5}, r"num_heads=5 must divide"),
    ],
)
def test_arguments_that_the_weights_contradict(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    save_pretrained(BERTModel(small(False)), tmp_path, word_vocab(), format="d2l")
    with pytest.raises(ValueError, match=message):
        load_pretrained_model(tmp_path, **arguments)  # type: ignore[arg-type]


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_broken_checkpoints_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = tmp_path / "good"
    save_pretrained(BERTModel(small(False)), good, word_vocab(), format="d2l")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    edit(copy("a") / "pretrained.params", lambda s: s.pop("encoder.blks.1.ffn.dense1.weight"))
    with pytest.raises(ValueError, match=r"lacks encoder.blks.1.ffn.dense1.weight \(1 encoder"):
        load_pretrained_model(tmp_path / "a")
    edit(copy("b") / "pretrained.params", lambda s: s.update({"hidden.0.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=r"hidden.0.weight in .* has shape \[3, 3\]; the model needs \[128, 128\]"):
        load_pretrained_model(tmp_path / "b")
    (copy("c") / "pretrained.params").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"pretrained.params is not a file of tensors"):
        load_pretrained_model(tmp_path / "c")
    (copy("d") / "vocab.json").write_text(json.dumps(WORDS[:-1]))
    with pytest.raises(ValueError, match=r"has a vocabulary of 9 tokens, but a model of vocab_size 10"):
        load_pretrained_model(tmp_path / "d")
    edit(copy("e") / "pretrained.params", lambda s: s.pop("nsp.output.bias"))
    load_pretrained_model(tmp_path / "e")
    assert "lacks nsp.output.bias: newly initialised" in caplog.text
    for name, error in (
        ("nowhere/at/all", "no such folder"),
        ("./nowhere", "no such folder"),
        (str(tmp_path), "holds neither"),
    ):
        with pytest.raises(FileNotFoundError, match=error):
            load_pretrained_model(name)
    # A pickle that would run code is refused, not run.
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    (copy("f") / "pretrained.params").write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(ValueError, match="not a file of tensors"):
        load_pretrained_model(tmp_path / "f")
    assert not (tmp_path / "harm").exists()


def test_a_name_of_the_registry_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bertnli.data import download as hub

    save_pretrained(BERTModel(small(False)), tmp_path / "site" / "bert.tiny.torch", word_vocab(), format="d2l")
    archive = shutil.make_archive(
        str(tmp_path / "bert.tiny.torch"), "zip", root_dir=tmp_path / "site", base_dir="bert.tiny.torch"
    )
    digest = hub.sha1_of(archive)
    monkeypatch.setitem(hub.DATA_HUB, "bert.tiny", (Path(archive).as_uri(), digest))
    bert, _ = load_pretrained_model("bert.tiny", folder=tmp_path / "cache")
    assert bert.config.num_layers == 2
    assert (tmp_path / "cache" / "bert.tiny.torch" / "vocab.json").exists()


def test_minilm_equals_transformers(minilm_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(minilm_dir).eval()
    bert, tokenizer = load_pretrained_model(minilm_dir)
    bert.eval()
    assert isinstance(tokenizer, WordPieceTokenizer)
    assert bert.mlm is None
    premises = ["A man inspects the uniform of a figure.", "Naïve cafés!", ""]
    hypotheses = ["The man is sleeping.", "unaffable 中文 text " * 9, "x"]
    hf = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    wanted_ids = hf(premises, hypotheses, padding=True, truncation=True, max_length=128, return_tensors="pt")
    encoded = tokenizer.encode_pairs(premises, hypotheses)
    token_ids, segments, valid_lens = encoded.to_padded(wanted_ids["input_ids"].shape[1])
    assert torch.equal(token_ids, wanted_ids["input_ids"])
    assert torch.equal(segments, wanted_ids["token_type_ids"])
    with torch.no_grad():
        wanted = theirs(**wanted_ids)
        precise = theirs.double()(**wanted_ids)
        hidden = bert.encoder(token_ids, segments, valid_lens)
        pooled = bert.hidden(bert.encoder(encoded.batch(range(3)), rows=encoded.batch(range(3)).cu_seqlens[:-1].long()))
    valid = wanted_ids["attention_mask"].bool()
    truth = precise.last_hidden_state[valid]
    own = (wanted.last_hidden_state[valid] - truth).abs().max()
    assert (hidden[valid] - truth).abs().max() <= 2 * own
    own = (wanted.pooler_output - precise.pooler_output).abs().max()
    assert (pooled - precise.pooler_output).abs().max() <= 2 * own + 1e-7


@pytest.mark.parametrize(
    "kind", ["BertModel", "BertForSequenceClassification", "BertForPreTraining", "BertForMaskedLM"]
)
@pytest.mark.parametrize("weights", ["safetensors", "bin", "gamma"])
def test_hugging_face_folders_of_every_kind(tmp_path: Path, kind: str, weights: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=16, num_labels=4, id2label=dict(enumerate("wxyz")),
    )  # fmt: skip
    theirs = getattr(transformers, kind)(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    if weights != "safetensors":
        state = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        if weights == "gamma":
            state = {
                k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
                for k, v in state.items()
            }
        torch.save(state, tmp_path / "pytorch_model.bin")
    model, tokenizer = from_pretrained(tmp_path)
    assert tokenizer.encode("The dogs") == [5, 6, 8]
    b = batch()
    tokens = b.pad(b.input_ids)
    mask = b.pad(torch.ones_like(b.input_ids))
    inputs = {"input_ids": tokens.long(), "token_type_ids": b.pad(b.segment_ids).long(), "attention_mask": mask}
    with torch.no_grad():
        if kind == "BertForSequenceClassification":
            assert isinstance(model, BERTClassifier)
            assert model.label_names == ("w", "x", "y", "z")
            assert model.dropout.p == 0.1
            torch.testing.assert_close(model(b), theirs(**inputs).logits, rtol=1e-5, atol=1e-5)
            return
        assert isinstance(model, BERTModel)
        positions = torch.tensor([[0, 0]] * len(b))
        pretraining = kind in ("BertForPreTraining", "BertForMaskedLM")
        encoded, masked, following = model(
            tokens, inputs["token_type_ids"], b.cu_seqlens.diff(), positions if pretraining else None
        )
        wanted = getattr(theirs, "bert", theirs)(**inputs).last_hidden_state
        torch.testing.assert_close(encoded[mask.bool()], wanted[mask.bool()], rtol=1e-5, atol=1e-5)
        if pretraining:
            scores = theirs(**inputs)
            scores = scores.logits if kind == "BertForMaskedLM" else scores.prediction_logits
            torch.testing.assert_close(masked[:, 0], scores[:, 0], rtol=1e-4, atol=1e-4)
        if kind == "BertForPreTraining":
            torch.testing.assert_close(following, theirs(**inputs).seq_relationship_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [False, True])
def test_out_to_hugging_face_and_back(tmp_path: Path, heads: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    bert = BERTModel(small(True, pretraining_heads=heads))
    net = BERTClassifier(bert, 3, ("e", "c", "n")).eval()
    save_pretrained(net, tmp_path, WordPieceTokenizer(PIECES), format="huggingface")
    theirs, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not loading["missing_keys"]
    b = batch()
    with torch.no_grad():
        wanted = theirs.eval()(
            input_ids=b.pad(b.input_ids).long(),
            token_type_ids=b.pad(b.segment_ids).long(),
            attention_mask=b.pad(torch.ones_like(b.input_ids)),
        )
    torch.testing.assert_close(net(b), wanted.logits, rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == {0: "e", 1: "c", 2: "n"}
    again, _ = from_pretrained(tmp_path)
    assert same_state(net, again)
    with pytest.raises(ValueError, match="LayerNorm on its embeddings"):
        save_pretrained(BERTModel(small(False)), tmp_path, WordPieceTokenizer(PIECES), format="huggingface")
    with pytest.raises(ValueError, match="needs a Vocab"):
        save_pretrained(bert, tmp_path, WordPieceTokenizer(PIECES), format="d2l")
    with pytest.raises(ValueError, match="format must be"):
        save_pretrained(bert, tmp_path, WordPieceTokenizer(PIECES), format="onnx")


def test_a_foreign_config_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    settings = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("model_type", "roberta"), ("position_embedding_type", "relative_key"), ("hidden_act", "silu")):
        (tmp_path / "config.json").write_text(json.dumps({**settings, key: value}))
        with pytest.raises(ValueError, match=f"{key}.*{value}"):
            load_pretrained_model(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"classifier.weight": torch.zeros(2, 32)}
    lacking = {name: value.clone() for name, value in state.items() if "attention.self.query" not in name}
    for kind in ("BertForMultipleChoice", "BertLMHeadModel"):
        (tmp_path / "config.json").write_text(json.dumps({**settings, "architectures": [kind]}))
        with pytest.raises(ValueError, match=f"is of a {kind}"):
            load_pretrained_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 0}))
    with pytest.raises(ValueError, match="num_hidden_layers is 0, but the weights have 1 layers"):
        load_pretrained_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"strip_accents": False}))
    with pytest.raises(ValueError, match="strip_accents is False"):
        load_pretrained_model(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_pretrained_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_pretrained_model(tmp_path)
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks encoder"):
        load_pretrained_model(tmp_path)


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a PEFT adapter and no model; .* merge_and_unload"):
        from_pretrained(tmp_path)
