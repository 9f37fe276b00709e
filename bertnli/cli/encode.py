"""`bertnli encode`: sentence vectors of a file of texts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bertnli.cli.loading import find_device, load_checkpoint
from bertnli.cli.reports import print_json
from bertnli.cli.texts import chunks, open_texts
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
    found = []
    with open_texts(args.input, args) as (texts, _), Progress(0, "encode", "texts", enabled=not args.quiet) as shown:
        for chunk in chunks(texts, _CHUNK, lambda: True):
            found.append(
                model.encode(
                    chunk,
                    prompt=args.prompt,
                    prompt_name=args.prompt_name,
                    normalize=args.normalize,
                    batch_size=args.batch_size,
                )
            )
            shown.update(len(chunk))
    if not found:
        raise ValueError(f"{args.input} has no texts")
    vectors = np.concatenate(found)
    with atomic_path(args.output) as temporary, writing(args.output), open(temporary, "wb") as file:
        np.save(file, vectors)
    print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers: {args.output}")
    print_json(args, {"output": str(args.output), "texts": len(vectors), "width": vectors.shape[1]})
