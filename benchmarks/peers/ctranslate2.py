"""CTranslate2's encoder, with the classifier's layer in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import Array, Padded, Peer, Problem

NAME = "ctranslate2"
PRECISIONS = ("fp32", "bf16", "int8")
REQUIRES = ("ctranslate2", "transformers", "torch")
BUILT_FOR = {"bf16": ("avx512_bf16",)}
COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


def build(problem: Problem, precision: str, threads: int) -> Peer:
    import ctranslate2

    folder = problem.folder / "ct2"
    if not folder.exists():
        _export(problem)
    compute_type = COMPUTE_TYPES[precision]
    encoder = ctranslate2.Encoder(str(folder), device="cpu", compute_type=compute_type, intra_threads=threads)
    weight, bias = np.load(problem.folder / "classifier.npz").values()

    def prepare(bucket: Padded) -> tuple[Any, ...]:
        ids, lengths = (ctranslate2.StorageView.from_array(x.astype(np.int32)) for x in (bucket.ids, bucket.lengths))
        return ids, lengths, bucket.segments.tolist()

    def logits(inputs: tuple[Any, ...]) -> Array:
        ids, lengths, segments = inputs
        pooled = encoder.forward_batch(ids, lengths, token_type_ids=segments).pooler_output
        if pooled.dtype != ctranslate2.DataType.float32:
            pooled = pooled.to(ctranslate2.DataType.float32)
        return np.asarray(np.array(pooled) @ weight.T + bias)

    return Peer(prepare, logits)


def _export(problem: Problem) -> None:
    import ctranslate2
    import transformers

    model, folder = problem.torch_model(), problem.folder / "hf"
    model.bert.save_pretrained(folder)
    transformers.BertTokenizer(str(problem.folder / "vocab.txt")).save_pretrained(folder)
    # The converter asks for an attribute that transformers 5 dropped.
    setattr(transformers.BertConfig, "position_embedding_type", "absolute")  # noqa: B010
    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(problem.folder / "ct2"), force=True)
    np.savez(problem.folder / "classifier.npz", *(t.detach().numpy() for t in model.classifier.parameters()))
