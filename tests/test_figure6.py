import pytest
from conftest import shaken

from ainn_lib import AINN, AINNError, codec
from ainn_lib.measure import datasets
from ainn_lib.measure.classical import CODECS
from ainn_lib.measure.evaluate import as_codec
from ainn_lib.measure.metrics import psnr
from ainn_lib.studies import figure6

CHELSEA = datasets.photo("chelsea").crop((100, 40, 196, 104))
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


@pytest.mark.parametrize("name", ["jpeg", "jpeg2000rate", "hevc"])  # rising, falling, falling
def test_the_largest_file_that_fits_by_brute_force(name):
    subject = CODECS[name]
    first, last = int(subject.settings[0]), int(subject.settings[-1])
    settings = range(min(first, last), max(first, last) + 1)
    every = {setting: len(subject.encode(CHELSEA, setting)) for setting in settings}
    ladder = sorted(every.values())
    for limit in (ladder[0], ladder[len(ladder) // 2], ladder[-3], ladder[-1]):
        found = figure6.at_rate(subject, CHELSEA, 8 * limit / (96 * 64))
        assert len(found.data) <= limit and every[int(found.setting)] == len(found.data)
        following = int(found.setting) + (1 if last > first else -1)
        assert every.get(following, 1e9) > limit
        assert found.bpp == pytest.approx(8 * len(found.data) / (96 * 64))
        assert found.psnr == psnr(CHELSEA, subject.decode(found.data))


def test_a_file_fits_into_its_own_rate_though_quotients_are_rounded():
    image, jpeg = CHELSEA.crop((0, 0, 94, 61)), CODECS["jpeg"]
    for size in {len(jpeg.encode(image, quality)) for quality in range(6, 94)}:
        assert len(figure6.at_rate(jpeg, image, 8 * size / 94 / 61).data) == size


def test_ours_comes_within_a_few_bytes_of_the_budget(tiny):
    found = figure6.at_rate(as_codec(tiny, "tiny"), CHELSEA, 0.8)
    assert 0.77 < found.bpp <= 0.8
    assert len(codec.encode(CHELSEA, tiny, found.setting)) == len(found.data)
    assert 16 * figure6.at_rate(CODECS["jpeg2000"], CHELSEA, 1.0).setting % 1 == 0


def test_a_budget_below_the_smallest_file_is_refused():
    with pytest.raises(AINNError, match="no file of 0.01"):
        figure6.at_rate(CODECS["jpeg"], CHELSEA, 0.01)


def test_a_network_with_one_rate_has_one_file():
    model = shaken(AINN.from_preset("tiny", **SMALL, variable_rate=False)).eval()
    model.update(force=True)
    found = figure6.at_rate(as_codec(model, "fixed"), CHELSEA, 0.001)
    assert found.setting == 0.0 and found.bpp > 0.001
