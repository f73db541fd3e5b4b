"""The committed files of effort 3: they are those of `student`, and worth their time."""

import statistics

import pytest
from PIL import Image

from ainn_lib import codec, load_pretrained
from ainn_lib.codec.weights import fingerprint
from ainn_lib.measure.bd_rate import bd_rate
from ainn_lib.measure.curves import measured
from ainn_lib.measure.datasets import EMBEDDED, photo
from ainn_lib.measure.metrics import psnr
from ainn_lib.paths import REFINED, RESULTS, ROOT
from ainn_lib.ui.compare_page import QUALITIES, refined_name


@pytest.fixture(scope="module")
def curves():
    return {(curve.dataset, curve.codec): curve for curve in measured(RESULTS / "effort")}


def stored(key: str, quality: int) -> bytes:
    return (REFINED / refined_name(key, quality)).read_bytes()


def test_every_file_is_of_the_weights_that_stand_here():
    wanted = fingerprint(load_pretrained("student"))
    found = {codec.info(stored(key, quality)).fingerprint
             for key in EMBEDDED for quality in QUALITIES}
    assert found == {wanted}


def test_a_file_is_smaller_and_better_than_that_of_effort_0():
    image, model = photo("rocket"), load_pretrained("student")
    plain, refined = codec.encode(image, model, 1), stored("rocket", 1)
    before, after = (codec.decode(data, model) for data in (plain, refined))
    assert isinstance(after, Image.Image) and after.size == image.size
    assert len(refined) < 0.9 * len(plain) and psnr(image, after) > psnr(image, before)


def test_the_curves_are_those_of_the_files(curves):
    for key in EMBEDDED:
        image, refined = photo(key), curves[key, "student-effort3"]
        rates = [8 * len(stored(key, q)) / (image.width * image.height) for q in QUALITIES]
        assert list(refined.bpp) == [round(rate, 6) for rate in rates]
        assert bd_rate(curves[key, "student"], refined).percent < -9


def test_the_readme_says_what_efforts_3_and_2_save(curves):
    saved = statistics.fmean(bd_rate(curves[key, "student"], curves[key, "student-effort3"]).percent
                             for key in EMBEDDED)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"another {-saved:.1f} % of the bits" in readme
    at_two = bd_rate(curves["six", "tiny"], curves["six", "tiny-effort2"]).percent
    assert f"`tiny` saves {-at_two:.1f} % on six Kodak photos" in readme
