import ast
import json
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError

from ainn_lib import AINNError, codec, data, entropy
from ainn_lib.reproduce import ROOT, execute, widget_errors
from ainn_lib.widgets import at_quality, at_step, bit_map, explore

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHELSEA = data.photo("chelsea").crop((100, 40, 196, 104))


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


# -- the explorers over their whole range ------------------------------------------------------------------------------

def test_the_quality_explorer(tiny):
    last = 0
    for quality in np.arange(1, 8.01, 0.5):
        figure, numbers = at_quality(CHELSEA, tiny, float(quality))
        assert numbers.bytes == len(codec.encode(CHELSEA, tiny, float(quality))) and numbers.bytes >= last
        assert f"{numbers.bpp:.3f}" in str(numbers)
        last = numbers.bytes
        plt.close(figure)


def test_the_bit_map_adds_up(tiny):
    bits = bit_map(CHELSEA, tiny, 4.0)
    assert bits.shape == (4, 6)
    latent = 8 * codec.info(codec.encode(CHELSEA, tiny, 4.0)).latent_bytes
    assert bits.sum() == pytest.approx(latent, rel=0.02, abs=200)


def test_the_wavefront_explorer():
    steps = len(list(entropy.wavefront(12, 18)))
    done = 0
    for step in range(steps):
        figure, numbers = at_step(12, 18, step)
        assert numbers.done == done and numbers.batch >= 1
        done += numbers.batch
        plt.close(figure)
    assert done == 12 * 18
    with pytest.raises(AINNError, match="step"):
        at_step(12, 18, steps)


def test_the_face_calls_the_function_with_the_sliders_value():
    seen = []

    def function(x):
        seen.append(x)
        return plt.figure(), "words"

    slider = ipywidgets.IntSlider(value=2, min=0, max=9)
    box = explore(function, x=slider)
    slider.value = 7
    assert seen == [2, 7] and slider in box.children


def test_widget_errors_are_found_where_they_hide():
    state = {"a": {"state": {"outputs": [{"output_type": "error", "ename": "ValueError", "evalue": "hidden"}]}}}
    nb = nbformat.v4.new_notebook()
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    assert widget_errors(nbformat.from_dict(json.loads(nbformat.writes(nb)))) == ["ValueError: hidden"]
