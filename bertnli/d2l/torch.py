"""`from bertnli.d2l import torch as d2l`, as D2L's own import reads: the names of `bertnli.d2l`."""

from bertnli.d2l import *  # noqa: F403
from bertnli.d2l import __all__ as _names
from bertnli.d2l import __getattr__ as __getattr__

__all__ = list(_names)
