"""Frozen parts of an encoder, and the features of one that is frozen as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from bertnli.encoder.bert import BERTEncoder
from bertnli.inference.predict import run_batches, tokens_per_sequence
from bertnli.inference.session import InferenceSession
from bertnli.tasks.base import Head
from bertnli.text.batch import ragged_index
from bertnli.text.encoded import EncodedTexts
from bertnli.training.options import TrainingOptions

_MAX_FEATURE_BYTES = 2 << 30  # enough for one vector of each SNLI pair, not for one of each token of a large corpus


def freeze(encoder: BERTEncoder, depth: str | int | None) -> list[nn.Module]:
    """Turn off `requires_grad` of the embeddings and the lowest layers, and return their modules.

    depth  None for nothing, "embeddings", "encoder", or the number of layers to freeze beside the embeddings
    """
    layers = len(encoder.blks)
    if depth is None:
        return []
    count = {"embeddings": 0, "encoder": layers}[depth] if isinstance(depth, str) else depth
    if not 0 <= count <= layers:
        raise ValueError(f'freeze must be None, "embeddings", "encoder" or 0 to {layers} layers; found {depth!r}')
    frozen: list[nn.Module] = [m for name, m in encoder.named_children() if name != "blks"]
    frozen += list(encoder.blks)[:count]
    encoder.pos_embedding.requires_grad_(False)
    for module in frozen:
        module.requires_grad_(False)
    return frozen


@contextmanager
def restored_after_training(*modules: nn.Module) -> Iterator[None]:
    """Run the block, then set the modules to eval mode without gradients, each `requires_grad` as it was."""
    flags = {p: p.requires_grad for module in modules for p in module.parameters()}
    try:
        yield
    finally:
        for module in modules:
            module.eval()
        for p, flag in flags.items():
            p.grad = None
            p.requires_grad_(flag)


class CachedFeatures:
    """What a frozen encoder gives for all examples.

    vectors  [R, H], of the tokens that the head reads
    counts   int64 [N] on the CPU, the number of vectors of each example
    """

    def __init__(self, vectors: Tensor, counts: Tensor) -> None:
        self.vectors, self.counts = vectors, counts
        self.begins = counts.cumsum(0) - counts

    def of(self, examples: Tensor) -> Tensor:
        """The vectors of some examples, end to end. Nothing waits for the device."""
        index = ragged_index(self.begins[examples], self.counts[examples])
        index = index.pin_memory() if self.vectors.device.type == "cuda" else index
        return self.vectors[index.to(self.vectors.device, non_blocking=True)]


def cached_features(model: Head, train: EncodedTexts, options: TrainingOptions) -> CachedFeatures | None:
    """The features of a wholly frozen encoder; None if it is not, if they take more than 2 GiB, or if the head must be
    called as a whole because it has a `forward` of its own or hooks."""
    if options.freeze not in ("encoder", len(model.encoder.blks)):
        return None
    custom = type(model).forward is not Head.forward or "forward" in vars(model)
    if custom or model._forward_hooks or model._forward_pre_hooks:
        return None
    counts = tokens_per_sequence(model, train)
    if int(counts.sum()) * model.config.num_hiddens * 4 > _MAX_FEATURE_BYTES:
        return None
    session = InferenceSession(model, options.precision)
    vectors = run_batches(session, train, function=session.features, cuda_graphs=options.cuda_graphs)
    return CachedFeatures(vectors, counts)
