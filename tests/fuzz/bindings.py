"""Mutated calls of every function and operator of the extensions: each returns or raises, and none crashes.

    PYTHONPATH=.:tests python tests/fuzz/bindings.py [calls of each] [seed]

`make sanitize` runs it on extensions under Address- and UndefinedBehaviorSanitizer. The call that runs is written to
standard error before it begins, so that the last line before a crash names it; a seed gives the same calls again.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from bertnli import BERTClassifier, BERTConfig, BERTModel, InferenceSession, PackedBatch, _ops, _text

Call = tuple[Callable[..., Any], list[Any]]
LIB = torch.ops.bertnli
INTEGERS = [-(2**62), -(2**31), -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**62]
FLOATS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.999, 1.0, 1e300, 1e-300]
STRINGS = ["", "x", "gelu", "int8", "\0", "\udc80", "é" * 1000, "[SEP]"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int32, torch.int64, torch.bool]


def texts(rng: random.Random) -> dict[str, Call]:
    """Valid calls of `_text`."""
    vocab = [(token, i) for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "é", "."])]
    words = _text.WordTokenizer(vocab, 0, 2, 3, 1)
    pieces = _text.WordPieceTokenizer(vocab, 0, 2, 3, 1, vocab[:5], True)
    folder = Path(tempfile.gettempdir())
    (folder / "fuzz_pairs.tsv").write_text("label\tsentence1\tsentence2\n" + "x\ta a.\té\n-\ta\ta\n" * 9)
    file = [str(folder / "fuzz_pairs.tsv"), False, False, ["x", "y"], lambda text, json: -1]
    many = ["".join(rng.choices("aé. [SEP]\u3000", k=rng.randint(0, 30))) for _ in range(50)]
    arena = np.frombuffer("aé.a".encode(), np.uint8), np.array([0, 1]), np.array([1, 5])
    ids, offsets, first = np.arange(20, dtype=np.int32), np.array([0, 5, 5, 20]), np.array([2, 0, 15], np.int32)
    calls: dict[str, Call] = {
        "WordTokenizer": (_text.WordTokenizer, [vocab, 0, 2, 3, 1]),
        "WordPieceTokenizer": (_text.WordPieceTokenizer, [vocab, 0, 2, 3, 1, vocab[:5], True]),
        "read_pairs": (_text.read_pairs, [*file, 2]),
        "TableReader": (_text.TableReader, ["x", "lines", ",", True, True, ["a"], False, 0, True]),
        "TableReader feed": (fed_table, [rng.choice(["delimited", "lines", "array"]), b'a,"b"\n1,2\n{"a": 1}', [0], 1]),
        "QuoteScan": (_text.QuoteScan("\t").feed, [b'"a"\tb\n']),
        "distinct": (_text.distinct, [*arena, np.array([0, 1], np.uint8)]),
        "read_arrow": (_text.read_arrow, [pa.array(["a", None, "é"])]),
        "read_arrow stream": (_text.read_arrow, [pa.chunked_array([["a"], ["b"]]).dictionary_encode()]),
        "extract_text": (_text.extract_text, ["( a ( b ) )"]),
        "gather_packed": (_text.gather_packed, [ids, offsets, first, np.array([2, 0, 1])]),
        "gather_padded": (_text.gather_padded, [ids, offsets, first, np.array([2, 0]), 0, 16]),
        "gather_padded all": (_text.gather_padded, [ids, offsets, first, None, 0, 15]),
    }
    for name, tokenizer in (("words", words), ("pieces", pieces)):
        calls |= {
            f"{name} encode": (tokenizer.encode, [many[0]]),
            f"{name} encode_ragged": (tokenizer.encode_ragged, [many, many[::-1], 9, "longest_first", 2]),
            f"{name} encode_ragged texts": (tokenizer.encode_ragged, [many, None, 9, "ratio", 1]),
            f"{name} encode_ragged arena": (tokenizer.encode_ragged, [arena, arena, 9, "only_first", 1]),
            f"{name} encode_file": (tokenizer.encode_file, [*file, 9, "ratio", 2]),
            f"{name} encode_spans": (tokenizer.encode_spans, [many, 2]),
        }
    return calls


def fed_table(format: str, block: bytes, columns: list[int], width: int) -> object:
    """What a reader of tables gives for one block."""
    reader = _text.TableReader("x", format, ",", True, True, ["a"], False, 0, True)
    reader.feed(block, False)
    if format == "delimited":
        reader.choose(columns)
    reader.feed(block, True)
    return reader.take(width)


def operators(rng: random.Random) -> dict[str, Call]:
    """Valid calls of `torch.ops.bertnli`: forward, backward, optimizer."""
    dtype = rng.choice([torch.float32, torch.bfloat16, torch.float64])
    n, width, heads = rng.randint(1, 40), rng.choice([1, 8, 24, 64]), 2

    def real(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape).to(of)

    def number(top: int, *shape: int) -> Tensor:
        return torch.randint(0, top, shape, dtype=torch.int32)

    exact = torch.float64 if dtype == torch.float64 else torch.float32
    seed = torch.tensor([1, 2])
    cut = rng.randint(0, n)
    cu = torch.tensor([0, cut, n], dtype=torch.int32)
    x, y, w, b = real(n, width), real(n, width), real(width), real(width)
    q, k, v = (real(n, heads, width) for _ in range(3))
    scores = real(n, heads, of=exact)
    tables, ids = [real(9, width), real(2, width), real(50, width)], [number(9, n), number(2, n), number(50, n)]
    mean, rstd = real(n, of=exact), real(n, of=exact).abs()
    shapes = [(9, width), (width,)]
    states = [[real(*shape, of=torch.float32).abs() for shape in shapes] for _ in range(3)]
    copies = [torch.zeros(9, width, dtype=torch.bfloat16), torch.empty(0)]
    step, betas = [0.1, 1.5, 0.99], [0.9, 0.999, 1e-8, 0.0]
    table, rows = states[0][0], torch.tensor([4, 1], dtype=torch.int32)
    last, steps = torch.zeros(9, dtype=torch.int32), torch.rand(5, 3, dtype=torch.float64)
    attend = [n, n, 0.1, 0.5, seed]
    return {
        "add_norm": (LIB.add_norm, [x, y, b, w, b, 1e-5, 0.1, seed]),
        "add_norm_backward": (LIB.add_norm_backward, [y, x, y, b, w, b, mean, rstd, 0.1, seed]),
        "bias_act": (LIB.bias_act, [x, b, "gelu"]),
        "bias_act_backward": (LIB.bias_act_backward, [y, x, b, "relu"]),
        "linear": (LIB.linear, [x, real(5, width), real(5)]),
        "linear_backward": (LIB.linear_backward, [real(n, 5), x, real(5, width)]),
        "embed": (LIB.embed, [*tables, *ids, False]),
        "embed_backward": (LIB.embed_backward, [x, *ids, 9, 2, 50, True, True, True]),
        "embed_norm": (LIB.embed_norm, [*tables, *ids, w, b, 1e-5, 0.1, seed, dtype, False]),
        "embed_norm_backward": (LIB.embed_norm_backward, [x, *tables, *ids, w, b, mean, rstd, 0.1, seed]),
        "varlen_attention": (LIB.varlen_attention, [q, k, v, cu, cu, *attend]),
        "varlen_attention_backward": (
            LIB.varlen_attention_backward,
            [q, scores, q, k, v, v, scores, scores, cu, cu, *attend],
        ),
        "varlen_attention_packed": (LIB.varlen_attention_packed, [real(n, 3, heads, width), cu, *attend[1:]]),
        "varlen_attention_packed_backward": (
            LIB.varlen_attention_packed_backward,
            [q, real(n, 3, heads, width), q, scores, scores, cu, *attend[1:]],
        ),
        "gradient_norm": (LIB.gradient_norm, [[real(9, width), real(width)]]),
        "adam_step": (LIB.adam_step, [states[0], [real(*s) for s in shapes], *states[1:], copies, *step, *betas, 0.5]),
        "adam_rows": (
            LIB.adam_rows,
            [table, rows, real(2, width, of=torch.float32), states[1][0], states[2][0], *step, *betas, 0.5],
        ),
        "adam_catch_up": (LIB.adam_catch_up, [table, rows, states[1][0], states[2][0], last, steps, 3, *betas]),
        "set_cpu_isa": (LIB.set_cpu_isa, [str(LIB.cpu_isa())]),
        "keep_memory": (LIB.keep_memory, [False]),
        "cpu_multiplies_better": (_ops.cpu_multiplies_better, [False]),
    }


def encoders(rng: random.Random) -> dict[str, Call]:
    """Valid calls of the fused encoder, which `InferenceSession` makes."""
    head = make_head(rng)
    made: list[list[Any]] = []
    fused = _ops.FusedEncoder

    def catch(*arguments: Any) -> Any:
        made.append(list(arguments))
        return fused(*arguments)

    _ops.FusedEncoder = catch  # type: ignore[misc, assignment]
    try:
        session = InferenceSession(head, rng.choice(["fp32", "int8"]))
    finally:
        _ops.FusedEncoder = fused  # type: ignore[misc]
    encoder, batch = session._encoder, make_batch(rng)
    assert encoder is not None
    inputs = [batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens]
    layer = [torch.randn(3, head.config.num_hiddens), torch.randn(3)]
    return {
        "FusedEncoder": (fused, made[0]),
        "features": (encoder.features, [*inputs, torch.tensor([0, len(batch.input_ids) - 1]), False]),
        "features first": (encoder.features, [*inputs, None, True]),
        "outputs": (encoder.outputs, [*inputs, None, True, layer]),
        "outputs hidden": (encoder.outputs, [*inputs, None, True, [torch.randn(8, 8), torch.randn(8), *layer]]),
    }


def mutated(value: Any, rng: random.Random) -> Any:
    """Something else in place of an argument, of its kind or of none."""
    if rng.random() < 0.05:
        return rng.choice([None, 3, "x", [], torch.zeros(2), b"a", 1.5])
    if isinstance(value, Tensor):
        return mutated_tensor(value, rng)
    if isinstance(value, np.ndarray):
        array = mutated_tensor(torch.from_numpy(value.copy()), rng)
        return array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(INTEGERS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, str):
        return rng.choice([*STRINGS, value[: len(value) // 2]])
    if isinstance(value, list | tuple) and value:
        items = list(value)
        kind, i = rng.randrange(4), rng.randrange(len(items))
        if kind == 0:
            items[i] = mutated(items[i], rng)
        elif kind == 1:
            del items[i]
        elif kind == 2:
            items.append(items[i])
        else:
            items = []
        return type(value)(items)
    return value


def mutated_tensor(x: Tensor, rng: random.Random) -> Tensor:
    x = x.detach().clone()
    kind = rng.randrange(9)
    if kind == 0:
        return x.to(rng.choice(DTYPES))
    if kind == 1:
        return x[: rng.randint(0, len(x))] if x.dim() else x
    if kind == 2:
        return torch.cat([x, x]) if x.dim() else x[None]
    if kind == 3:
        return x[None] if rng.random() < 0.5 or not x.dim() else x[..., : x.shape[-1] // 2]
    if kind == 4:
        return x.flatten()
    if kind == 5 and x.dim():
        return torch.stack([x, x], -1)[..., 0]  # not contiguous
    if kind == 6 and x.dim():
        return x[:1].expand(x.shape) if len(x) else x
    if kind == 7 and x.dim() > 1:
        return x.transpose(-1, -2)
    values = [float("nan"), float("inf"), -1e38] if x.is_floating_point() else [-1, 2**31 - 1, -(2**31), 100]
    x = x.contiguous()
    if x.numel() and x.dtype != torch.bool and x.dtype != torch.uint8:
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(values)
    return x


# ---- models with edited layers --------------------------------------------------------------------------------------


def make_head(rng: random.Random) -> BERTClassifier:
    make: Any = rng.choice([BERTConfig, BERTConfig.original])
    sizes: dict[str, Any] = dict(num_hiddens=8, ffn_num_hiddens=12, num_heads=2, num_layers=2, max_len=16, dropout=0.0)
    return BERTClassifier(BERTModel(make(20, **sizes, pretraining_heads=False)), 3).eval()


def make_batch(rng: random.Random) -> PackedBatch:
    lens = [rng.randint(2, 12) for _ in range(rng.randint(1, 5))]
    ids = torch.randint(0, 20, (len(lens), 12))
    return PackedBatch.from_padded(ids, ids % 2, torch.tensor(lens))


def edit(head: nn.Module, rng: random.Random) -> None:
    """Another shape, dtype or number of heads for one or two parts of the encoder."""
    linears = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(4)
        if kind == 0:
            _, module = rng.choice(linears)
            out, into = (max(1, size + rng.choice([-4, -1, 0, 0, 4, 8])) for size in module.weight.shape)
            new = nn.Linear(into, out, bias=module.bias is not None)
            module.weight, module.bias = new.weight, new.bias
        elif kind == 1:  # a wider or narrower feed-forward layer, as pruning leaves it
            width = rng.choice([1, 8, 20, 64])
            ffn = rng.choice([module for name, module in head.named_modules() if name.endswith(".ffn")])
            ffn.dense1, ffn.dense2 = nn.Linear(8, width), nn.Linear(width, 8)
        elif kind == 2:
            attention = rng.choice([module for name, module in head.named_modules() if hasattr(module, "num_heads")])
            attention.num_heads = rng.choice([1, 2, 3, 4, 8])
        else:
            name, parameter = rng.choice(list(head.named_parameters()))
            owner, _, key = name.rpartition(".")
            setattr(head.get_submodule(owner), key, nn.Parameter(mutated_tensor(parameter, rng), requires_grad=False))


def check_edited(rng: random.Random) -> None:
    """A session on an edited model refuses it, or gives what its modules give."""
    head, batch = make_head(rng), make_batch(rng)
    edit(head, rng)
    with torch.no_grad():
        try:
            expected = head(batch)
        except (RuntimeError, ValueError, IndexError, TypeError):
            expected = None
        try:
            found = InferenceSession(head)(batch)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return
    assert expected is not None, "the session takes a model whose modules raise"
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=1e-3, equal_nan=True)


# ---- all of it ------------------------------------------------------------------------------------------------------


def run(calls: int, seed: int = 0, trace: Callable[[str], object] = lambda name: None) -> dict[str, tuple[int, int]]:
    """Number of calls that returned and that raised, by name."""
    isa = LIB.cpu_isa()
    counts: dict[str, tuple[int, int]] = {}
    for i in range(calls):
        rng = random.Random(f"{seed} {i}")
        torch.manual_seed(rng.randrange(2**31))
        for name, (function, arguments) in (texts(rng) | operators(rng) | encoders(rng)).items():
            for _ in range(rng.randint(0 if i % 10 == 0 else 1, 2)):
                at = rng.randrange(len(arguments))
                arguments[at] = mutated(arguments[at], rng)
            trace(f"{name} seed={seed} call={i}")
            returned, raised = counts.get(name, (0, 0))
            try:
                function(*arguments)
                counts[name] = returned + 1, raised
            except (
                RuntimeError,
                ValueError,
                TypeError,
                IndexError,
                KeyError,
                OSError,
                MemoryError,
                NotImplementedError,
            ):
                counts[name] = returned, raised + 1
            LIB.keep_memory(False)
            LIB.set_cpu_isa(isa)
        trace(f"edited model seed={seed} call={i}")
        check_edited(rng)
    return counts


def main() -> None:
    calls, seed = (int(argument) for argument in (sys.argv[1:] + ["100", "0"][len(sys.argv) - 1 :]))
    warnings.simplefilter("ignore")
    counts = run(calls, seed, lambda name: print(name, file=sys.stderr))
    for name, (returned, raised) in counts.items():
        print(f"{name:40} returned {returned:5}   raised {raised:5}")
    print(f"{sum(map(sum, counts.values()))} calls of {len(counts)} kinds, {calls} edited models: no crash")


if __name__ == "__main__":
    main()
