"""The committed notebooks, and the runner that makes them."""

import ast
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from ainn_lib.paths import NOTEBOOKS, ROOT
from ainn_lib.reproduce import execute

LARGEST = 1_000_000  # bytes of a notebook with its outputs
BOLD, NUMBER = re.compile(r"\*\*([^*\n]+)\*\*"), re.compile(r"\d+(?:[.,]\d+)+|\d\d+")


@pytest.fixture(params=sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# -- what is committed -----------------------------------------------------------------------------


def test_it_is_committed_as_executed_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts and counts == list(range(1, len(counts) + 1))


def test_the_library_has_every_name_that_a_notebook_uses(notebook):
    """A notebook that was executed earlier may use what has gone since."""
    modules = {}
    nodes = [node for cell in code_cells(notebook) for node in ast.walk(ast.parse(plain(cell)))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ainn_lib":
            for alias in node.names:
                value = getattr(import_module(node.module), alias.name, None)
                if value is None:
                    value = import_module(f"{node.module}.{alias.name}")
                modules[alias.name] = value
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            if isinstance(owner, ModuleType):
                assert hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"


def test_no_output_is_an_error(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_an_explorer_left_a_picture_and_a_page_that_need_no_kernel(notebook):
    uses = [cell for cell in code_cells(notebook) if "explore(" in cell.source]
    assert uses
    for cell in uses:
        picture, page = cell.outputs[-2:]
        assert "image/png" in picture.data and "present(root" in page.data["text/html"]


def test_no_output_is_the_repr_of_a_widget(notebook):
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        assert not any("widget" in kind for kind in output.get("data", {}))
        assert "children=(" not in output.get("data", {}).get("text/plain", "")


def test_it_can_fail(notebook):
    """A notebook checks what it says: some cell asserts."""
    trees = [ast.parse(plain(cell)) for cell in code_cells(notebook)]
    assert any(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree))


def test_it_is_small(notebook):
    assert len(nbformat.writes(notebook).encode()) < LARGEST


def test_no_function_is_longer_than_25_lines(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(plain(cell))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno < 25, node.name


def plain(cell) -> str:
    """The source without lines of IPython's own commands."""
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))


def shown_in(notebook) -> str:
    """The texts of a notebook's outputs."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return " ".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "")
                    + o.get("data", {}).get("text/html", "") for o in outputs)


def bold_numbers(text: str) -> list[str]:
    return [number for words in BOLD.findall(text) for number in NUMBER.findall(words)]


def missing(notebook) -> list[str]:
    """Numbers in bold in the text that stand in no output."""
    known = set(NUMBER.findall(shown_in(notebook)))
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [number for number in bold_numbers(text) if number not in known]


def test_a_bold_number_in_the_text_stands_in_an_output(notebook):
    """Numbers in prose are bold where a cell prints them: when they change, this fails."""
    assert not missing(notebook)


def test_the_claims_in_the_readme_stand_in_the_notebooks_that_they_name():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("| the paper | measured here | notebook |\n")[1].split("\n\n")[0]
    rows = table.splitlines()[1:]
    assert len(rows) >= 6
    for row in rows:
        linked = [NOTEBOOKS / name for name in re.findall(r"\(notebooks/(\w+\.ipynb)\)", row)]
        known = " ".join(shown_in(nbformat.read(path, as_version=4)) for path in linked)
        assert bold_numbers(row) and set(bold_numbers(row)) <= set(NUMBER.findall(known)), row


def test_a_number_that_no_output_shows_is_found():
    output = nbformat.v4.new_output("display_data", {"text/markdown": "It has **31.41** dB."})
    cells = [nbformat.v4.new_code_cell("1", outputs=[output]),
             nbformat.v4.new_markdown_cell("Of **31.41 dB** and **+0.5 %** in **2** of 33 cases.")]
    assert missing(nbformat.v4.new_notebook(cells=cells)) == ["0.5"]


def test_a_notebook_asks_one_question_and_says_what_was_found(notebook):
    first, *_, last = (cell.source for cell in notebook.cells)
    assert first.splitlines()[0].endswith("?")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert sum("## What was found" in text for text in texts) == 1
    assert "](00_start_here.ipynb)" in last or "00" in first.splitlines()[0]


def test_one_thread_leads_through_the_notebooks():
    """Each says where one is, what comes before and after it, and shows the same account."""
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    for before, path, after in zip([None, *paths], paths, [*paths[1:], None], strict=False):
        nb, number = nbformat.read(path, as_version=4), path.name.partition("_")[0]
        head = nb.cells[0].source
        assert f"](here/{number}.png)" in head
        assert (NOTEBOOKS / "here" / f"{number}.png").is_file()
        for other in filter(None, (before, after)):
            assert f"]({other.name})" in head
        assert f'account("{number}")' in "".join(cell.source for cell in code_cells(nb))


# -- the runner ------------------------------------------------------------------------------------


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


BROKEN_CALLBACK = """
import ipywidgets
from ainn_lib.ui.explorers import explore

def broken(x):
    raise ValueError(f"no picture for {x}")

explore(broken, x=ipywidgets.IntSlider(value=3))
"""


@pytest.mark.slow
def test_an_explorer_that_fails_stops_the_runner(tmp_path):
    path = write(tmp_path / "callback.ipynb", BROKEN_CALLBACK)
    with pytest.raises(CellExecutionError, match="no picture for 3"):
        execute(path)


WORKING = """
import ipywidgets
from ainn_lib.measure.datasets import photo
from ainn_lib.ui.explorers import at_wipe, explore

def dark(level):
    image = photo("chelsea")
    return at_wipe(image, {"dark": (image.point(lambda v: v * level // 9), 1000)})

explore(dark, level=ipywidgets.IntSlider(value=3, min=0, max=9))
"""


@pytest.mark.slow
def test_the_runner_stores_explorers_without_widgets(tmp_path):
    """A picture, then a page with the prepared positions: no state, and no repr of a widget."""
    path = write(tmp_path / "page.ipynb", WORKING)
    stored = execute(path)
    assert "widgets" not in stored.metadata
    picture, page = stored.cells[0].outputs
    assert set(picture.data) == {"image/png", "text/plain"}
    assert set(page.data) == {"text/html", "text/plain"}
    assert page.data["text/html"].count("times smaller") == 7  # 6 positions, and without scripts
    assert path.stat().st_size < 1e6
