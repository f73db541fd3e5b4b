import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from ainn_lib.reproduce import ROOT, execute, widget_errors

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# -- what is committed -------------------------------------------------------------------------------------------------

def test_it_is_committed_as_executed_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook[1])]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error(notebook):
    outputs = [output for cell in code_cells(notebook[1]) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not widget_errors(notebook[1])


def test_sliders_left_their_state_and_a_static_picture(notebook):
    path, nb = notebook
    uses = [cell for cell in code_cells(nb) if "explore(" in cell.source]
    assert uses
    for cell in uses:
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert "application/vnd.jupyter.widget-view+json" in kinds and kinds & {"image/jpeg", "image/png"}
    assert nb.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]


def test_it_is_small_and_has_more_words_than_code(notebook):
    path, nb = notebook
    assert path.stat().st_size < 400_000
    lines = sum(bool(line.strip()) and not line.strip().startswith("#") for cell in code_cells(nb) for line in cell.source.splitlines())
    words = sum(len(cell.source.split()) for cell in nb.cells if cell.cell_type == "markdown")
    assert lines <= 165 and words >= 500


def test_it_can_fail_and_has_exercises_with_answers(notebook):
    source = "\n".join(cell.source for cell in notebook[1].cells)
    assert source.count("assert ") >= 4
    for word in ("Predict", "Code", "Play", "<details>"):
        assert word in source


def test_no_function_is_longer_than_25_lines(notebook):
    for cell in code_cells(notebook[1]):
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno < 25, node.name


# -- the runner --------------------------------------------------------------------------------------------------------

def write(path: Path, *cells: str) -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbformat.write(nb, path)
    return path


def test_a_failing_check_stops_the_runner_and_keeps_the_old_notebook(tmp_path):
    path = write(tmp_path / "bad.ipynb", "x = 1", "assert x == 2, 'a check that fails'")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="a check that fails"):
        execute(path)
    assert path.read_bytes() == before


def test_a_failing_callback_stops_the_runner(tmp_path):
    source = ("import ipywidgets\nfrom ainn_lib.widgets import explore\n"
              "def broken(x):\n    raise ValueError(f'no picture for {x}')\n"
              "slider = ipywidgets.IntSlider(value=3)\nexplore(broken, x=slider)")
    path = write(tmp_path / "callback.ipynb", source)
    with pytest.raises(RuntimeError, match="no picture for 3"):
        execute(path)


def test_widget_errors_are_found_where_they_hide():
    state = {"a": {"state": {"outputs": [{"output_type": "error", "ename": "ValueError", "evalue": "hidden"}]}}}
    nb = nbformat.v4.new_notebook()
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    assert widget_errors(nbformat.from_dict(json.loads(nbformat.writes(nb)))) == ["ValueError: hidden"]
