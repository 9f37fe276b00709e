"""OpenVINO GenAI's TextRerankPipeline: one query and its documents a call, so a call for each pair."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import Array, Problem, logit

NAME = "OpenVINO GenAI"
PRECISIONS = ("fp32",)
REQUIRES = ("openvino-genai", "openvino-tokenizers", "openvino", "transformers", "torch")


def build_text(problem: Problem, precision: str, threads: int) -> Any:
    import openvino
    import openvino_genai
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    folder = problem.folder / "genai"
    if not (folder / "openvino_model.xml").exists():
        example = problem.calibration()[0].tensors()
        model = openvino.convert_model(problem.torch_model(), example_input=example)
        openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
        tokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(problem.folder), with_detokenizer=False)
        openvino.save_model(tokenizer, folder / "openvino_tokenizer.xml")
        (folder / "config.json").write_bytes((problem.folder / "config.json").read_bytes())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    pipeline = openvino_genai.TextRerankPipeline(str(folder), "CPU", top_n=1, **settings)

    def scores(texts: list[tuple[str, str]]) -> Array:
        return logit(np.array([pipeline.rerank(query, [document])[0][1] for query, document in texts]))

    return scores
