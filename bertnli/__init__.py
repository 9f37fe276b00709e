"""bertnli: fine-tune and run BERT on sentence pairs, fast.

Text becomes packed tokens once, in C++, and batches are never padded to their longest sequence:

    data -> text -> encoder (ops, kernels) -> tasks -> inference, training, distillation -> checkpoint

`from bertnli import d2l` has the names of *Dive into Deep Learning*.

Importing this package takes no time: a public name is imported, and torch with it, when it is first used.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertnli import d2l as d2l
    from bertnli.checkpoint import export_onnx as export_onnx
    from bertnli.checkpoint import from_pretrained as from_pretrained
    from bertnli.checkpoint import load_pretrained_model as load_pretrained_model
    from bertnli.checkpoint import save_pretrained as save_pretrained
    from bertnli.checkpoint.keep import keep_checkpoints as keep_checkpoints
    from bertnli.d2l.dataset import SNLIBERTDataset as SNLIBERTDataset
    from bertnli.d2l.training import train_ch13 as train_ch13
    from bertnli.data.conll import WordData as WordData
    from bertnli.data.conll import read_conll as read_conll
    from bertnli.data.conll import read_conllu as read_conllu
    from bertnli.data.snli import read_pairs as read_pairs
    from bertnli.data.snli import read_snli as read_snli
    from bertnli.data.squad import QuestionData as QuestionData
    from bertnli.data.squad import read_squad as read_squad
    from bertnli.data.tables import read_table as read_table
    from bertnli.data.texts import TextData as TextData
    from bertnli.encoder.bert import BERTEncoder as BERTEncoder
    from bertnli.encoder.bert import BERTModel as BERTModel
    from bertnli.encoder.config import BERTConfig as BERTConfig
    from bertnli.inference.files import predict_file as predict_file
    from bertnli.inference.predict import evaluate as evaluate
    from bertnli.inference.predict import predict as predict
    from bertnli.inference.predict import score as score
    from bertnli.inference.session import InferenceSession as InferenceSession
    from bertnli.integrations import accelerate as accelerate
    from bertnli.integrations import restore as restore
    from bertnli.integrations.cross_encoder import CrossEncoder as CrossEncoder
    from bertnli.model import Model as Model
    from bertnli.ops import varlen_attention as varlen_attention
    from bertnli.report.explain import Explanation as Explanation
    from bertnli.report.explain import explain as explain
    from bertnli.tasks.base import Head as Head
    from bertnli.tasks.classification import BERTClassifier as BERTClassifier
    from bertnli.tasks.classification import Prediction as Prediction
    from bertnli.tasks.embedding import BERTEmbedder as BERTEmbedder
    from bertnli.tasks.load import load_encoded as load_encoded
    from bertnli.tasks.load import load_examples as load_examples
    from bertnli.tasks.multilabel import BERTMultiLabelClassifier as BERTMultiLabelClassifier
    from bertnli.tasks.multilabel import MultiLabelPrediction as MultiLabelPrediction
    from bertnli.tasks.question_answering import Answer as Answer
    from bertnli.tasks.question_answering import BERTQuestionAnswering as BERTQuestionAnswering
    from bertnli.tasks.regression import BERTRegressor as BERTRegressor
    from bertnli.tasks.tagging import BERTTagger as BERTTagger
    from bertnli.text.batch import PackedBatch as PackedBatch
    from bertnli.text.encoded import EncodedPairs as EncodedPairs
    from bertnli.text.encoded import EncodedTexts as EncodedTexts
    from bertnli.text.tokenizer import WordTokenizer as WordTokenizer
    from bertnli.text.vocab import Vocab as Vocab
    from bertnli.text.wordpiece import WordPieceTokenizer as WordPieceTokenizer
    from bertnli.training.callbacks import Callback as Callback
    from bertnli.training.folds import CrossValidation as CrossValidation
    from bertnli.training.folds import cross_validate as cross_validate
    from bertnli.training.history import Epoch as Epoch
    from bertnli.training.history import Evaluation as Evaluation
    from bertnli.training.history import History as History
    from bertnli.training.loop import fit as fit
    from bertnli.training.options import TrainingOptions as TrainingOptions
    from bertnli.training.pretrain import pretrain as pretrain
    from bertnli.training.pretrain import read_paragraphs as read_paragraphs

__version__ = "0.1.0"

# OpenMP reads it when torch is loaded. By default its threads spin for milliseconds while they wait; on a busy machine
# they use up the time slices of the threads they wait for. Spinning shortly costs nothing (docs/measured.md).
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _use_one_thread() -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


# A forked child has none of its parent's OpenMP threads: an operator that shares work would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)

#: The public names, by module. Their imports above are for type checkers.
_NAMES = {
    "checkpoint": ("export_onnx", "from_pretrained", "load_pretrained_model", "save_pretrained"),
    "checkpoint.keep": ("keep_checkpoints",),
    "d2l.dataset": ("SNLIBERTDataset",),
    "d2l.training": ("train_ch13",),
    "data.conll": ("WordData", "read_conll", "read_conllu"),
    "data.snli": ("read_pairs", "read_snli"),
    "data.squad": ("QuestionData", "read_squad"),
    "data.tables": ("read_table",),
    "data.texts": ("TextData",),
    "encoder.bert": ("BERTEncoder", "BERTModel"),
    "encoder.config": ("BERTConfig",),
    "inference.files": ("predict_file",),
    "inference.predict": ("evaluate", "predict", "score"),
    "inference.session": ("InferenceSession",),
    "integrations": ("accelerate", "restore"),
    "integrations.cross_encoder": ("CrossEncoder",),
    "model": ("Model",),
    "ops": ("varlen_attention",),
    "report.explain": ("Explanation", "explain"),
    "tasks.base": ("Head",),
    "tasks.classification": ("BERTClassifier", "Prediction"),
    "tasks.embedding": ("BERTEmbedder",),
    "tasks.load": ("load_encoded", "load_examples"),
    "tasks.multilabel": ("BERTMultiLabelClassifier", "MultiLabelPrediction"),
    "tasks.question_answering": ("Answer", "BERTQuestionAnswering"),
    "tasks.regression": ("BERTRegressor",),
    "tasks.tagging": ("BERTTagger",),
    "text.batch": ("PackedBatch",),
    "text.encoded": ("EncodedPairs", "EncodedTexts"),
    "text.tokenizer": ("WordTokenizer",),
    "text.vocab": ("Vocab",),
    "text.wordpiece": ("WordPieceTokenizer",),
    "training.callbacks": ("Callback",),
    "training.folds": ("CrossValidation", "cross_validate"),
    "training.history": ("Epoch", "Evaluation", "History"),
    "training.loop": ("fit",),
    "training.options": ("TrainingOptions",),
    "training.pretrain": ("pretrain", "read_paragraphs"),
}
_MODULES = {name: f"bertnli.{module}" for module, names in _NAMES.items() for name in names}
_ROOMS = (
    *("data", "text", "ops", "encoder", "tasks", "runtime", "inference", "training", "distillation"),
    *("checkpoint", "report", "model", "integrations", "sklearn", "d2l", "bench", "cli"),
)


def _check_torch() -> None:
    """Raise ImportError for a torch that the extension was not built for: loading it would find a symbol undefined."""
    import torch

    from bertnli import _text

    found = torch.__version__.split("+")[0]
    if _text.torch_version != found:
        raise ImportError(
            f"bertnli was built for torch {_text.torch_version}, but torch {found} is installed; reinstall it from its "
            "source with: pip install --no-build-isolation --force-reinstall --no-deps ."
        )


if not TYPE_CHECKING:  # type checkers see the imports above, and refuse other names
    __all__ = ["d2l", *_MODULES]

    def __getattr__(name: str) -> Any:
        """Import a public name, a room, or the extension of operators, at its first use."""
        if name == "_ops":
            _check_torch()
        if name in _ROOMS or name == "_ops":
            return import_module(f"bertnli.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'bertnli' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_ROOMS})
