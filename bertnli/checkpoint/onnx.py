"""Export to ONNX: the padded model as a graph of standard operators, checked in ONNX Runtime against the original.

Shapes in the comments: B sequences of L tokens, H hidden units in h heads of d.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertnli.checkpoint.files import Writer, to_json, vocab_file, write_files, write_text
from bertnli.data.extras import from_extra
from bertnli.inference.fusing import is_overridden
from bertnli.inference.predict import score
from bertnli.tasks.base import Head
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab

_OPSET = 17  # the first with LayerNormalization
_MASKED = -1e30  # added to the scores of padding
_TOLERANCE = 1e-4  # of the largest output: float32 summed in another order
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclasses.dataclass(frozen=True)
class Check:
    """A comparison of an exported model with the original.

    file         of the exported model
    examples     sequences that were compared
    difference   the largest difference of an output
    agreement    share of the output rows whose largest output is in the same column; NaN for one column
    """

    file: Path
    examples: int
    difference: float
    agreement: float


def export(
    model: Head,
    folder: Path,
    tokenizer: Vocab | Tokenizer,
    files: Mapping[str, object],
    sample: EncodedTexts | None = None,
    *,
    num_samples: int = 1000,
    int8: bool = False,
) -> list[Check]:
    """Write model.onnx, with `int8` also model_quantized.onnx, the vocabulary and other JSON files, and compare.

    files        JSON files beside the model
    sample       sequences to compare on (default: random ids of random lengths), at most `num_samples`

    The inputs are int64 [B, L]: `INPUTS`, without token_type_ids for a model whose segment embeddings are zeros. The
    output is float32 `logits`, [B, num_labels], or [B, L, num_labels] of a head that reads all tokens; of question
    answering `start_logits` and `end_logits`, [B, L].

    Raises ImportError without `bertnli[onnx]`, ValueError for a head that computes in its own way or whose layers
    were replaced, and where the outputs of model.onnx differ.
    """
    with from_extra("onnx", "export to ONNX"):
        import onnx
        import onnxruntime  # noqa: F401
    proto = _Graph(model).proto()
    written: list[Path] = []

    def write_model(path: Path) -> None:
        onnx.save_model(proto, str(path))
        written.append(path)

    contents: dict[str, Writer] = {"model.onnx": write_model}
    if int8:
        contents["model_quantized.onnx"] = lambda path: _quantize(written[0], path)
    for name, value in files.items():
        contents[name] = partial(write_text, to_json(value))
    name, vocab = vocab_file(tokenizer)
    contents[name] = partial(write_text, vocab.to_text())
    write_files(folder, contents, remove=() if int8 else ("model_quantized.onnx",))
    sample = _random_sample(model, num_samples) if sample is None else sample
    checks = [compare(model, folder / file, sample, num_samples) for file in contents if file.endswith(".onnx")]
    if not checks[0].difference <= _TOLERANCE * max(1.0, float(score(model, sample[:num_samples]).abs().max())):
        raise ValueError(f"{checks[0].file}: outputs differ from the model's by up to {checks[0].difference:.2g}")
    return checks


def compare(model: Head, file: Path, sample: EncodedTexts, num_samples: int = 1000, batch_size: int = 32) -> Check:
    """Run a file of `export` in ONNX Runtime on the first sequences of the sample, and compare the outputs."""
    import onnxruntime

    part = sample[:num_samples]  # without labels a tagger reads all tokens
    sample = EncodedTexts(part.ids, part.offsets, part.first_lens, None, pad_id=part.pad_id, max_len=part.max_len)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    found = []
    for begin in range(0, len(sample), batch_size):
        batch = sample.batch(range(begin, min(begin + batch_size, len(sample))))
        mask = batch.pad(torch.ones_like(batch.input_ids))
        inputs = dict(zip(INPUTS, (batch.pad(batch.input_ids), mask, batch.pad(batch.segment_ids)), strict=True))
        feed = {name: value.long().numpy() for name, value in inputs.items() if name in names}
        outputs = np.stack(session.run(None, feed), -1)
        outputs = outputs if model.task == "qa" else outputs[..., 0]
        found.append(torch.from_numpy(outputs if model.pooled else outputs[mask.bool().numpy()]))
    theirs, ours = torch.cat(found), score(model, sample)
    columns = ours.shape[1]
    same = (theirs.argmax(1) == ours.argmax(1)).double().mean() if columns > 1 else float("nan")
    return Check(file, len(sample), float((theirs - ours).abs().max()), float(same))


def _random_sample(model: Head, count: int) -> EncodedTexts:
    generator = torch.Generator().manual_seed(0)
    longest = model.sequence_len()
    lengths = torch.randint(min(3, longest), longest + 1, (count,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(model.config.vocab_size, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    first = (lengths // 2 + 1).int()
    return EncodedTexts(ids, offsets, first, None, pad_id=0, max_len=longest)


def _quantize(source: Path, target: Path) -> None:
    """Tables and matrices in 8 bits, matrices by output channel; inputs of products in 8 bits, by their range."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice to run another tool first, on the root logger
    try:
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(logging.NOTSET)


class _Graph:
    """The nodes and weights of a model's graph; each method adds nodes and gives the name of their result."""

    def __init__(self, model: Head) -> None:
        if any(is_overridden(model, name) for name in ("forward", "features", "head")):
            raise ValueError(
                f"a {type(model).__name__} computes in its own way; only Head's own can be exported to ONNX"
            )
        self.model, self.config = model, model.config
        self.state = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
        self.nodes: list[Any] = []
        self.weights: dict[str, npt.NDArray[Any]] = {}

    def proto(self) -> Any:
        """The model as onnx.ModelProto. Raises ValueError where a parameter is not where an unmodified model has it."""
        from onnx import TensorProto, helper, numpy_helper

        try:
            x = self._encoder()
            outputs = self._head(x)
        except KeyError as error:
            raise ValueError(f"{error} is missing: a layer was replaced, and cannot be exported to ONNX") from None
        used = {name for node in self.nodes for name in node.input}
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in INPUTS
            if name in used
        ]
        graph = helper.make_graph(
            self.nodes,
            "bertnli",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8, producer_name="bertnli"
        )

    def _encoder(self) -> str:
        """[B, L, H], or [B, H] of the first tokens if the head reads these."""
        config, pooled = self.config, self.model.pooled
        x = self._embeddings()  # (B, L, H)
        mask = self._op("Cast", self._op("Unsqueeze", "attention_mask", self._ints([1, 2])), to=1)  # (B, 1, 1, L)
        mask = self._op("Mul", self._op("Sub", self._constant(1.0), mask), self._constant(_MASKED))
        for i in range(config.num_layers):
            block = f"encoder.blks.{i}"
            read = x if not pooled or i + 1 < config.num_layers else self._first_tokens(x)
            attended = self._attention(x, read, mask, f"{block}.attention")
            y = self._norm(self._op("Add", read, attended), f"{block}.addnorm1.ln")
            hidden = self._activation(self._linear(y, f"{block}.ffn.dense1"), config.activation)
            x = self._norm(self._op("Add", y, self._linear(hidden, f"{block}.ffn.dense2")), f"{block}.addnorm2.ln")
        if pooled:
            x = x if config.num_layers else self._first_tokens(x)
            x = self._op("Squeeze", x, self._ints([1]))
        return x

    def _embeddings(self) -> str:
        length = self._op("Gather", self._op("Shape", "input_ids"), self._ints([1]))
        table = self._weight("encoder.pos_embedding", self.state["encoder.pos_embedding"][0])
        positions = self._op("Slice", table, self._ints([0]), length, self._ints([0]))  # (L, H)
        x = self._op("Add", self._gather("encoder.token_embedding.weight", "input_ids"), positions)
        if bool(self.state["encoder.segment_embedding.weight"].any()):
            x = self._op("Add", x, self._gather("encoder.segment_embedding.weight", "token_type_ids"))
        if self.config.embedding_norm:
            x = self._norm(x, "encoder.embedding_norm")
        return x if self.config.embedding_size is None else self._linear(x, "encoder.embedding_projection")

    def _attention(self, x: str, read: str, mask: str, name: str) -> str:
        """Of the tokens in `read` [B, R, H] to those in x [B, L, H]: [B, R, H]."""
        heads = self.config.num_heads
        size = self.config.num_hiddens // heads
        shape = self._ints([0, -1, heads, size])

        def split(source: str, layer: str, order: list[int]) -> str:
            return self._op(
                "Transpose", self._op("Reshape", self._linear(source, f"{name}.{layer}"), shape), perm=order
            )

        q, k = split(read, "W_q", [0, 2, 1, 3]), split(x, "W_k", [0, 2, 3, 1])  # (B, h, R, d), (B, h, d, L)
        scores = self._op("Mul", self._op("MatMul", q, k), self._constant(1 / math.sqrt(size)))
        weights = self._op("Softmax", self._op("Add", scores, mask), axis=-1)
        context = self._op("MatMul", weights, split(x, "W_v", [0, 2, 1, 3]))  # (B, h, R, d)
        joined = self._op("Transpose", context, perm=[0, 2, 1, 3])
        return self._linear(self._op("Reshape", joined, self._ints([0, -1, heads * size])), f"{name}.W_o")

    def _head(self, x: str) -> dict[str, list[str | int]]:
        """The shapes of the outputs by their names."""
        shape: list[str | int] = ["batch"] if self.model.pooled else ["batch", "length"]
        if self.model.task == "qa":
            x, names = self._linear(x, "output"), ("start_logits", "end_logits")
            for i, name in enumerate(names):
                self._op("Squeeze", self._op("Gather", x, self._ints([i]), axis=2), self._ints([2]), result=name)
            return dict.fromkeys(names, shape)
        if self.model.pooled:
            x = self._activation(self._linear(x, "hidden.0"), self.config.pooler_activation)
        self._linear(x, "output", "logits")
        return {"logits": [*shape, self.model.output.out_features]}

    def _first_tokens(self, x: str) -> str:
        return self._op("Slice", x, self._ints([0]), self._ints([1]), self._ints([1]))  # (B, 1, H)

    def _activation(self, x: str, kind: str) -> str:
        if kind in ("relu", "tanh"):
            return self._op(kind.capitalize(), x)
        half = self._op("Mul", x, self._constant(0.5))
        if kind == "gelu":
            inner = self._op("Erf", self._op("Div", x, self._constant(math.sqrt(2))))
        else:
            cube = self._op("Mul", self._op("Mul", self._op("Mul", x, x), x), self._constant(0.044715))
            inner = self._op("Tanh", self._op("Mul", self._op("Add", x, cube), self._constant(math.sqrt(2 / math.pi))))
        return self._op("Mul", half, self._op("Add", inner, self._constant(1.0)))

    def _linear(self, x: str, name: str, result: str | None = None) -> str:
        product = self._op("MatMul", x, self._weight(f"{name}.weight", self.state[f"{name}.weight"].T))
        return self._op("Add", product, self._weight(f"{name}.bias"), result=result)

    def _norm(self, x: str, name: str) -> str:
        parts = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._op("LayerNormalization", x, *parts, axis=-1, epsilon=self.config.norm_eps)

    def _gather(self, table: str, ids: str) -> str:
        return self._op("Gather", self._weight(table), ids)

    def _weight(self, name: str, value: Tensor | None = None) -> str:
        self.weights[name] = (self.state[name] if value is None else value).contiguous().numpy()
        return name

    def _constant(self, value: float) -> str:
        name = f"constant.{value!r}"
        self.weights[name] = np.array(value, np.float32)
        return name

    def _ints(self, values: list[int]) -> str:
        name = f"constant.{values!r}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def _op(self, kind: str, *inputs: str, result: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        result = result or f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result
