"""Other libraries: their models on bertnli's operators, and runs in their logs. Each is imported when it is used."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from bertnli.data.arguments import choice
from bertnli.integrations.loggers import mlflow, tensorboard, wandb
from bertnli.runtime import PRECISIONS

__all__ = ["accelerate", "mlflow", "restore", "tensorboard", "wandb"]

_Model = TypeVar("_Model")


def accelerate(model: _Model, precision: str = "fp32") -> _Model:
    """Make the BERT encoder of another library's model run on packed tokens by bertnli's operators; the same object.

        model = bertnli.accelerate(CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2"))
        scores = model.predict(pairs)

    model      a model of `transformers` that is or contains a `BertModel` (any head), a `pipeline`, or a
               sentence-transformers `CrossEncoder` or `SentenceTransformer`
    precision  of inference, "fp32", "bf16" or "int8": see InferenceSession. Training, and whatever needs gradients,
               uses the dtypes of the model and of autocast

    Parameters are shared, not copied: `state_dict`, `save_pretrained`, optimizers, `Trainer` and PEFT go on working.
    Inputs and outputs keep their padded shapes, with zeros in the padding. `restore(model)` undoes it.

    `SentenceTransformer.encode` and `CrossEncoder.predict`, and what calls them, also tokenize and pack with bertnli
    if an unmodified float32 model on the CPU gets texts or pairs; else the library's code runs on the packed encoder.
    Their default `batch_size`, which is for padded batches, means 256.

    A call with `output_hidden_states`, `output_attentions`, `inputs_embeds`, a mask that is not [batch, length], or
    other inputs that only the original modules know, runs these, and so does a model with hooks in its encoder. The log
    says so once.

    Raises TypeError for an object without a torch model, ValueError with the reason for a model that bertnli cannot
    compute, and for "int8" where that needs an unmodified float32 encoder on the CPU.
    """
    choice(precision, "precision", PRECISIONS)
    from bertnli.integrations import sentence_transformers, transformers

    module = _torch_model(model)
    transformers.accelerate(module, precision)
    sentence_transformers.accelerate(module)
    return model


def restore(model: _Model) -> _Model:
    """Undo `accelerate`: the same object, with the original modules called again. A plain model is left as it is."""
    for module in _torch_model(model).modules():
        for name in ("forward", "encode", "predict"):
            if type(module.__dict__.get(name)).__module__.startswith("bertnli.integrations"):
                delattr(module, name)
    return model


def _torch_model(model: Any) -> nn.Module:
    """The model itself, or that of a pipeline."""
    found = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(found, nn.Module):
        raise TypeError(
            "expected a model of transformers or sentence-transformers, or a pipeline with such a model; found "
            f"{type(model).__name__}"
        )
    return found
