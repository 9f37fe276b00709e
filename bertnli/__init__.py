"""bertnli: fine-tune and run BERT on sentence pairs, fast."""

import torch

from bertnli import _text

_found = torch.__version__.split("+")[0]
if _text.torch_version != _found:
    raise ImportError(
        f"bertnli was built for torch {_text.torch_version}, but torch {_found} is installed; "
        "rebuild it with: pip install --no-build-isolation --force-reinstall --no-deps bertnli"
    )

from bertnli import _ops  # noqa: E402, F401  (after the check: a wrong torch would fail here with an undefined symbol)

__version__ = "0.1.0"
