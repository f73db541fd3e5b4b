import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import AINN, AINNError, codec, data, inside, theory
from ainn_lib.metrics import psnr
from ainn_lib.widgets import at_cut, at_mask, at_strength, at_wipe

CHELSEA = data.photo("chelsea").crop((100, 40, 164, 88))  # 64x48
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def maps(tiny):
    return inside.frequency_maps(tiny, CHELSEA, 4.0)


@pytest.fixture(scope="module")
def start(tiny):
    return inside.coded(tiny, CHELSEA, 4.0)


# -- small functions against brute force ---------------------------------------------------------------------------------

def test_a_picture_is_clipped_and_rounded_as_a_file_is():
    v = torch.tensor([[[[-0.1, 0.5]], [[0.0, 1.2]], [[1 / 255, 0.4]]]])
    assert inside.picture(v).tolist() == [[[0, 0, 1], [128, 255, 102]]]


def test_the_bands_of_an_error_add_up_and_a_wave_lies_in_its_band():
    error = randn(1, 3, 12, 20)
    frequency, parts = inside.band_errors(error, bands=5)
    assert parts.sum() == pytest.approx(error.square().mean().item(), rel=1e-12) and len(frequency) == 5
    wave = torch.cos(2 * torch.pi * 5 / 16 * torch.arange(16.0)).expand(1, 1, 16, 16)
    frequency, parts = inside.band_errors(wave, bands=8)
    assert parts[5] == pytest.approx(0.5, rel=1e-6) and frequency[5] == 11 / 32  # 5/16 opens the ring 5/16 to 6/16


def test_a_low_pass_keeps_what_lies_below_the_cut():
    x = torch.arange(16.0, dtype=torch.float64)
    slow, fast = (torch.cos(2 * torch.pi * f * x).expand(1, 1, 16, 16) for f in (2 / 16, 6 / 16))
    torch.testing.assert_close(inside.low_pass(slow + fast, 0.25), slow)
    torch.testing.assert_close(inside.low_pass(slow + fast, 0.75), slow + fast)


def test_local_energy_against_a_loop_over_the_window():
    x = randn(1, 2, 9, 9)
    padded = np.pad(x[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    detail = np.array([[x[0, :, i, j].numpy() - padded[:, i:i + 3, j:j + 3].mean((1, 2)) for j in range(9)] for i in range(9)])
    squares = np.pad((detail**2).mean(-1), 1, mode="reflect")
    expected = [[squares[i:i + 3, j:j + 3].mean() for j in range(9)] for i in range(9)]
    np.testing.assert_allclose(inside.local_energy(x, 3)[0, 0].numpy(), expected)


def test_sides_must_be_multiples_of_16(tiny):
    with pytest.raises(AINNError, match="60x48"):
        inside.coded(tiny, CHELSEA.crop((0, 0, 60, 48)))


def test_what_a_comparison_starts_from(tiny):
    start, x = inside.coded(tiny, CHELSEA, 2.5), inside.as_tensor(CHELSEA, tiny)
    gain, inverse_gain, _ = tiny.gains(2.5)
    torch.testing.assert_close((start.x, start.unrounded, start.step), (x, tiny.g_a(x) * gain * inverse_gain, inverse_gain))
    assert start.bytes == len(codec.encode(CHELSEA, tiny, 2.5)) and start.bpp == 8 * start.bytes / (64 * 48)
    assert ((start.y_hat - start.unrounded).abs() / start.step).max() < 0.5 + 2**-10  # a grid of 2^-12 lies between


# -- FDSM ----------------------------------------------------------------------------------------------------------------

def test_frequency_maps_are_the_codecs_own(tiny, maps):
    stream = codec.encode(CHELSEA, tiny, 4.0)
    assert maps.bytes == len(stream) and maps.bpp == 8 * len(stream) / (64 * 48)
    # the picture joined from the maps is the one that the file decodes to, but for a rounding here and there
    assert maps.psnr() == pytest.approx(psnr(CHELSEA, codec.decode(stream, tiny)), abs=1e-3)
    low, high = tiny.fdsm_d(maps.x - tiny.config.input_offset)
    torch.testing.assert_close((maps.low, maps.high), (low + tiny.config.input_offset, high + tiny.config.input_offset))
    torch.testing.assert_close(maps.joined(), maps.mask * maps.low_hat + (1 - maps.mask) * maps.high_hat)


def test_the_best_constant_mask_is_the_best(maps):
    def error(m):
        return (maps.joined(m) - maps.x).square().mean().item()

    assert error(maps.best_mask) <= min(error(maps.best_mask + d) for d in (-0.2, -0.02, 0.02, 0.2))


def test_the_correlation_has_the_sign_of_what_it_compares(maps):
    rank = torch.log10(maps.energy + 1e-6)
    assert dataclasses.replace(maps, mask=rank).correlation == pytest.approx(1)
    assert dataclasses.replace(maps, mask=-rank).correlation == pytest.approx(-1)


def test_without_fdsm_there_are_no_maps():
    with pytest.raises(AINNError, match="no FDSM"):
        inside.frequency_maps(AINN.from_preset("tiny", **SMALL, fdsm=False).eval(), CHELSEA)


# -- PDM -----------------------------------------------------------------------------------------------------------------

def test_decoding_in_steps_is_decoding(tiny, start):
    seen, x_hat = inside.decode(tiny, start.y_hat)
    torch.testing.assert_close(x_hat, tiny.g_s(start.y_hat))
    assert [name for name in seen if name.startswith("PDM")] == ["PDM 4", "PDM 3", "PDM 2"]
    seen, _ = inside.decode(tiny, start.y_hat, (1, 0, 1))
    arrived, left = seen["PDM 3"]  # at strength 0 and without the authors' skip nothing happens
    torch.testing.assert_close(left, arrived)
    assert not torch.equal(seen["PDM 2"][0][0], seen["PDM 2"][1][0])


def test_the_encoders_activations_are_what_exact_inversion_gives(tiny):
    x = inside.as_tensor(CHELSEA, tiny)
    true, maps = inside.activations(tiny, x), tiny.split(x)
    for level in tiny.levels:
        maps = level(*maps)
    for number in (4, 3, 2):
        maps = tiny.inverse_level(number).inverse(*maps)
        torch.testing.assert_close(maps, true[number], rtol=1e-4, atol=1e-4)  # float32 there and back


def test_rho_and_its_gain_against_a_search():
    true, arrived, left = (tuple(randn(1, 2, 3, 3, seed=s + b) for b in range(2)) for s in (0, 10, 20))
    arrived = tuple(v + 0.3 * w for v, w in zip(true, arrived, strict=True))
    left = tuple(1.7 * v + 0.2 * w for v, w in zip(true, left, strict=True))
    error = inside.level_error(3, true, arrived, left)
    v, before, after = (torch.cat(m, dim=1) for m in (true, arrived, left))
    least = min((after / gain - v).norm().item() for gain in np.linspace(1, 3, 4001))
    assert error.rho == pytest.approx(1 - least / (before - v).norm().item(), abs=1e-5)
    assert error.gain == pytest.approx(1.7, rel=0.1)
    alone = min((before / gain - v).norm().item() for gain in np.linspace(0.5, 2, 4001))
    assert error.rho_of_gain == pytest.approx(1 - alone / (before - v).norm().item(), abs=1e-5)
    assert inside.level_error(3, true, arrived, arrived).rho == pytest.approx(error.rho_of_gain)
    assert inside.level_error(3, true, arrived, tuple(5 * m for m in true)).rho == pytest.approx(1)
    torch.testing.assert_close(error.map(), (before - v)[0].square().mean(0).sqrt())
    torch.testing.assert_close(error.map("after"), error.after[0].square().mean(0).sqrt())
    assert error.size() == pytest.approx(((before - v).norm() / v.norm()).item())


def test_rho_agrees_with_the_error_budget(tiny, start):
    budget = [s.rho for s in theory.error_budget(tiny, start.x, 4.0).stages if s.rho is not None]
    # both in float32, where ρ is a small difference of two large norms
    assert [e.rho for e in inside.denoising(tiny, start).levels] == pytest.approx(budget, abs=1e-4)


def test_the_references_and_noises_are_what_they_are_called(tiny, start):
    silent = inside.denoising(tiny, start, "unquantized", delta=0.0)
    assert all(e.before.abs().max() < 1e-6 for e in silent.levels)
    bent = inside.denoising(tiny, start, "unquantized", (0.5, 0.0, 2.0), delta=0.0)  # the reference is decoded with the same
    assert all(e.before.abs().max() < 1e-6 for e in bent.levels) and bent.psnr != silent.psnr
    small, large = (inside.denoising(tiny, start, "unquantized", delta=d).levels[0] for d in (0.25, 2.0))
    assert 4 < large.size() / small.size() < 16  # eight times the noise, nearly linear
    for error in inside.gaussian_denoising(tiny, CHELSEA, 0.3):
        assert error.size() == pytest.approx(0.3, rel=0.1)
        assert error.rho_of_gain == pytest.approx(1 - 1.09**-0.5, abs=0.02)
    with pytest.raises(AINNError, match="reference"):
        inside.denoising(tiny, start, "decoder")
    with pytest.raises(AINNError, match="size"):
        inside.gaussian_denoising(tiny, CHELSEA, 0)
    with pytest.raises(AINNError, match="no PDM"):
        inside.gaussian_denoising(AINN.from_preset("tiny", **SMALL, pdm="none"), CHELSEA, 1)
    with pytest.raises(AINNError, match="no PDM behind the inverse"):
        inside.denoising(AINN.from_preset("tiny", **SMALL, tied=False), start)


def test_noise_in_place_of_rounding_is_uniform_in_trained_steps(tiny, start, monkeypatch):
    decoded, decode = [], inside.decode
    monkeypatch.setattr(inside, "decode", lambda model, y_hat, *rest: decoded.append(y_hat) or decode(model, y_hat, *rest))
    inside.denoising(tiny, start, delta=3.0)
    noise = (decoded[0] - start.unrounded) / start.step / 3
    assert noise.abs().max() <= 0.5 + 1e-3 and noise.mean().abs() < 0.02  # 2,304 values of deviation 0.29
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.05)


# -- explorers over their whole range, figures -----------------------------------------------------------------------------

def test_the_mask_explorer(maps):
    for value in np.linspace(0, 1, 5):
        figure, numbers = at_mask(maps, float(value))
        plt.close(figure)
        assert numbers.psnr == maps.psnr(float(value)) and numbers.bpp == maps.bpp and f"{numbers.psnr:.2f}" in str(numbers)
    with pytest.raises(AINNError, match="mask"):
        at_mask(maps, 1.1)


def test_the_frequency_explorer(maps):
    shares = []
    for cut in np.linspace(0, 0.5, 6):
        figure, numbers = at_cut(maps, float(cut))
        plt.close(figure)
        shares.append((numbers.energy, numbers.error))
        assert f"{cut:.3f}" in str(numbers)
    energy, error = zip(*shares, strict=True)
    assert energy[0] == pytest.approx(1, abs=1e-4) and list(energy) == sorted(energy, reverse=True)
    assert list(error) == sorted(error, reverse=True) and error[0] <= 1
    with pytest.raises(AINNError, match="cut"):
        at_cut(maps, 0.6)


def test_the_strength_explorer(tiny, start):
    trained = inside.denoising(tiny, start)
    for strengths in ((0, 0, 0), (1, 1, 1), (2, 2, 2), (1, 0.5, 2)):
        figure, numbers = at_strength(tiny, start, *strengths)
        plt.close(figure)
        result = inside.denoising(tiny, start, strengths=strengths)
        assert numbers.psnr == result.psnr and numbers.trained == trained.psnr and numbers.bpp == start.bpp
        assert numbers.rho == tuple(e.rho for e in result.levels) and r"$\rho_4$" in str(numbers)
    assert at_strength(tiny, start, 0, 0, 0)[1].psnr != trained.psnr
    plt.close("all")
    with pytest.raises(AINNError, match="strengths"):
        at_strength(tiny, start, 1, 1, 3)


def test_the_wipe_explorer():
    after = Image.new("RGB", CHELSEA.size)
    for position in (0, 0.3, 1):
        for zoom in (1, 2, 4, 8):
            figure, numbers = at_wipe(CHELSEA, after, 384, position, zoom)
            shown = np.asarray(figure.axes[0].get_images()[0].get_array())
            plt.close(figure)
            assert numbers.bpp == 1 and numbers.psnr == psnr(CHELSEA, after)
            assert shown.shape[:2] == (48 // zoom, 64 // zoom)
            assert not shown.any() if position == 0 else shown[:, 0].any()  # black is the decoded side
    with pytest.raises(AINNError, match="zoom"):
        at_wipe(CHELSEA, after, 384, 0.5, 3)


def shown(figure) -> dict[str, np.ndarray]:
    """First line of a panel's title -> its picture."""
    plt.close(figure)
    return {ax.get_title().split("\n")[0]: np.asarray(ax.get_images()[0].get_array()) for ax in figure.axes if ax.get_images()}


def test_the_pdm_figure_shows_what_it_is_given(tiny, start):
    result = inside.denoising(tiny, start)
    figure = inside.pdm_figure(result)
    titles = " ".join(ax.get_title() for ax in figure.axes)
    assert all(f"{e.rho:+.3f}" in titles for e in result.levels)
    assert [ax.get_title()[:6] for ax in figure.axes[1:8]] == ["before"] * 3 + ["decode"] + ["after "] * 3  # row by row
    panels = shown(figure)
    assert (panels["original"] == inside.picture(start.x)).all()
    assert (panels[f"decoded, {result.psnr:.2f} dB"] == inside.picture(result.x_hat)).all()
    for e in result.levels:
        for which in ("before", "after"):
            assert (panels[f"{which} PDM {e.level}: {100 * e.size(which):.1f} %"] == e.map(which).numpy()).all()


def test_the_fdsm_figure_shows_what_it_is_given(maps):
    panels = shown(inside.fdsm_figure(maps))
    expected = {"$x$": maps.x, "10 ($x_L - x$)": 0.5 + 10 * (maps.low - maps.x),
                "10 ($x_H - x$)": 0.5 + 10 * (maps.high - maps.x),
                f"$\\hat x$, {maps.psnr():.2f} dB": maps.joined(), "$\\hat x_L$": maps.low_hat, "$\\hat x_H$": maps.high_hat}
    for title, values in expected.items():
        assert (panels[title] == inside.picture(values)).all(), title
    assert (panels["$m$"] == maps.mask[0, 0].numpy()).all()
    np.testing.assert_allclose(panels["local energy, log$_{10}$"], np.log10(maps.energy[0, 0].numpy() + 1e-6), rtol=1e-4)
