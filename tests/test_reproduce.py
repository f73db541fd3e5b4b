"""`ainn reproduce`: it works beside the checkout, resumes, and compares."""

import json
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ainn_lib import reproduce
from ainn_lib.measure import agreement, figures
from ainn_lib.measure.agreement import close, differences

CURVE = {"date": "2026-01-02", "commit": "0123456789ab", "results": {"setting": [1.0, 2.0]},
         "per_image": [{"image": "a", "bytes": [100, 200], "psnr-rgb": [30.0, None]}]}


def notebook(words, code="1"):
    output = nbformat.v4.new_output("display_data", {"text/markdown": words})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, outputs=[output])])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project, and what a run makes of it: every artefact as it is committed."""
    root = SimpleNamespace(figures=tmp_path / "figures", notebooks=tmp_path / "notebooks",
                           published=tmp_path / "published", place=tmp_path / "place")
    rd = root.figures / "data" / "rd"
    for folder in (rd, root.notebooks, root.published):
        folder.mkdir(parents=True)
    for name in ("embedded-jpeg", "kodak-jpeg"):
        (rd / f"{name}.json").write_text(json.dumps(CURVE))
    Image.new("RGB", (8, 6), "white").save(root.figures / "figure5.png")
    (root.figures / "ablation.csv").write_text("network,value\nplain,-3.50 %\n")
    nbformat.write(notebook("It has **31.41** dB."), root.notebooks / "00_a.ipynb")
    nbformat.write(notebook("1 second"), root.notebooks / "01_b.ipynb")
    (root.published / "known.csv").write_text("# where from\ncodec,bpp\nx,1\ny,2\n")
    for module in (reproduce, agreement):
        monkeypatch.setattr(module, "FIGURES", root.figures)
        monkeypatch.setattr(module, "NOTEBOOKS", root.notebooks)
        monkeypatch.setattr(module, "PUBLISHED", root.published)
    monkeypatch.setattr(reproduce, "RESULTS", root.figures / "data")
    monkeypatch.setattr(reproduce, "SECONDS", root.figures / "data" / "reproduce.json")

    def made(name):
        def step():
            root.ran.append(name)
            if name in root.broken:
                raise RuntimeError(f"{name} is broken")
            for path in root.figures.rglob("*.*"):
                new = root.place / "figures" / path.relative_to(root.figures)
                new.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix in (".png", ".csv") or path.name.startswith("embedded"):
                    new.write_bytes(path.read_bytes())
        return step

    root.ran, root.broken = [], set()
    steps = {name: made(name) for name in ("measure", "00_a.ipynb", "01_b.ipynb")}
    monkeypatch.setattr(reproduce, "steps", lambda place: steps)
    return root


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the run ---------------------------------------------------------------------------------------


def test_a_failing_step_hides_no_other_and_is_run_again_alone(project, capsys):
    before = files(project.figures) | files(project.notebooks)
    project.broken.add("00_a.ipynb")
    assert reproduce.main(place=project.place) == 1
    assert project.ran == ["measure", "00_a.ipynb", "01_b.ipynb"]
    shown = capsys.readouterr()
    assert "00_a.ipynb is broken" in shown.err and "1 steps failed, 1 artefacts differ" in shown.out
    project.broken.clear()
    assert reproduce.main(place=project.place) == 0
    assert project.ran[3:] == ["00_a.ipynb"]
    assert "0 steps failed, 0 artefacts differ" in capsys.readouterr().out
    assert reproduce.main(place=project.place) == 0
    assert project.ran[4:] == ["measure", "00_a.ipynb", "01_b.ipynb"]  # all was done: anew
    assert files(project.figures) | files(project.notebooks) == before


def test_an_interrupted_run_resumes_unless_something_has_changed(project, monkeypatch):
    steps = reproduce.steps(project.place)

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "steps", lambda place: {**steps, "01_b.ipynb": stop})
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(place=project.place)
    monkeypatch.setattr(reproduce, "steps", lambda place: steps)
    (project.published / "known.csv").write_text("codec,bpp\nx,1\n")
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(reproduce, "steps", lambda place: {**steps, "01_b.ipynb": stop})
        reproduce.main(place=project.place)
    assert project.ran == ["measure", "00_a.ipynb"] * 2  # the numbers had changed: anew
    monkeypatch.setattr(reproduce, "steps", lambda place: steps)
    assert reproduce.main(place=project.place) == 0
    assert project.ran[4:] == ["01_b.ipynb"]


def test_update_replaces_what_is_committed(project):
    nbformat.write(notebook("It has **99** dB."), project.notebooks / "00_a.ipynb")
    reproduce._begin(project.place, reproduce._key())
    new = notebook("It has **31.41** dB.")
    nbformat.write(new, project.place / "notebooks" / "00_a.ipynb")
    assert reproduce.main(update=True, place=project.place) == 0
    assert "31.41" in (project.notebooks / "00_a.ipynb").read_text()
    seconds = json.loads((project.figures / "data" / "reproduce.json").read_text())
    assert set(seconds["seconds"]) == {"measure", "00_a.ipynb", "01_b.ipynb"} and seconds["date"]


def test_update_keeps_the_checkout_where_a_step_failed(project):
    before = files(project.figures)
    project.broken.add("measure")
    assert reproduce.main(update=True, place=project.place) == 1
    assert files(project.figures) == before


def test_the_time_left_is_last_times_at_todays_speed(project):
    assert reproduce.time_left(["a", "b"], {}) == "0 of 2 steps done"
    assert reproduce.time_left(["a", "b"], {"a": 90}).endswith("about 2 minutes left")
    known = {"seconds": {"a": 30, "b": 60, "c": 300}}
    reproduce.SECONDS.write_text(json.dumps(known))
    assert reproduce.time_left(["a", "b", "c"], {}).endswith("about 6 minutes left")
    left = reproduce.time_left(["a", "b", "c"], {"a": 60})  # twice as slow
    assert left == "1 of 3 steps done, about 12 minutes left"


def test_notebooks_find_the_copied_figures(tmp_path):
    path = tmp_path / "01_x.ipynb"
    code = "from ainn_lib.paths import FIGURES, MEASURED\nprint(FIGURES, MEASURED)"
    cells = [nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    place = str(tmp_path / "copy")
    done = reproduce.execute(path, {**reproduce.os.environ, "AINN_FIGURES": place})
    assert done.cells[0].outputs[0].text.split() == [place, f"{place}/data/rd"]


# -- the comparison --------------------------------------------------------------------------------


def agreeing(project, failed=()):
    rows = agreement.compare(project.place / "figures", project.place / "notebooks", list(failed))
    return {row.artefact: row for row in rows}


@pytest.fixture
def made(project):
    """The project after a run in which everything came out as it is committed."""
    reproduce.main(place=project.place)
    return project


def test_every_artefact_has_a_row(made):
    rows = agreeing(made)
    assert {name: row.agrees for name, row in rows.items()} == {
        "00_a.ipynb": True, "01_b.ipynb": True, "ablation.csv": True, "figure5.png": True,
        "data/rd/embedded-jpeg.json": True, "data/rd/kodak-jpeg.json": None, "known.csv": None}
    assert rows["data/rd/kodak-jpeg.json"].source == "committed measurement, 2026-01-02 01234567"
    assert rows["known.csv"].source == "published" and rows["known.csv"].committed == "2 points"
    assert rows["data/rd/embedded-jpeg.json"].committed == "2 files, 300 bytes, 30.000 dB"
    lines = agreement.table(list(rows.values())).splitlines()
    assert len(lines) == 9 and len({len(line) for line in lines}) == 1


def test_what_a_failed_step_would_have_made_is_missing(project):
    project.broken.update(reproduce.steps(project.place))
    reproduce.main(place=project.place)
    rows = agreeing(project)
    for name in ("figure5.png", "ablation.csv", "data/rd/embedded-jpeg.json"):
        assert rows[name].now == "missing" and rows[name].agrees is False


@pytest.mark.parametrize("bytes, psnr, agrees", [
    ([100, 200], [30.005, None], True),
    ([100, 201], [30.0, None], False),
    ([100, 200], [30.02, None], False),
    ([100, 200], [30.0, 50.0], False),
])
def test_a_measured_file_must_have_its_size_and_quality(made, bytes, psnr, agrees):
    again = {**CURVE, "per_image": [{"image": "a", "bytes": bytes, "psnr-rgb": psnr}]}
    new = made.place / "figures" / "data" / "rd" / "embedded-jpeg.json"
    new.write_text(json.dumps(again))
    assert agreeing(made)["data/rd/embedded-jpeg.json"].agrees is agrees
    new.unlink()
    assert agreeing(made)["data/rd/embedded-jpeg.json"].agrees is False


def test_numbers_in_texts_and_pictures_are_compared(made):
    nbformat.write(notebook("It has **30.41** dB."), made.place / "notebooks" / "00_a.ipynb")
    Image.new("RGB", (8, 6), "gray").save(made.place / "figures" / "figure5.png")
    (made.place / "figures" / "ablation.csv").write_text("network,value\nplain,-3.90 %\n")
    rows = agreeing(made)
    assert rows["00_a.ipynb"].now == "1 differ: 31.41 -> 30.41"
    assert not (rows["00_a.ipynb"].agrees or rows["figure5.png"].agrees)
    assert rows["ablation.csv"].now == "1 differ: -3.50 -> -3.90"
    assert agreeing(made, ["01_b.ipynb"])["01_b.ipynb"].agrees is False


def test_cells_that_show_times_are_not_compared(made):
    for folder, words in ((made.notebooks, "1 s"), (made.place / "notebooks", "9 s")):
        nbformat.write(notebook(words, "time.perf_counter()"), folder / "01_b.ipynb")
    assert agreeing(made)["01_b.ipynb"].agrees


@pytest.mark.parametrize("a, b, same", [
    ("1.2e-07", "5e-06", True),  # both are rounding errors
    ("1.2e-03", "1.3e-03", True),  # the last digit
    ("1.2e-03", "1.4e-03", False),
    ("10,000", "10,099", True),
    ("10,000", "10,101", False),
    ("-0.5", "+0.5", False),
])
def test_close(a, b, same):
    assert close(a, b) is same


def test_a_cell_more_is_a_difference():
    assert differences(["1"], ["1", "2"]) == ["1 texts -> 2"]


# -- what figures are drawn from -------------------------------------------------------------------


def test_a_figure_knows_when_its_numbers_or_code_have_changed(tmp_path):
    folder = tmp_path / "figures"
    (folder / "data").mkdir(parents=True)
    numbers = folder / "data" / "figure6.json"
    numbers.write_text("1")
    _, pdf = figures.save(Figure(), "figure6", folder)
    assert figures.outdated("figure6", folder) == []
    assert figures.origin("figure6", folder)["figures/data/figure6.json"].encode() in (
        pdf.read_bytes())
    numbers.write_text("2")
    assert figures.outdated("figure6", folder) == ["figures/data/figure6.json"]
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "figure6.png")  # nobody knows
    assert len(figures.outdated("figure6", folder)) == 2


@pytest.mark.parametrize("name", figures.DRAWN_FROM)
def test_a_committed_figure_shows_what_is_committed(name):
    """Those that differ are listed; `ainn reproduce --update` draws them again."""
    with Image.open(figures.FIGURES / f"{name}.png") as image:
        if "Source" not in image.info:
            pytest.skip("drawn before figures kept what they are drawn from")
    assert figures.outdated(name) == []


def test_what_figures_are_drawn_from_is_there():
    for name, patterns in figures.DRAWN_FROM.items():
        for pattern in patterns:
            assert list(figures.ROOT.glob(pattern)), f"{name}: {pattern}"
