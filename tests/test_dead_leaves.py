import re

import numpy as np
import pytest
from PIL import Image

from ainn_lib import AINNError
from ainn_lib.cli import main
from ainn_lib.measure import datasets
from ainn_lib.training.dead_leaves import dead_leaves, radial_spectrum, write_dead_leaves


@pytest.mark.parametrize("size, seed", [(256, 0), (256, 1), (192, 2)])
def test_dead_leaves_have_the_spectrum_of_photographs(size, seed):
    """Slope -2 ± 0.3, over the frequencies of which a crop of this size has several periods."""
    spectra = [radial_spectrum(dead_leaves(size, [seed, i])) for i in range(8)]
    frequency, power = spectra[0][0], np.mean([p for _, p in spectra], axis=0)
    band = (frequency >= 0.02) & (frequency <= 0.3)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -2.3 <= slope <= -1.7


def test_dead_leaves_follow_from_size_and_seed():
    image = dead_leaves(64, 3)
    assert image.mode == "RGB" and image.size == (64, 64)
    assert image.tobytes() == dead_leaves(64, 3).tobytes() != dead_leaves(64, 4).tobytes()
    pixels = np.asarray(dead_leaves(256, 0), dtype=float).reshape(-1, 3)
    # natural: the channels are alike
    assert np.corrcoef(pixels.T).min() > 0.6 and pixels.std() > 40


def test_write_dead_leaves(tmp_path):
    folder = write_dead_leaves(tmp_path / "leaves", 2, 32, seed=7)
    names = [f"dead_leaves_7_0000{i}.png" for i in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert Image.open(folder / names[1]).tobytes() == dead_leaves(32, [7, 1]).tobytes()


@pytest.mark.parametrize("count, size, seed, words", [
    (0, 32, 0, "at least 1"), (1, 8, 0, "at least 16"), (1, 32, -1, "at least 0")])
def test_what_cannot_be_drawn_leaves_no_folder(tmp_path, count, size, seed, words):
    with pytest.raises(AINNError, match=words):
        write_dead_leaves(tmp_path / "leaves", count, size, seed)
    assert not (tmp_path / "leaves").exists()


def test_dead_leaves_from_the_command_line(tmp_path, capsys):
    there = str(tmp_path / "leaves")
    command = ["data", "dead-leaves", there, "--count", "2", "--size", "32", "--seed", "5"]
    assert main(command) == 0
    assert re.search("2 images", capsys.readouterr().out)
    assert list(datasets.images(there)) == ["dead_leaves_5_00000.png", "dead_leaves_5_00001.png"]


@pytest.mark.parametrize("shape", [(128, 128), (96, 160)])
def test_radial_spectrum_finds_the_slope_of_shaped_noise(shape):
    """White noise shaped to f^-2 in power; 0.15 is five times the spread over seeds."""
    rng = np.random.default_rng(0)
    distance = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    distance[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) / distance).real
    grey = np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)
    f, power = radial_spectrum(np.repeat(grey[..., None], 3, 2))
    assert f[0] == 1 / min(shape) and f[-1] == 0.5 and len(f) == len(power)
    band = (f >= 0.03) & (f <= 0.3)
    assert abs(np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0] + 2) < 0.15


def test_a_grating_is_a_peak_of_the_spectrum():
    waves = 128 + 100 * np.sin(2 * np.pi * 0.25 * np.arange(160))
    f, power = radial_spectrum(np.broadcast_to(waves, (96, 160)).astype(np.uint8))
    assert f[power.argmax()] == pytest.approx(0.25)
