"""Model: a head and its tokenizer in one object. What most people use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.utils.data import Subset

from bertnli import checkpoint
from bertnli.checkpoint import hub
from bertnli.data.columns import as_list
from bertnli.data.html import table
from bertnli.data.source import Source
from bertnli.data.texts import TextData
from bertnli.inference import predict as inference
from bertnli.report.explain import Explanation, explain
from bertnli.tasks.base import Head, check_head
from bertnli.tasks.classification import BERTClassifier, Prediction
from bertnli.tasks.convert import parts_of, texts_in, texts_of, to_examples
from bertnli.tasks.embedding import BERTEmbedder
from bertnli.tasks.load import load_examples, read_inputs, read_texts
from bertnli.tasks.regression import BERTRegressor
from bertnli.tasks.zero_shot import Labels, entailment_columns, labels_of_texts, make_pairs, zero_shot_predictions
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer, as_tokenizer
from bertnli.text.vocab import Vocab, space_out_data
from bertnli.training.history import History
from bertnli.training.loop import fit


class Model:
    """A head and its tokenizer: fine-tune, evaluate, predict, rank, encode, save.

        model = Model.from_pretrained("runs/demo")
        model.predict([("A man is sleeping .", "A person is asleep .")])[0].label

    head         a BERTClassifier, BERTMultiLabelClassifier, BERTRegressor, BERTTagger, BERTQuestionAnswering,
                 BERTEmbedder, or a custom head
    tokenizer    a tokenizer, or the Vocab of D2L's checkpoints
    precision    of predict, score and evaluate: "fp32", "bf16" or "int8" (CPU only); training takes its own, as in
                 `fit(precision="bf16")`

    Labelled data is a path (see `load_examples`); a list of tuples (premise, hypothesis, label) or (text, label), or of
    dicts; a pandas or polars frame, an Arrow table or a `datasets.Dataset`, with columns by name (see `to_examples`);
    or examples that are read or encoded already.
    """

    def __init__(self, head: Head, tokenizer: Tokenizer | Vocab, precision: str = "fp32") -> None:
        self.head = head
        check_head(head)
        self.tokenizer = as_tokenizer(tokenizer)
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | os.PathLike[str], precision: str = "fp32", device: torch.device | str | None = None
    ) -> Model:
        """Load a checkpoint with an output layer, or a SentenceTransformer: a folder, or a name on Hugging Face's hub.

        device    where the model runs (default: a GPU if there is one; the CPU for "int8")

        Raises FileNotFoundError for a missing checkpoint, ValueError for a broken one or one without an output layer.
        """
        head, tokenizer = checkpoint.from_pretrained(name_or_folder)
        if not isinstance(head, Head):
            raise ValueError(
                f"{name_or_folder} has no output layer of a task; put one on it: "
                "Model(BERTClassifier(bert, label_names=[...]), tokenizer), then fit; for sentence vectors "
                "Model(BERTEmbedder(bert), tokenizer)"
            )
        on_gpu = torch.cuda.is_available() and precision != "int8"
        return cls(head, tokenizer, precision).to(device or ("cuda" if on_gpu else "cpu"))

    def __repr__(self) -> str:
        classes = "" if self.head.label_names is None else f", classes {', '.join(self.head.label_names)}"
        return f"Model({type(self.head).__name__}{classes}, {self.tokenizer!r}, precision={self.precision!r})"

    def _repr_html_(self) -> str:
        """What the model is and what it was trained on, for notebooks."""
        head, config, run = self.head, self.head.config, self.head.provenance.get("run")
        facts: dict[str, Any] = {
            "head": type(head).__name__,
            "classes": ", ".join(head.label_names or ()),
            "encoder": f"{config.num_layers} layers, width {config.num_hiddens}, at most {config.max_len} tokens",
            "parameters": f"{sum(p.numel() for p in head.parameters()):,}",
            "tokenizer": repr(self.tokenizer),
            "runs on": f"{head.encoder.pos_embedding.device}, {self.precision}",
        }
        if run is not None:
            score = "" if run["score"] is None else f", dev {run['metric']} {run['score']:.4f}"
            facts["trained"] = f"{run['train_sequences']:,} sequences, epoch {run['epoch']}{score}"
        return table(["Model", ""], [(name, value) for name, value in facts.items() if value])

    def predict(
        self,
        examples: Any,
        second: Sequence[str] | None = None,
        *,
        text_columns: Sequence[str] | None = None,
        batch_size: int = 256,
    ) -> list[Any]:
        """One prediction an example: a Prediction (label, label_id, probabilities), a float, tags, or an Answer.

            model.predict([("A man eats.", "Someone eats."), ("A dog runs.", "A cat runs.")])
            model.predict(["a fine film", "dull and long"])
            model.predict(premises, hypotheses)
            model.predict(Path("reviews.csv"), text_columns=["text"])

        examples        a list of texts, of pairs as tuples, or of dicts; a column or table (see `parts_of`); a text; or
                        a Path (a string is a text) of a file, see `read_inputs`
        second          hypotheses or contexts, if `examples` are premises or questions
        text_columns    columns of a table

        Raises ValueError for examples of another number of texts than the model takes, and for outputs that are NaN or
        infinite.
        """
        parts = self._parts(examples, second, text_columns)
        if not len(parts[0]):
            return []
        return inference.predict(self.head, self.tokenizer, *parts, batch_size=batch_size, precision=self.precision)

    def score(
        self, pairs: Any, second: Sequence[str] | None = None, *, label: str | None = None, batch_size: int = 256
    ) -> npt.NDArray[np.float32]:
        """Scores of texts or pairs as an array.

        A regressor (or another head of one output) gives its output, float32 [N], after the sigmoid that a CrossEncoder
        may have. A classifier gives the probabilities of its classes, [N, C], or with `label` that of the named class,
        [N]. Arguments otherwise: see `predict`.

        Raises ValueError for other heads, for a `label` that the model does not have, and for outputs that are NaN or
        infinite.
        """
        head = self.head
        width = head.output.out_features
        if not head.pooled or not (isinstance(head, BERTClassifier) or width == 1):
            raise ValueError(f"score needs a classifier, or a head of one output; this is a {type(head).__name__}")
        if label is not None and label not in (head.label_names or ()):
            raise ValueError(f"the model has no class {label!r}; its classes are {', '.join(head.label_names or ())}")
        parts = self._parts(pairs, second, None)
        if not len(parts[0]):
            return np.zeros((0, width) if isinstance(head, BERTClassifier) and label is None else 0, np.float32)
        outputs = self._outputs(parts, batch_size)
        if not isinstance(head, BERTClassifier):
            return (head.values(outputs) if isinstance(head, BERTRegressor) else outputs)[:, 0].numpy()
        probabilities = head.probabilities(outputs).numpy()
        return probabilities if label is None else probabilities[:, (head.label_names or ()).index(label)]

    def rank(self, query: str, documents: Any, top_k: int = 10, *, label: str | None = None) -> list[tuple[int, float]]:
        """The best documents for a query as (index, score), best first, at most `top_k`.

        documents    as the texts of `encode`

        The score is that of (query, document): see `score`. A classifier needs `label`, the class to rank by.
        """
        check_ranking_label(self.head, label)
        texts = self._single_texts(documents)
        return ranking(self.score([query] * len(texts), texts, label=label), top_k)

    def zero_shot(
        self,
        texts: Any,
        labels: Labels,
        template: str = "This example is {}.",
        *,
        multi_label: bool = False,
        batch_size: int = 256,
    ) -> list[Prediction]:
        """Classify texts into classes that the model was not trained on, by natural language inference.

            model.zero_shot(["Who won the match?"], ["sport", "politics"])

        texts          premises, as the texts of `encode`
        labels         of all texts, as a list or as a string with commas; or a list of each text's own
        template       the hypothesis, with {} in the label's place
        multi_label    whether several labels may be right. Then a probability is that of entailment against
                       contradiction, as it also is of a single label; else they are the softmax of the outputs for
                       entailment over the text's labels

        A text that is too long is cut, its label is not. All pairs are computed in full batches. Probabilities are
        those of transformers' zero-shot-classification pipeline.

        Raises ValueError for a model without a class whose name begins with "entail", for labels that are equal, and
        for a template without {}.
        """
        columns = entailment_columns(self.head.label_names if isinstance(self.head, BERTClassifier) else ())
        given = self._single_texts(texts)
        if not len(given):
            return []
        each = labels_of_texts(labels if isinstance(labels, str) else as_list(labels), len(given))
        pairs = make_pairs(given, each, template)
        return zero_shot_predictions(self._outputs(pairs, batch_size, "only_first"), each, columns, multi_label)

    def explain(self, example: Any, target: str | int | None = None) -> Explanation:
        """Which words carried the prediction of one text or pair; a notebook shows them coloured.

            model.explain(("A man is asleep.", "He sleeps."), target="entailment").words

        example    a text, a pair as a tuple, or a dict
        target     class to explain, by name or index (default: the predicted one)

        A classifier's or regressor's output is explained in float32: see `bertnli.explain`, and its errors. Needs the
        extra `explain`.
        """
        parts = parts_of([example], self.head)
        return explain(self.head, self.tokenizer, *(part[0] for part in parts), target=target)

    def encode(
        self,
        texts: Any,
        *,
        text_columns: Sequence[str] | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = False,
        batch_size: int = 256,
    ) -> npt.NDArray[np.float32]:
        """Sentence vectors, float32 [N, D]; [D] of one string. For models of SentenceTransformer, or a BERTEmbedder.

            model = Model.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
            similarities = model.encode(queries) @ model.encode(documents).T

        texts          a list, generator or column of texts; a table with the column "text" or "sentence"; a text; or a
                       Path (a string is a text) of a table or of lines
        text_columns   the column of a table, in a list
        prompt         text to put before each text, such as "query: "
        prompt_name    the checkpoint's prompt of that name (default: the checkpoint's default, else none)
        normalize      whether to scale vectors to length 1 also where the model does not

        Raises ValueError for other heads, for a prompt that the checkpoint does not have, and for vectors that are NaN
        or infinite.
        """
        if not isinstance(self.head, BERTEmbedder):
            raise ValueError(
                f"encode needs a BERTEmbedder; this is a {type(self.head).__name__}. Put one on its encoder: "
                "Model(BERTEmbedder(model.head), model.tokenizer)"
            )
        given = self._single_texts(texts, text_columns)
        prefix = self.head.prompt(prompt_name) if prompt is None else prompt
        if prefix:
            given = [prefix + text for text in given]
        vectors = self._outputs([given], batch_size)
        vectors = F.normalize(vectors, dim=1) if normalize else vectors
        return (vectors[0] if isinstance(texts, str) else vectors).numpy()

    def fit(
        self,
        train: Any,
        dev: Any = None,
        *,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        max_len: int | None = None,
        truncation: Truncation = "longest_first",
        separator: str = ",",
        **training: Any,
    ) -> History:
        """Fine-tune on labelled data; `dev` is evaluated after each epoch.

            model.fit("snli_1.0", "snli_1.0", epochs=1, lr=5e-5)
            model.fit(frame, text_columns=["title", "body"], label_column="kind")

        text_columns, label_column    of tables, see `load_examples` and `to_examples`
        max_len                       tokens of an example at most (default: the head's); saved in the checkpoint
        truncation                    how longer pairs are truncated
        separator                     of a BERTMultiLabelClassifier: text between the classes of an example
        training                      TrainingOptions by name, and the other arguments of `bertnli.fit`
        """
        if max_len is not None:
            self.head.settings["max_len"] = self.head.sequence_len(max_len)
        reading = (text_columns, label_column, truncation, separator)
        train_data = self._encode(train, "train", *reading)
        dev_data = None if dev is None else self._encode(dev, "dev", *reading)
        history = fit(self.head, train_data, dev_data, **training)
        files = {"train": train, "dev": dev}
        self.head.provenance |= {
            k: Path(v).resolve().name for k, v in files.items() if isinstance(v, str | os.PathLike)
        }
        return history

    def evaluate(
        self,
        data: Any,
        *,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        truncation: Truncation = "longest_first",
        separator: str = ",",
        batch_size: int = 256,
        progress: bool = True,
    ) -> dict[str, Any]:
        """The head's figures of merit on labelled data, its mean loss, and the number of examples.

        Of a folder in SNLI's layout it takes the test file. Arguments: see `fit`.
        """
        encoded = self._encode(data, "test", text_columns, label_column, truncation, separator)
        return inference.evaluate(
            self.head, encoded, batch_size=batch_size, precision=self.precision, progress=progress
        )

    def save_pretrained(self, folder: str | os.PathLike[str], *, format: str = "bertnli") -> None:
        """Write a checkpoint: see `bertnli.save_pretrained`."""
        checkpoint.save_pretrained(self.head, folder, self.tokenizer, format=format)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        format: str = "huggingface",
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload model",
    ) -> str:
        """Save a checkpoint and upload it to the Hugging Face hub; gives the address of the commit.

            model.push_to_hub("team/reviews", private=True)

        repo_id           "team/name", or "name" for your own; it is made if there is none
        format            "huggingface", which transformers loads too, or "bertnli": see `save_pretrained`
        private           whether a new repository is private (default: the account's setting)
        token             of access (default: the one that `hf auth login` keeps)
        commit_message    first line of the commit's message

        A README.md there that bertnli did not write stays.

        Raises ImportError without `bertnli[hub]`, ValueError for a model that the format cannot hold, and what
        huggingface_hub raises without network or access.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, format=format)
            return hub.upload(folder, repo_id, private=private, token=token, message=commit_message)

    def to(self, device: torch.device | str) -> Model:
        """Move the head to a device, in place."""
        self.head.to(device)
        return self

    def _parts(
        self, examples: Any, second: Sequence[str] | None, text_columns: Sequence[str] | None
    ) -> Sequence[Sequence[Any]]:
        if second is not None:
            return [side if isinstance(side, str) else texts_of(side) for side in (examples, second)]
        if isinstance(examples, Path):
            return list(zip(*read_inputs(examples, self.head, text_columns), strict=True)) or [()]
        return parts_of(examples, self.head, text_columns)

    def _single_texts(self, examples: Any, text_columns: Sequence[str] | None = None) -> Sequence[str]:
        if isinstance(examples, Path):
            return list(read_texts(Source(examples), None if text_columns is None else text_columns[0]))
        return texts_in(examples, self.head, text_columns)

    def _outputs(
        self, parts: Sequence[Sequence[Any]], batch_size: int, truncation: Truncation = "longest_first"
    ) -> torch.Tensor:
        """The head's outputs of unlabelled examples, float32 [N, num_labels] on the CPU; all finite."""
        encoded = inference.encode_inputs(self.head, self.tokenizer, *parts, truncation=truncation)
        outputs = inference.score(self.head, encoded, batch_size=batch_size, precision=self.precision)
        return inference.check_finite(outputs)

    def _encode(
        self,
        data: Any,
        split: str,
        text_columns: Sequence[str] | None,
        label_column: str | None,
        truncation: Truncation,
        separator: str,
    ) -> Any:
        """What `fit` and `evaluate` take; `split` is the file of a folder in SNLI's layout."""
        head, words = self.head, isinstance(self.tokenizer, WordTokenizer)
        if isinstance(data, Subset) or isinstance(getattr(data, "encoded", data), EncodedTexts):
            return data
        if isinstance(data, str | os.PathLike):
            data = load_examples(
                data, head.task, split=split, text_columns=text_columns, label_column=label_column,
                labels=head.label_names, words=words, separator=separator,
            )  # fmt: skip
        elif not hasattr(data, "label_names"):
            data = to_examples(data, head, text_columns, label_column, separator)
            data = space_out_data(data) if words and isinstance(data, TextData) else data
        if split == "train":
            head.adapt(data)
        return head.encode(self.tokenizer, data, truncation=truncation)


def check_ranking_label(head: Head, label: str | None) -> None:
    """Raise ValueError where a classifier is to rank without one of its classes."""
    names = head.label_names or ()
    if isinstance(head, BERTClassifier) and label not in names:
        raise ValueError(f"a classifier ranks by the probability of a class: give label, one of {', '.join(names)}")


def ranking(scores: npt.NDArray[np.float32], top_k: int | None = None) -> list[tuple[int, float]]:
    """The (index, score) of the largest scores, largest first, equal ones in their order; at most `top_k`."""
    return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top_k]]
