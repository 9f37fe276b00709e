"""bertnli: fine-tune and run BERT on sentence pairs, fast.

Text becomes packed tokens once, in C++, and nothing is ever padded again:

    reader -> tokenizer -> pairs -> batching -> model, heads -> train, inference

`from bertnli import d2l` has the names of the book *Dive into Deep Learning*.
"""

import torch

from bertnli import _text

_found = torch.__version__.split("+")[0]
if _text.torch_version != _found:
    raise ImportError(
        f"bertnli was built for torch {_text.torch_version}, but torch {_found} is installed; reinstall it from its "
        "source with: pip install --no-build-isolation --force-reinstall --no-deps ."
    )

# After the check: with a wrong torch these would fail with an undefined symbol.
from bertnli import d2l
from bertnli.batching import PackedBatch
from bertnli.checkpoint import from_pretrained, load_pretrained_model, save_pretrained
from bertnli.d2l import train_ch13
from bertnli.dataset import SNLIBERTDataset
from bertnli.formats import QuestionData, WordData, read_conll, read_conllu, read_squad, read_table
from bertnli.heads import BERTClassifier, BERTRegressor, Head, Prediction
from bertnli.inference import evaluate, predict, score
from bertnli.model import BERTConfig, BERTEncoder, BERTModel
from bertnli.ops import varlen_attention
from bertnli.pairs import EncodedPairs
from bertnli.qa import Answer, BERTQuestionAnswering
from bertnli.reader import PairData, read_pairs, read_snli
from bertnli.tagging import BERTTagger
from bertnli.tokenizer import Vocab, WordPieceTokenizer, WordTokenizer
from bertnli.train import Epoch, History, fit

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BERTClassifier",
    "BERTConfig",
    "BERTEncoder",
    "BERTModel",
    "BERTQuestionAnswering",
    "BERTRegressor",
    "BERTTagger",
    "EncodedPairs",
    "Epoch",
    "Head",
    "History",
    "PackedBatch",
    "PairData",
    "Prediction",
    "QuestionData",
    "SNLIBERTDataset",
    "Vocab",
    "WordData",
    "WordPieceTokenizer",
    "WordTokenizer",
    "d2l",
    "evaluate",
    "fit",
    "from_pretrained",
    "load_pretrained_model",
    "predict",
    "read_conll",
    "read_conllu",
    "read_pairs",
    "read_snli",
    "read_squad",
    "read_table",
    "save_pretrained",
    "score",
    "train_ch13",
    "varlen_attention",
]
