"""Running a trained model: outputs of encoded examples, figures of merit, and predictions from text."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bertnli.data.arguments import choice, positive
from bertnli.data.progress import Progress
from bertnli.data.texts import TextData
from bertnli.inference.session import InferenceSession, session_of
from bertnli.runtime import PRECISIONS
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket, use_cuda_graphs
from bertnli.runtime.distributed import rank_and_size
from bertnli.runtime.eval_mode import eval_mode
from bertnli.tasks.base import Head, check_head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import Encoded, EncodedTexts, encoded_texts, without_subset
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer, as_tokenizer
from bertnli.text.vocab import Vocab, space_out_data
from bertnli.text.windows import EncodedWindows

_log = logging.getLogger("bertnli")
_MANY = 8  # batches on a GPU, from which on CUDA graphs repay their capture


class NotFiniteError(ValueError):
    """A model's outputs are NaN or infinite."""


def check_labels(encoded: EncodedTexts, name: str, model: Head) -> None:
    """Raise ValueError unless there are examples, labelled as `model` can take, and short enough for it."""
    if not len(encoded):
        raise ValueError(f"{name} is empty")
    if encoded.labels is None:
        raise ValueError(f"{name} has no labels")
    if (error := model.label_error(encoded.labels)) is not None:
        raise ValueError(f"{name} has {error}")
    if (longest := int(encoded.lengths.max())) > model.config.max_len:
        raise ValueError(
            f"{name} has a sequence of {longest} tokens; the model's max_len is {model.config.max_len}: "
            "encode the texts with a smaller max_len"
        )


def check_finite(outputs: Tensor) -> Tensor:
    """The outputs [R, num_labels]. Raises NotFiniteError unless the largest of each row is finite (a custom head may
    exclude a class by minus infinity)."""
    if not math.isfinite(float(outputs.sum())):  # mostly all that is computed
        largest = outputs.amax(-1)
        if not bool(largest.isfinite().all()):
            kind = "NaN" if bool(largest.isnan().any()) else "infinite"
            raise NotFiniteError(f"the model's outputs are {kind}: its training diverged, or its file is damaged")
    return outputs


def score(
    model: Head | InferenceSession,
    data: Encoded,
    *,
    batch_size: int = 256,
    precision: str | None = None,
    cuda_graphs: bool | None = None,
) -> Tensor:
    """The model's outputs, float32 [R, num_labels] on the CPU, in eval mode; the model's own mode is restored.

    R is the number of tokens that the head reads: of a classifier or regressor one an example (also of a text in
    windows, whose outputs are pooled), of others see their class. `model` is a head, or a session of it. A head keeps
    one session for each precision, and makes it anew when weights have changed, a layer was replaced or hooked, and
    after `train()`.

    batch_size   examples that are computed at a time
    precision    "fp32", "bf16" or "int8" (default: the session's, else "fp32"); see InferenceSession
    cuda_graphs  as in `fit`, for many batches of a head that reads one token an example

    Raises ValueError for a batch_size below 1 and for a precision that the model or session does not have, and what a
    session raises for examples that it cannot take.
    """
    encoded, session = encoded_texts(data, "data"), _session(model, precision)
    outputs = run_batches(session, encoded, batch_size, cuda_graphs=cuda_graphs).float().cpu()
    return session.model.by_example(outputs, data)


def _session(model: Head | InferenceSession, precision: str | None) -> InferenceSession:
    if not isinstance(model, InferenceSession):
        check_head(model)
        return session_of(model, "fp32" if precision is None else choice(precision, "precision", PRECISIONS))
    if precision is not None and choice(precision, "precision", PRECISIONS) != model.precision:
        raise ValueError(f"precision={precision!r} was given with a session of precision {model.precision!r}")
    return model


def run_batches(
    session: InferenceSession,
    encoded: EncodedTexts,
    batch_size: int = 256,
    *,
    function: Callable[[PackedBatch], Tensor] | None = None,
    by_sequence: bool | None = None,
    cuda_graphs: bool | None = None,
    each: Callable[[Tensor, PackedBatch], None] | None = None,
) -> Tensor:
    """The results of all batches, end to end: the session's outputs, or those of `function`.

    function     what to compute of each batch, within `session.running()`
    by_sequence  whether that gives one row a sequence and does not wait for the device (default: whether the head reads
                 `<cls>`). Then many batches may be CUDA graphs, as `cuda_graphs` says (see `use_cuda_graphs`)
    each         called with each result and its batch as `encoded` has it
    """
    batch_size = positive(batch_size, "batch_size")
    begins = range(0, max(1, len(encoded)), batch_size)  # no examples are one batch of none
    compute, graphs = function or session.outputs_within, None
    many = len(begins) >= _MANY and (session.model.pooled if by_sequence is None else by_sequence)
    if many and use_cuda_graphs(cuda_graphs, session.model, session.device, rank_and_size()[1]):
        graphs = CapturedSteps(lambda batch, _: (compute(batch),), session.device, "inference", first=2)
    outputs = []
    with nullcontext() if function is None and session.fused else session.running():
        for begin in begins:
            batch = encoded.batch(range(begin, min(begin + batch_size, len(encoded))))
            if graphs is not None:
                bucket = pad_to_bucket(replace(batch, labels=None), 0, session.model.config.max_len)
                found = graphs(bucket, 0)[0][: len(batch)]
            else:
                found = compute(session.on_device(batch))
            if each is not None:
                each(found, batch)
            outputs.append(found)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def tokens_per_sequence(model: Head, encoded: EncodedTexts) -> Tensor:
    """How many tokens the head reads of each sequence, int64 [N]."""
    parts = torch.split(torch.arange(len(encoded)), 4096)
    with torch.no_grad(), eval_mode(model, include_encoder=False):
        return torch.cat([model.tokens_per_sequence(encoded.batch(rows)) for rows in parts])


def evaluate(
    model: Head | InferenceSession,
    data: Encoded,
    *,
    batch_size: int = 256,
    precision: str | None = None,
    cuda_graphs: bool | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The head's figures of merit on labelled data, its mean loss, and the number of `examples` that were encoded.

    progress    show progress on standard error, as `fit` does

    Other arguments and errors are those of `score`; it also raises ValueError where there are no examples, no labels,
    labels that the model does not have, or outputs that are NaN or infinite. A figure that the data leave undefined is
    NaN.
    """
    return evaluate_outputs(
        model, data, batch_size=batch_size, precision=precision, cuda_graphs=cuda_graphs, progress=progress
    )[0]


def evaluate_outputs(
    model: Head | InferenceSession,
    data: Encoded,
    *,
    batch_size: int = 256,
    precision: str | None = None,
    cuda_graphs: bool | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], Tensor]:
    """What `evaluate` gives, and the outputs that the figures are of, float32 [R, num_labels] on the CPU."""
    data, session = without_subset(data), _session(model, precision)
    encoded, head = encoded_texts(data, "data"), session.model
    check_labels(encoded, "the evaluated data", head)
    losses: list[Tensor] = []  # read at the end, since that waits for the device
    num_targets = 0

    def add(outputs: Tensor, batch: PackedBatch) -> None:
        nonlocal num_targets
        losses.append(head.loss(outputs.float(), batch.to(outputs.device, non_blocking=True)))
        num_targets += head.num_targets(batch)
        shown.update(len(batch))

    shown = Progress(len(encoded), "evaluate", "sequences", progress)
    with torch.no_grad(), eval_mode(head, include_encoder=False), shown:
        outputs = run_batches(session, encoded, batch_size, cuda_graphs=cuda_graphs, each=add).float().cpu()
    outputs = head.by_example(check_finite(outputs), data)
    loss = sum(map(float, losses)) / max(1, num_targets)
    count = len(data) if isinstance(data, EncodedWindows) else len(encoded)
    return {"examples": count, "loss": loss, **head.metrics(outputs, data)}, outputs


def encode_inputs(
    head: Head,
    tokenizer: Tokenizer | Vocab,
    *inputs: Any,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
) -> Any:
    """Encode unlabelled examples as `predict` does: see there for the arguments."""
    tokenizer = as_tokenizer(tokenizer)
    examples = head.inputs(*inputs)
    if isinstance(tokenizer, WordTokenizer) and isinstance(examples, TextData):
        examples = space_out_data(examples, tokenizer.vocab)
    encoded = head.encode(tokenizer, examples, max_len, truncation)
    texts = getattr(encoded, "encoded", encoded)
    if isinstance(examples, TextData) and isinstance(texts, EncodedTexts):
        _warn_of_unknown_words(tokenizer, texts, examples)
    return encoded


def _warn_of_unknown_words(tokenizer: Tokenizer, encoded: EncodedTexts, texts: TextData) -> None:
    """Warn once a tokenizer, with the words of the first texts that have any."""
    if tokenizer.has_warned or not bool((encoded.ids == tokenizer.unk_id).any()):
        return
    tokenizer.has_warned = True
    words = dict.fromkeys(
        word for side in (texts.first, texts.second or ()) for text in side for word in text.split()
        if tokenizer.unk_id in tokenizer.encode(word)
    )  # fmt: skip
    shown = ", ".join(repr(word) for word in itertools.islice(words, 10))
    _log.warning(
        "the model's vocabulary lacks %d of the words: %s%s. It sees no difference between them; this is said once",
        len(words), shown, ", ..." if len(words) > 10 else "",
    )  # fmt: skip


def predict(
    model: Head | InferenceSession,
    tokenizer: Tokenizer | Vocab,
    *inputs: Any,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
    batch_size: int = 256,
    precision: str | None = None,
) -> list[Any]:
    """The prediction of each example, in order.

    model       a head, or a session of it
    tokenizer   the model's; a Vocab, as D2L's checkpoints have it, stands for its WordTokenizer
    inputs      what the head takes, by position: for classification and regression texts, or premises and hypotheses; a
                string, or two, instead of lists are one example. For a model of words their punctuation is set apart
                (`vocab.space_out`), but in words that the vocabulary has
    max_len     tokens of a sequence (default: `settings["max_len"]`, else the head's own)
    truncation  see `Tokenizer.encode_pairs`
    batch_size, precision  as in `score`

    A classifier gives a Prediction an example, a regressor a float. A warning, once a tokenizer, names words that the
    vocabulary lacks. Raises ValueError for lists of different lengths, and where the model's outputs are NaN or
    infinite.
    """
    session = _session(model, precision)
    head = session.model
    data = encode_inputs(head, tokenizer, *inputs, max_len=max_len, truncation=truncation)
    outputs = check_finite(score(session, data, batch_size=batch_size))
    return head.predictions(outputs, data)
