import numpy as np
import pytest
import torch

from ainn_lib import AINN, AINNError, codec
from ainn_lib.codec.images import to_pixels
from ainn_lib.measure import datasets
from ainn_lib.measure.evaluate import without
from ainn_lib.measure.metrics import psnr
from ainn_lib.studies import activations
from ainn_lib.theory.error_budget import error_budget

CHELSEA = datasets.photo("chelsea").crop((100, 40, 164, 88))  # 64x48
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def maps(tiny):
    return activations.frequency_maps(tiny, CHELSEA, 4.0)


@pytest.fixture(scope="module")
def start(tiny):
    return activations.coded(tiny, CHELSEA, 4.0)


# -- small functions against brute force


def test_the_bands_of_an_error_add_up_and_a_wave_lies_in_its_band():
    error = randn(1, 3, 12, 20)
    frequency, parts = activations.band_errors(error, bands=5)
    assert parts.sum() == pytest.approx(error.square().mean().item(), rel=1e-12)
    assert len(frequency) == 5
    wave = torch.cos(2 * torch.pi * 5 / 16 * torch.arange(16.0)).expand(1, 1, 16, 16)
    frequency, parts = activations.band_errors(wave, bands=8)
    assert parts[5] == pytest.approx(0.5, rel=1e-6)
    assert frequency[5] == 11 / 32  # 5/16 opens the ring from 5/16 to 6/16


def test_a_low_pass_keeps_what_lies_below_the_cut():
    x = torch.arange(16.0, dtype=torch.float64)
    slow, fast = (torch.cos(2 * torch.pi * f / 16 * x).expand(1, 1, 16, 16) for f in (2, 6))
    torch.testing.assert_close(activations.low_pass(slow + fast, 0.25), slow)
    torch.testing.assert_close(activations.low_pass(slow + fast, 0.75), slow + fast)


def test_sides_must_be_multiples_of_16(tiny):
    with pytest.raises(AINNError, match="60x48"):
        activations.coded(tiny, CHELSEA.crop((0, 0, 60, 48)))


def test_what_a_comparison_starts_from(tiny):
    start, x = activations.coded(tiny, CHELSEA, 2.5), activations.as_tensor(CHELSEA, tiny)
    gain, inverse_gain, _ = tiny.gains(2.5)
    unrounded = tiny.g_a(x) * gain * inverse_gain
    torch.testing.assert_close((start.x, start.unrounded, start.step), (x, unrounded, inverse_gain))
    assert start.bytes == len(codec.encode(CHELSEA, tiny, 2.5))
    assert start.bpp == 8 * start.bytes / (64 * 48)
    steps = (start.y_hat - start.unrounded).abs() / start.step
    assert steps.max() < 0.5 + 2**-10  # a grid of 2^-12 lies between


# -- FDSM


def test_frequency_maps_are_the_codecs_own(tiny, maps):
    stream = codec.encode(CHELSEA, tiny, 4.0)
    assert maps.bytes == len(stream) and maps.bpp == 8 * len(stream) / (64 * 48)
    # the file's picture, but for a rounding here and there
    decoded = codec.decode(stream, tiny)
    assert maps.psnr() == pytest.approx(psnr(CHELSEA, decoded), abs=1e-3)
    low, high = (v + tiny.config.input_offset for v in tiny.g_a.fdsm_d(maps.x))
    torch.testing.assert_close((maps.low, maps.high), (low, high))
    joined = maps.mask * maps.low_hat + (1 - maps.mask) * maps.high_hat
    torch.testing.assert_close(maps.joined(), joined)


def test_without_fdsm_there_are_no_maps(tiny):
    with pytest.raises(AINNError, match="no FDSM"):
        activations.frequency_maps(AINN.from_preset("tiny", **SMALL, fdsm=False), CHELSEA)
    mean = activations.frequency_maps(without(tiny, "FDSM-S"), CHELSEA)
    assert (mean.mask == 0.5).all() and mean.psnr() == mean.psnr(0.5)


# -- PDM


def test_decoding_in_steps_is_decoding(tiny, start):
    seen, x_hat = activations.decode(tiny, start.y_hat)
    torch.testing.assert_close(x_hat, tiny.g_s(start.y_hat))
    assert tuple(seen) == tiny.g_s.names
    seen, _ = activations.decode(tiny, start.y_hat, (1, 0, 1))
    before, after = seen["pdm3"]  # at strength 0 and without the authors' skip nothing happens
    torch.testing.assert_close(before, after)
    assert not torch.equal(seen["pdm2"][0][0], seen["pdm2"][1][0])


def test_the_encoders_activations_are_what_exact_inversion_gives(tiny, start):
    true, maps = start.entering, tiny.g_a.run((start.x,), stop="squeeze")
    for number in (4, 3, 2):
        maps = tiny.levels[number - 1].inverse(*maps)
        torch.testing.assert_close(maps, true[number], rtol=1e-4, atol=1e-4)
        error = activations.denoising(tiny, start).levels[4 - number]
        torch.testing.assert_close(error.reference, torch.cat(true[number], dim=1))


def test_rho_and_its_gain_against_a_search():
    true, noise, rest = ([randn(1, 2, 3, 3, seed=s + b) for b in range(2)] for s in (0, 10, 20))
    arrived = [v + 0.3 * w for v, w in zip(true, noise, strict=True)]
    cleaned = [1.7 * v + 0.2 * w for v, w in zip(true, rest, strict=True)]
    error = activations.level_error(3, true, arrived, cleaned)
    v, before, after = (torch.cat(maps, dim=1) for maps in (true, arrived, cleaned))
    least = min((after / gain - v).norm().item() for gain in np.linspace(1, 3, 4001))
    assert error.rho == pytest.approx(1 - least / (before - v).norm().item(), abs=1e-5)
    assert error.gain == pytest.approx(1.7, rel=0.1)
    alone = min((before / gain - v).norm().item() for gain in np.linspace(0.5, 2, 4001))
    assert error.rho_of_gain == pytest.approx(1 - alone / (before - v).norm().item(), abs=1e-5)
    scaled = [5 * m for m in true]
    assert activations.level_error(3, true, arrived, scaled).rho == pytest.approx(1)
    torch.testing.assert_close(error.after, after / error.gain - v)
    torch.testing.assert_close(error.map(), (before - v)[0].square().mean(0).sqrt())
    torch.testing.assert_close(error.map("after"), error.after[0].square().mean(0).sqrt())
    assert error.size() == pytest.approx(((before - v).norm() / v.norm()).item())


def test_rho_agrees_with_the_error_budget(tiny, start):
    rows = error_budget(tiny, start.x, 4.0).rows
    budget = [row.rho for row in rows if row.rho is not None]
    # both in float32, where ρ is a small difference of two large norms
    levels = activations.denoising(tiny, start).levels
    assert [error.rho for error in levels] == pytest.approx(budget, abs=1e-4)


def test_the_references_are_what_they_are_called(tiny, start):
    silent = activations.denoising(tiny, start, "unquantized", delta=0.0)
    assert all(e.before.abs().max() < 1e-6 for e in silent.levels)
    # the reference is decoded with the same strengths
    bent = activations.denoising(tiny, start, "unquantized", (0.5, 0.0, 2.0), delta=0.0)
    assert all(e.before.abs().max() < 1e-6 for e in bent.levels) and bent.psnr != silent.psnr
    small, large = (activations.denoising(tiny, start, "unquantized", delta=d).levels[0]
                    for d in (0.25, 2.0))
    assert 4 < large.size() / small.size() < 16  # eight times the noise, nearly linear


def test_white_noise_is_measured_as_such():
    true = [randn(1, 8, 32, 32, seed=seed) for seed in range(2)]
    noisy = [v + 0.3 * randn(1, 8, 32, 32, seed=9 + i) for i, v in enumerate(true)]
    error = activations.level_error(2, true, noisy, true)
    assert error.size() == pytest.approx(0.3, rel=0.1) and error.rho == pytest.approx(1)
    assert error.rho_of_gain == pytest.approx(1 - 1.09**-0.5, abs=0.02)


def test_what_denoising_cannot_measure(start):
    for changes in ({"pdm": "none"}, {"tied": False}):
        with pytest.raises(AINNError, match="no PDM behind the inverse"):
            activations.denoising(AINN.from_preset("tiny", **SMALL, **changes), start)


def test_noise_in_place_of_rounding_is_uniform_in_trained_steps(tiny, start, monkeypatch):
    decoded, decode = [], activations.decode

    def watched(model, y_hat, *rest):
        decoded.append(y_hat)
        return decode(model, y_hat, *rest)

    monkeypatch.setattr(activations, "decode", watched)
    activations.denoising(tiny, start, delta=3.0)
    noise = (decoded[0] - start.unrounded) / start.step / 3
    assert noise.abs().max() <= 0.5 + 1e-3
    assert noise.mean().abs() < 0.02  # 2,304 values of deviation 0.29
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_panels_show_pictures_and_maps():
    picture, error, other = randn(1, 3, 8, 8).sigmoid(), randn(8, 8).abs(), randn(8, 8)
    named = {"p": picture, "e": error, "o": other, **{str(i): picture for i in range(5)}}
    axes = activations.panels(named, {"e": 2.0}).axes[:8]
    assert [ax.get_title() for ax in axes] == list(named)
    shown = [ax.get_images()[0] for ax in axes[:3]]
    assert (shown[0].get_array() == to_pixels(picture)).all()
    assert (shown[1].get_array() == error.numpy()).all() and shown[1].get_clim() == (0, 2)
    assert shown[2].get_clim() == (other.min(), other.max())
