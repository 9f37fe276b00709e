"""bertnli: fine-tune and run BERT on sentence pairs, fast.

Text becomes packed tokens once, in C++, and batches are never padded to their longest sequence:

    data -> text -> encoder (ops, kernels) -> tasks -> inference, training, distillation -> checkpoint

`from bertnli import d2l` has the names of *Dive into Deep Learning*.
"""

import os
import sys

# OpenMP reads it when torch is loaded. By default its threads spin for milliseconds while they wait; on a busy machine
# they use up the time slices of the threads they wait for. Spinning shortly costs nothing (docs/measured.md).
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

from bertnli import _text

_torch_version = torch.__version__.split("+")[0]
if _text.torch_version != _torch_version:
    raise ImportError(
        f"bertnli was built for torch {_text.torch_version}, but torch {_torch_version} is installed; reinstall it "
        "from its source with: pip install --no-build-isolation --force-reinstall --no-deps ."
    )

# After the check: with a wrong torch these would fail with an undefined symbol.
from bertnli import d2l
from bertnli.checkpoint import export_onnx, from_pretrained, load_pretrained_model, save_pretrained
from bertnli.d2l import train_ch13
from bertnli.d2l.dataset import SNLIBERTDataset
from bertnli.data.conll import WordData, read_conll, read_conllu
from bertnli.data.snli import read_pairs, read_snli
from bertnli.data.squad import QuestionData, read_squad
from bertnli.data.tables import read_table
from bertnli.data.texts import TextData
from bertnli.encoder.bert import BERTEncoder, BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.inference.predict import evaluate, predict, score
from bertnli.inference.session import InferenceSession
from bertnli.integrations import accelerate, restore
from bertnli.integrations.cross_encoder import CrossEncoder
from bertnli.model import Model
from bertnli.ops import varlen_attention
from bertnli.ops.devices import HAS_TRITON
from bertnli.tasks.base import Head
from bertnli.tasks.classification import BERTClassifier, Prediction
from bertnli.tasks.embedding import BERTEmbedder
from bertnli.tasks.load import load_encoded, load_examples
from bertnli.tasks.question_answering import Answer, BERTQuestionAnswering
from bertnli.tasks.regression import BERTRegressor
from bertnli.tasks.tagging import BERTTagger
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer
from bertnli.training.callbacks import Callback
from bertnli.training.history import Epoch, Evaluation, History
from bertnli.training.loop import fit
from bertnli.training.options import TrainingOptions

EncodedPairs = EncodedTexts  # the same class: EncodedTexts holds single texts too

if HAS_TRITON:
    from bertnli import kernels  # noqa: F401  (registers the operators for CUDA)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BERTClassifier",
    "BERTConfig",
    "BERTEmbedder",
    "BERTEncoder",
    "BERTModel",
    "BERTQuestionAnswering",
    "BERTRegressor",
    "BERTTagger",
    "Callback",
    "CrossEncoder",
    "EncodedPairs",
    "EncodedTexts",
    "Epoch",
    "Evaluation",
    "Head",
    "History",
    "InferenceSession",
    "Model",
    "PackedBatch",
    "Prediction",
    "QuestionData",
    "SNLIBERTDataset",
    "TextData",
    "TrainingOptions",
    "Vocab",
    "WordData",
    "WordPieceTokenizer",
    "WordTokenizer",
    "accelerate",
    "d2l",
    "evaluate",
    "export_onnx",
    "fit",
    "from_pretrained",
    "load_encoded",
    "load_examples",
    "load_pretrained_model",
    "predict",
    "read_conll",
    "read_conllu",
    "read_pairs",
    "read_snli",
    "read_squad",
    "read_table",
    "restore",
    "save_pretrained",
    "score",
    "train_ch13",
    "varlen_attention",
]
