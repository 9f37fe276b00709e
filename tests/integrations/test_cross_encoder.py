"""bertnli's CrossEncoder, with that of sentence-transformers as the reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from helpers import ROOT
from helpers.huggingface_models import TEXTS as SENTENCES
from helpers.huggingface_models import make_model, make_tokenizer
from torch import nn
from transformers import BertForSequenceClassification, BertModel

from bertnli import CrossEncoder, WordPieceTokenizer, save_pretrained
from bertnli.tasks.base import HEADS

TEXTS = [*SENTENCES, "", "a", " ".join(SENTENCES * 3)]
PAIRS = [(a, b) for a in TEXTS for b in TEXTS]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
    {"apply_softmax": True},
    {"activation_fn": nn.Tanh()},
    {"batch_size": 3, "show_progress_bar": False},
]

pytestmark = pytest.mark.filterwarnings("ignore")  # of sentence-transformers


def saved(folder: Path, labels: int, **settings: Any) -> Path:
    make_model(BertForSequenceClassification, num_labels=labels, **settings).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def assert_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, list):
        assert [x.shape for x in found] == [x.shape for x in wanted]
        found, wanted = (torch.stack(x) if x else torch.zeros(0) for x in (found, wanted))
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype or not len(found)
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [1, 3])
def test_predict(labels: int, tmp_path: Path) -> None:
    folder = saved(tmp_path, labels)
    theirs, model = sentence_transformers.CrossEncoder(str(folder), device="cpu"), CrossEncoder(folder)
    assert model.num_labels == theirs.num_labels == labels
    for inputs in (PAIRS, PAIRS[:1], PAIRS[1], list(PAIRS[2]), [list(pair) for pair in PAIRS[:3]], [], np.array(PAIRS)):
        for options in OPTIONS:
            assert_equal(model.predict(inputs, **options), theirs.predict(inputs, **options))
    short = sentence_transformers.CrossEncoder(str(folder), device="cpu", max_length=9, activation_fn=nn.Sigmoid())
    assert_equal(CrossEncoder(folder, max_length=9, activation_fn=nn.Sigmoid()).predict(PAIRS), short.predict(PAIRS))


@pytest.mark.parametrize("activation", [nn.Identity(), nn.Sigmoid(), None])
def test_rank_with_the_checkpoints_activation(activation: nn.Module | None, tmp_path: Path) -> None:
    theirs = sentence_transformers.CrossEncoder(str(saved(tmp_path, 1)), device="cpu", activation_fn=activation)
    theirs.save_pretrained(str(tmp_path / "saved"))
    model = CrossEncoder(tmp_path / "saved")
    choices: list[dict[str, Any]] = [{}, {"top_k": 2, "return_documents": True}]
    for options in choices:
        found, wanted = (some.rank("a man", TEXTS, **options) for some in (model, theirs))
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in wanted], rel=1e-5)
        for hit in (*found, *wanted):
            del hit["score"]
        assert found == wanted
    save_pretrained(model.model.head, tmp_path / "own", model.model.tokenizer)
    stated = CrossEncoder(tmp_path / "own").predict(PAIRS)  # bertnli's format names the activation
    logits = model.predict(PAIRS, activation_fn=nn.Identity())
    kind = model.model.head.settings["activation"]
    np.testing.assert_allclose(stated, logits if kind == "identity" else 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_several_outputs_with_an_activation(tmp_path: Path) -> None:
    theirs = sentence_transformers.CrossEncoder(str(saved(tmp_path, 3)), device="cpu", activation_fn=nn.Tanh())
    theirs.save_pretrained(str(tmp_path / "saved"))
    assert_equal(CrossEncoder(tmp_path / "saved").predict(PAIRS), theirs.predict(PAIRS))
    path = tmp_path / "saved" / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "activation_fn": "team.Odd"}))
    with pytest.raises(ValueError, match=r"activation_fn is 'team\.Odd'; expected a class of torch\.nn"):
        CrossEncoder(tmp_path / "saved")
    with pytest.raises(ValueError, match="rank needs a model of one output; this one has 3"):
        CrossEncoder(saved(tmp_path / "plain", 3)).rank("a", TEXTS)


def test_precisions(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, initializer_range=0.05)
    wanted = CrossEncoder(folder).predict(PAIRS, show_progress_bar=True)
    for precision in ("bf16", "int8"):
        difference = np.abs(CrossEncoder(folder, precision=precision).predict(PAIRS) - wanted).max()
        assert 0 < difference < 2e-2


def test_what_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3)
    with pytest.raises(ValueError, match="has 3 outputs, not num_labels=1"):
        CrossEncoder(folder, num_labels=1)
    model = CrossEncoder(folder)
    for inputs, message in (
        ([("a", "b"), ("a",)], r"inputs\[1\] must be a pair of two texts; found \('a',\)"),
        ([("a", "b"), "ab"], r"inputs\[1\] must be a pair of two texts; found 'ab'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(inputs)
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a str; found None"):
        model.predict([("a", None)])
    make_model(BertModel).save_pretrained(tmp_path / "bare")
    make_tokenizer(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no output layer of a task"):
        CrossEncoder(tmp_path / "bare")
    tokenizer = WordPieceTokenizer.from_file(folder / "tokenizer.json")
    tagger: Any = HEADS["tagging"](model.model.head, 2, ("O", "B-x"))
    save_pretrained(tagger, tmp_path / "tagger", tokenizer)
    with pytest.raises(ValueError, match="is of the task 'tagging'; a CrossEncoder scores pairs"):
        CrossEncoder(tmp_path / "tagger")


def test_it_needs_no_other_library(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sentence_transformers'] = sys.modules['transformers'] = None\n"
        "import bertnli; print(bertnli.CrossEncoder(sys.argv[1]).predict([('a man', 'a dog')]).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(saved(tmp_path, 1))], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout == "(1,)\n"
