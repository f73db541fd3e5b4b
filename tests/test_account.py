import json

import pytest
from conftest import shaken

from ainn_lib import AINN, codec, load_pretrained
from ainn_lib.measure.datasets import EMBEDDED, photo
from ainn_lib.paths import NOTEBOOKS
from ainn_lib.studies import account

FACTS = json.loads(account.ACCOUNT.read_text(encoding="utf-8"))


def test_the_entries_add_up():
    *entries, whole = FACTS["bpp"].values()
    assert sum(entries) == pytest.approx(whole, abs=1e-5)
    *entries, whole, unrounded = FACTS["dB"].values()
    assert sum(entries) == pytest.approx(whole, abs=1e-5) and unrounded > 0


def test_the_sums_are_those_of_real_files():
    """Of today's weights."""
    model, sizes = load_pretrained("student"), []
    for name in EMBEDDED:
        image = account.center_crop(photo(name), account.SIDE)
        sizes.append(8 * len(codec.encode(image, model, 4)) / (image.width * image.height))
    assert sum(sizes) / 4 == pytest.approx(FACTS["bpp"][account.WHOLE], abs=1e-5)


def test_what_the_notebooks_say_of_it():
    """The prose: PDM is the largest module, and gains three times as much behind CFRM as alone."""
    db, alone = FACTS["dB"], FACTS["alone"]
    assert db["PDM"] > 2 * max(db["CFRM"], db["FDSM-S"])
    assert 2.5 < db["PDM"] / alone["PDM"] < 4
    assert FACTS["bpp"][account.REST] < 0.1 * abs(FACTS["bpp"][account.PREDICTED])


def test_each_entry_has_a_notebook():
    numbers = {path.name.partition("_")[0] for path in NOTEBOOKS.glob("[0-9]*.ipynb")}
    assert set(account.NOTEBOOK.values()) <= numbers
    assert account.entries("06").startswith("PDM: +") and "alone" in account.entries("06")
    assert account.entries("10") == account.entries("00") != account.entries("02")


def test_a_network_without_modules_gains_nothing_by_them(tmp_path):
    sizes = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))
    model = shaken(AINN.from_preset("tiny", **sizes, cfrm=False, pdm="none", fdsm=False)).eval()
    model.update(force=True)
    db = json.loads(account.measure_account(model, tmp_path / "a.json").read_text())["dB"]
    assert db["CFRM"] == db["PDM"] == db["FDSM-S"] == 0
