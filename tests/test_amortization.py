import importlib
import json
import statistics

import matplotlib.pyplot as plt
import pytest

from ainn_lib.codec import refine
from ainn_lib.measure.datasets import photo
from ainn_lib.paths import ROOT
from ainn_lib.studies import amortization


def test_rows_are_replaced_and_refinement_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("amortization")
    for module in (refine, tool):
        monkeypatch.setattr(module, "STEPS", (0, 2, 12))
    path = tmp_path / "gap.json"
    images = {"cat": photo("chelsea").crop((100, 40, 164, 104))}
    for _ in range(2):
        tool.measure_gap(images, ["tiny"], path)
    rows = json.loads(path.read_text())["rows"]
    assert [row["effort"] for row in rows] == [0, 1, 2]
    assert rows[0]["seconds"] < rows[2]["seconds"] and rows[2]["cost"] <= rows[0]["cost"]
    [(name, efforts)] = amortization.saved(path).items()
    assert name == "tiny" and all(percent >= 0 for [percent] in efforts.values())


def test_the_interval_is_students():
    mean, half = amortization.interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and half == pytest.approx(3.182 * 1.291 / 2, abs=0.05)


def test_more_steps_save_more_on_the_committed_images():
    found = amortization.saved()
    assert {"ablation-all", "ablation-untied", "tiny"} <= set(found)
    for efforts in found.values():
        means = [statistics.fmean(values) for values in efforts.values()]
        assert means == sorted(means) and all(len(values) == 6 for values in efforts.values())
    figure = amortization.gap_figure()
    assert len(figure.axes[0].get_legend().get_texts()) == len(found)
    plt.close(figure)
