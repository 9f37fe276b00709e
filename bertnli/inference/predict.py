"""Running a trained model: outputs of encoded examples, figures of merit, and predictions from text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bertnli.data.texts import TextData
from bertnli.inference.session import computing, stand_ins
from bertnli.runtime.cuda_graphs import CapturedSteps, pad_to_bucket, use_cuda_graphs
from bertnli.runtime.distributed import rank_and_size
from bertnli.runtime.modes import eval_mode
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts, HasEncoded, encoded_texts
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import Vocab, space_out_data

_MANY = 8  # batches on a GPU, from which on CUDA graphs repay their capture


def check_labels(pairs: EncodedTexts, name: str, model: Head) -> None:
    """Raise ValueError unless `pairs` are some, labelled as `model` can take, and short enough for it."""
    if not len(pairs):
        raise ValueError(f"{name} is empty")
    if pairs.labels is None:
        raise ValueError(f"{name} has no labels")
    if (error := model.label_error(pairs.labels)) is not None:
        raise ValueError(f"{name} has {error}")
    if (longest := int(pairs.lengths.max())) > model.config.max_len:
        raise ValueError(
            f"{name} has a row of {longest} tokens; the model's max_len is {model.config.max_len}: "
            "encode the pairs with a smaller max_len"
        )


def score(
    model: Head,
    data: EncodedTexts | HasEncoded,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
    cuda_graphs: bool | None = None,
) -> Tensor:
    """The model's outputs, float32 [R, num_labels] on the CPU, in eval mode; the model's own mode is restored.

    R is the number of rows that the head reads: of a classifier or regressor one an example, of others see their class.
    `precision` is "fp32", "bf16" or "int8" (see `prepared`); weights are packed at the first call, and anew when the
    model has changed. `cuda_graphs`: as in `fit`, for many batches of a head that reads one row an example. Raises
    ValueError for a batch_size below 1, and as the encoder does for rows that it cannot take.
    """
    pairs = encoded_texts(data, "data")
    found = in_batches(model, model, pairs, batch_size, precision, by_sequence=model.pooled, cuda_graphs=cuda_graphs)
    return found.float().cpu()


def in_batches(
    model: Head,
    function: Callable[[PackedBatch], Tensor],
    pairs: EncodedTexts,
    batch_size: int = 256,
    precision: str = "fp32",
    *,
    by_sequence: bool = False,
    cuda_graphs: bool | None = None,
    each: Callable[[Tensor, PackedBatch], None] | None = None,
) -> Tensor:
    """`function`, a part of `model` in eval mode, of all pairs: what it gives for each batch, end to end.

    by_sequence   `function` gives one row a sequence and does not wait for the device: many batches may be CUDA graphs,
                  as `cuda_graphs` says (see `cuda_graphs.use_cuda_graphs`)
    each          called with what `function` gave and its batch as `pairs` has it
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; found {batch_size}")
    encoder = model.encoder
    begins, outputs = range(0, max(1, len(pairs)), batch_size), []  # no pairs are one batch of none
    whole = model if isinstance(model, Head) else encoder
    compiled = whole is not model or model._compiled_call_impl is not None or encoder._compiled_call_impl is not None
    graphs = None
    if by_sequence and len(begins) >= _MANY:
        device = encoder.pos_embedding.device
        if use_cuda_graphs(cuda_graphs, model, device, rank_and_size()[1]):
            graphs = CapturedSteps(lambda batch, _: (function(batch),), device, "inference", first=2)
    # The weights of a model in training change before the next time.
    stand_in = stand_ins(whole, precision, keep=not model.training)
    if function is model and model in stand_in and not compiled and each is None and graphs is None and _bare(model):
        run = stand_in[model]  # to which the call would come
        outputs = [run(pairs.batch(range(i, min(i + batch_size, len(pairs))))) for i in begins]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    device = encoder.pos_embedding.device
    layers = compiled or encoder not in stand_in
    with torch.no_grad(), computing(whole, precision, stand_in), eval_mode(model, layers):
        for begin in begins:
            batch = pairs.batch(range(begin, min(begin + batch_size, len(pairs))))
            if graphs is not None:
                bucket = pad_to_bucket(replace(batch, labels=None), 0, model.config.max_len)
                found = graphs(bucket, 0)[0][: len(batch)]
            else:
                found = function(batch if batch.device == device else batch.to(device, non_blocking=True))
            if each is not None:
                each(found, batch)
            outputs.append(found)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def tokens_per_sequence(model: Head, pairs: EncodedTexts) -> Tensor:
    """How many rows the head reads of each sequence, int64 [N]."""
    parts = torch.split(torch.arange(len(pairs)), 4096)
    with torch.no_grad(), eval_mode(model, include_encoder=False):
        return torch.cat([model.tokens_per_sequence(pairs.batch(rows)) for rows in parts])


def _bare(model: Head) -> bool:
    """Whether a call of the model does no more than what stands in for it, where that finds the rows by itself."""
    kind, hooks = type(model), torch.nn.modules.module
    return (
        kind.__call__ is nn.Module.__call__
        and kind.token_index is Head.token_index
        and "token_index" not in vars(model)
        and not hooks._global_forward_hooks
        and not hooks._global_forward_pre_hooks
    )


def evaluate(
    model: Head,
    data: EncodedTexts | HasEncoded,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
    cuda_graphs: bool | None = None,
) -> dict[str, Any]:
    """The head's figures of merit on labelled data, its mean loss, and the number of `examples` that were encoded.

    The options are those of `score`. Raises ValueError where there are no examples, no labels, or labels that the model
    does not have.
    """
    pairs = encoded_texts(data, "data")
    check_labels(pairs, "the evaluated data", model)
    losses: list[Tensor] = []  # read at the end, since that waits for the device
    units = 0

    def add(outputs: Tensor, batch: PackedBatch) -> None:
        nonlocal units
        losses.append(model.loss(outputs.float(), batch.to(outputs.device, non_blocking=True)))
        units += model.num_targets(batch)

    outputs = in_batches(
        model, model, pairs, batch_size, precision, by_sequence=model.pooled, cuda_graphs=cuda_graphs, each=add
    )
    outputs = outputs.float().cpu()
    loss = sum(map(float, losses)) / max(1, units)
    return {"examples": len(pairs), "loss": loss, **model.metrics(outputs, data)}


def predict(
    model: Head,
    tokenizer: Tokenizer | Vocab,
    *inputs: Any,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
    batch_size: int = 256,
    precision: str = "fp32",
) -> list[Any]:
    """The prediction of each example, in order.

    tokenizer  the model's; a Vocab, as the book's checkpoints have it, stands for its WordTokenizer
    inputs     what the head takes, by position: for classification and regression texts, or premises and hypotheses; a
               string, or two, instead of lists are one example. For a model of words their punctuation is set apart
               (`tokenizer.space_out`), but in words that the vocabulary has
    max_len    tokens a row; None means `settings["max_len"]`, else the head's own

    A classifier gives a Prediction an example, a regressor a float. Raises ValueError for lists of different lengths,
    and where the model's outputs are NaN.
    """
    tokenizer = WordTokenizer(tokenizer) if isinstance(tokenizer, Vocab) else tokenizer
    examples = model.inputs(*inputs)
    if isinstance(tokenizer, WordTokenizer) and isinstance(examples, TextData):
        examples = space_out_data(examples, tokenizer.vocab)
    data = model.encode(tokenizer, examples, max_len, truncation)
    outputs = score(model, data, batch_size=batch_size, precision=precision)
    if outputs.isnan().any():
        raise ValueError("the model's outputs are no numbers (NaN): its training has diverged, or its file is damaged")
    return model.predictions(outputs, data)
