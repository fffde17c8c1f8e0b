"""The notebook runs from top to bottom where jax cannot be imported, and shows what its text says."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "scaling" / "notebooks" / "fit_law.ipynb"


def test_the_notebook_runs_top_to_bottom_without_jax(tmp_path):
    blocked = tmp_path / "jax"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('jax is not here')\n")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # fewer bootstrap fits: the numbers that follow do not depend on them
        cell.source = cell.source.replace("BOOTSTRAP = 1000", "BOOTSTRAP = 50")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}}).execute(env=environment)
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "732 base points, 712 instruct points" in text
    assert text.count(" reproduced") - text.count("NOT reproduced") == 8 + 7  # published fits and single base slopes
    assert "base: pooled 0.9955, within models 0.903" in text
    assert "MY_RUNS is empty" in text
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 7


def test_the_notebook_as_stored_names_no_machine_path():
    text = NOTEBOOK.read_text()
    assert str(ROOT) not in text and "/tmp/" not in text and "/home/" not in text
