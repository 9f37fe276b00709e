"""Execute docs/tutorial.ipynb, and write its outputs into it and into the Chinese one, whose code is the same.

Run it after a change of the tutorial's code: `python tests/helpers/execute_tutorial.py`. It takes about a minute.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def executed(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook with new outputs, but for what goes to standard error."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}).execute()
    cells: list[dict[str, Any]] = json.loads(nbformat.writes(notebook))["cells"]
    for cell in cells:
        cell["metadata"] = {}
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if output.get("name") != "stderr"]
    return cells


def main() -> None:
    cells = executed(DOCS / "tutorial.ipynb")
    for path in (DOCS / "tutorial.ipynb", DOCS / "zh" / "tutorial.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for old, new in zip(notebook["cells"], cells, strict=True):
            if old["cell_type"] == "code":
                old |= {key: new[key] for key in ("source", "outputs", "execution_count")}
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
