"""docs/tour.ipynb and docs/library.md, run as a reader runs them."""

import doctest
import re

import nbclient
import nbformat
import pytest

from tests import processes

NOTEBOOK = processes.ROOT / "docs" / "tour.ipynb"


def pictures(notebook):
  return [
    output
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if "image/png" in output.get("data", {})
  ]


def test_the_examples_of_the_library():
  page = processes.ROOT / "docs" / "library.md"
  found = doctest.testfile(str(page), module_relative=False)
  assert found.attempted > 30
  assert not found.failed


def test_the_notebook_is_committed_with_its_outputs():
  notebook = nbformat.read(NOTEBOOK, 4)
  nbformat.validate(notebook)
  assert len(pictures(notebook)) == 5
  text = NOTEBOOK.read_text()
  assert '"output_type": "error"' not in text
  assert "/tmp/" not in text
  assert "/home/" not in text


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
  # As a reader's machine has it: without the devices of the tests.
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  notebook = nbformat.read(NOTEBOOK, 4)
  count = len(pictures(notebook))
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = []
  nbclient.NotebookClient(
    notebook,
    timeout=900,
    kernel_name="python3",
    resources={"metadata": {"path": str(NOTEBOOK.parent)}},
  ).execute()
  assert len(pictures(notebook)) == count
  said = "".join(
    output.text
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if output.output_type == "stream"
  )
  best = float(re.search(r"best w: (\S+)", said)[1])
  assert 0 < best <= 1
