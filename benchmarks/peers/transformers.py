"""transformers in float32 or under bfloat16 autocast, and the model that the other peers export."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from inference_problem import Padded, Peer, Problem
from torch import Tensor

from bertnli import BERTClassifier
from bertnli.checkpoint.families import to_huggingface


def equal_model(model: BERTClassifier, attention: str = "sdpa") -> Any:
    """A transformers classifier with the sizes and weights of `model`, which has the original BERT's variant."""
    c = model.encoder.config
    config = transformers.BertConfig(
        vocab_size=c.vocab_size, hidden_size=c.num_hiddens, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, intermediate_size=c.ffn_num_hiddens, num_labels=3,
        max_position_embeddings=c.max_len, attn_implementation=attention,
    )  # fmt: skip
    equal = transformers.BertForSequenceClassification(config)
    equal.load_state_dict(to_huggingface(model.state_dict()))
    return equal


def build(problem: Problem, precision: str, threads: int) -> Peer:
    model = equal_model(problem.model).eval()

    def scores(inputs: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model(**inputs).logits.float().numpy()  # type: ignore[no-any-return]

    return Peer(Padded.tensors, scores)
