"""
Runs the notebooks offline and keeps what they show, so that it can be seen without running them:
`python notebooks/execute.py`, or with the names of some.

What differs from run to run is left out: progress, warnings of other libraries, times. A digest of the code tells the
tests whether the outputs are those of the cells as they are.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HOME = Path(__file__).parent


def digest(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the cells of code."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def execute(file: Path) -> None:
    """Runs a notebook in a directory of its own, and writes it back with its outputs."""
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["IPYTHONDIR"] = f"{scratch}/ipython"
        Path(scratch, "tests").symlink_to(HOME.parent / "tests")  # the notebook about publishing looks for its Hub
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": scratch}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.execution_count = None
                cell.outputs = [_kept(output, scratch) for output in cell.outputs if _is_shown(output)]
    notebook.metadata["hf_prune"] = {"code": digest(notebook)}
    nbformat.write(notebook, file)


def _is_shown(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout" and not output.text.startswith("{'train_runtime'")
    data = output.get("data", {})
    page = data.get("text/html")
    passing = "TrainOutput(" in data.get("text/plain", "") or (page is not None and not page.strip())
    passing = passing or "<progress" in (page or "")
    return not passing and not any("widget-view" in kind for kind in data)


def _kept(output: nbformat.NotebookNode, scratch: str) -> nbformat.NotebookNode:
    """An output without its number and without the place where it was made."""
    if "execution_count" in output:
        output.execution_count = None
    for holder, key in ((output, "text"), *((output.get("data", {}), kind) for kind in output.get("data", {}))):
        if isinstance(holder.get(key), str):
            holder[key] = holder[key].replace(scratch, ".")
    return output


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.name for path in HOME.glob("*.ipynb")):
        print(f"{name} ...", flush=True)
        execute(HOME / name)
