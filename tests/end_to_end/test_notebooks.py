"""The notebooks of docs/ run from top to bottom, and show what they showed.

With `ALBAT_NOTEBOOKS=docs` what they print is kept in them.
"""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
KEPT = os.environ.get("ALBAT_NOTEBOOKS")


@pytest.mark.end_to_end
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_showed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    place = tmp_path / "docs" / "notebooks"
    place.mkdir(parents=True)
    notebook = nbformat.read(path, as_version=4)
    before = shown(notebook)
    run = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=300, resources=run, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries say on the way is no result
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    if KEPT:
        nbformat.write(notebook, path)
    else:
        assert shown(notebook) == before


def shown(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Return the kinds of output of each cell; figures may differ in a last digit."""
    return [[out.output_type for out in cell.get("outputs", ())] for cell in notebook.cells]
