"""`bertnli encode`: sentence vectors of a file of texts."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np

from bertnli.cli.loading import find_device, load_checkpoint
from bertnli.cli.reports import print_json
from bertnli.cli.texts import text_lines
from bertnli.data.files import atomic_path, writing
from bertnli.data.progress import Progress
from bertnli.model import Model
from bertnli.tasks.embedding import BERTEmbedder

_CHUNK = 8192  # texts that are encoded at a time: enough for batches of equal lengths


def encode(args: SimpleNamespace) -> None:
    """Write the vectors of the lines of --input to a .npy file, float32 [N, D], in their order."""
    head, tokenizer = load_checkpoint(args.model)
    if args.pooling is not None:
        head = BERTEmbedder(head, pooling=args.pooling)
    if not isinstance(head, BERTEmbedder):
        raise ValueError(f"{args.model} does not say how to pool its tokens' vectors: give --pooling, such as mean")
    model = Model(head, tokenizer, args.precision).to(find_device(args.device))
    lines, chunks = text_lines(args.input), []
    with Progress(0, "encode", "texts", enabled=not args.quiet) as shown:
        while texts := [text for text, _ in itertools.islice(lines, _CHUNK)]:
            chunks.append(
                model.encode(
                    texts,
                    prompt=args.prompt,
                    prompt_name=args.prompt_name,
                    normalize=args.normalize,
                    batch_size=args.batch_size,
                )
            )
            shown.update(len(texts))
    if not chunks:
        raise ValueError(f"{args.input} has no texts")
    vectors = np.concatenate(chunks)
    with atomic_path(args.output) as temporary, writing(args.output), open(temporary, "wb") as file:
        np.save(file, vectors)
    print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers: {args.output}")
    print_json(args, {"output": str(args.output), "texts": len(vectors), "width": vectors.shape[1]})
