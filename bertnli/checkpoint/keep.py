"""A callback that keeps the best checkpoints of a run, and the last."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from bertnli.checkpoint import save_pretrained
from bertnli.data.files import atomic_path, read_json
from bertnli.encoder.bert import BERTModel
from bertnli.runtime.distributed import rank_and_size
from bertnli.tasks.base import Head
from bertnli.text.tokenizer import Tokenizer
from bertnli.text.vocab import Vocab
from bertnli.training.callbacks import Callback
from bertnli.training.history import Evaluation

_RECORD = "evaluation.json"  # in each checkpoint that this callback has written, as its last file


def keep_checkpoints(
    model: Head | BERTModel, tokenizer: Vocab | Tokenizer, folder: str | os.PathLike[str], keep: int = 3
) -> Callback:
    """Write a checkpoint `FOLDER/step-N` after each evaluation, and keep the `keep` best of them and the last.

        fit(model, train, dev, callbacks=[bertnli.keep_checkpoints(model, tokenizer, "runs/x/checkpoints")])

    Each is a folder for `from_pretrained`, with the figures of the dev data in `evaluation.json`. A continued run goes
    on with the checkpoints that are in the folder. Raises ValueError for `keep` below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1; found {keep}")
    folder = Path(folder)

    def on_eval(evaluation: Evaluation) -> None:
        if rank_and_size()[0]:
            return
        newest = folder / f"step-{evaluation.step}"
        save_pretrained(model, newest, tokenizer)
        with atomic_path(newest / _RECORD) as path:
            path.write_text(json.dumps(asdict(evaluation)) + "\n", encoding="utf-8")
        found = [(Evaluation(**read_json(path)), path.parent) for path in folder.glob(f"step-*/{_RECORD}")]
        found.sort(key=lambda pair: (-pair[0].gain, pair[0].step))
        for _, worse in found[keep:]:
            if worse != newest:
                shutil.rmtree(worse)

    return Callback(on_eval=on_eval)
