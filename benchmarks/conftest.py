"""plugin.py has the options and fixtures; type checkers know one conftest.py, that of the tests."""

from plugin import (  # noqa: F401
    contest,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_terminal_summary,
    settings,
)

collect_ignore = ["bench_gpu.py"]  # a program of its own, for a machine without pytest-benchmark
