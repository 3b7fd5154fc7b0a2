"""The notebooks of examples/ run from start to end, with the interpreter that runs the tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import ipykernel.kernelspec as ipykernel_kernelspec
import jupyter_client.kernelspec as jupyter_kernelspec
import nbclient
import nbformat
import pytest
from guests import without_qemu

# Jupyter's own warnings, which are not about pagehint.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
RUN = [pytest.param(path, marks=without_qemu if path.stem == "qemu" else ()) for path in NOTEBOOKS]


@pytest.fixture
def this_interpreter(tmp_path, monkeypatch):
    """Make "python3" the kernel of this interpreter, whatever kernels are installed on the machine."""
    ipykernel_kernelspec.write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert jupyter_kernelspec.get_kernel_spec("python3").argv[0] == sys.executable


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["hinting.ipynb", "numpy.ipynb", "policies.ipynb", "qemu.ipynb"]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
@pytest.mark.usefixtures("this_interpreter")
def test_notebook_runs_and_draws(path, tmp_path):
    (tmp_path / "tests").symlink_to(EXAMPLES.parent / "tests")  # with the recordings
    folder = tmp_path / "examples"
    folder.mkdir()
    copy = Path(shutil.copy(path, folder))
    notebook = nbformat.read(copy, as_version=4)
    committed = pictures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()  # raises CellExecutionError, with the traceback, on the first cell that fails
    assert pictures(notebook) > 0
    assert pictures(notebook) == committed, "the committed pictures are not those of the code: run it and save it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert path.stat().st_size < 600_000
    assert not [place for place in ("/tmp/", "/root/", "/home/") if place in path.read_text()]
