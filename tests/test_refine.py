"""`effort`: the latent of one image is refined; the file stays an ordinary one."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import AINN, AINNError, codec
from ainn_lib.cli import main
from ainn_lib.codec import coding, refine
from ainn_lib.codec.images import prepare
from ainn_lib.measure import datasets
from ainn_lib.measure.evaluate import as_codec
from ainn_lib.network import coder

PHOTO = datasets.photo("coffee").crop((300, 200, 380, 264))


def cost(image: Image.Image, model: AINN, data: bytes, quality: float) -> float:
    """R + λD of a whole file, from its bytes and its decoded picture."""
    decoded = np.asarray(codec.decode(data, model).convert("RGB"), float)
    error = np.square(decoded - np.asarray(image.convert("RGB"), float)).mean()
    bpp = 8 * len(data) / (image.width * image.height)
    return bpp + refine.trade_off(model, quality) * error


@pytest.mark.parametrize("quality", [2, 6])
def test_a_refined_file_costs_less_and_decodes_as_any_other(tiny, quality):
    plain = codec.encode(PHOTO, tiny, quality)
    assert codec.encode(PHOTO, tiny, quality, effort=0) == plain
    refined = codec.encode(PHOTO, tiny, quality, effort=1)
    assert codec.encode(PHOTO, tiny, quality, effort=1) == refined  # nothing is left to chance
    assert cost(PHOTO, tiny, refined, quality) < 0.99 * cost(PHOTO, tiny, plain, quality)
    about, before = codec.info(refined), codec.info(plain)
    assert (about.quality, about.fingerprint) == (before.quality, before.fingerprint)
    own = codec.reconstruct(PHOTO, tiny, quality, effort=1)
    assert codec.decode(refined, tiny).tobytes() == own.tobytes()


def test_more_steps_gain_more(tiny):
    small = PHOTO.crop((0, 0, 32, 32))
    costs = [cost(small, tiny, codec.encode(small, tiny, 4, effort), 4) for effort in range(3)]
    assert costs[2] < costs[1] < costs[0]


def test_a_refinement_that_costs_more_is_not_taken(tiny, monkeypatch):
    monkeypatch.setattr(coding, "refine", lambda model, x, y, quality, temperatures: 2 * y)
    assert codec.encode(PHOTO, tiny, 4, effort=1) == codec.encode(PHOTO, tiny, 4)


def test_grey_and_alpha_come_back(tiny, monkeypatch):
    monkeypatch.setattr(refine, "STEPS", (0, 3))
    alpha = Image.linear_gradient("L").resize(PHOTO.size)
    image = PHOTO.convert("L")
    image.putalpha(alpha)
    decoded = codec.decode(codec.encode(image, tiny, 4, effort=1), tiny)
    assert decoded.mode == "LA" and decoded.getchannel("A").tobytes() == alpha.tobytes()


@pytest.mark.parametrize("effort", [-1, 4, 1.5, "2", True, None])
def test_another_effort_is_refused(tiny, effort):
    with pytest.raises(AINNError, match="effort must be 0, 1, 2 or 3"):
        codec.encode(PHOTO, tiny, 4, effort=effort)
    with pytest.raises(AINNError, match="effort must be 0, 1, 2 or 3"):
        codec.encode_to_bpp(PHOTO, tiny, 0.5, effort=effort)


def test_a_fixed_rate_network_and_training_mode(monkeypatch):
    monkeypatch.setattr(refine, "STEPS", (0, 3))
    model = AINN.from_preset("tiny", variable_rate=False, lambdas=(0.01, 0.01)).train()
    assert refine.trade_off(model, None) == pytest.approx(0.01)
    data = codec.encode(PHOTO, model, effort=1)
    assert codec.decode(data, model).size == PHOTO.size
    assert model.training and all(p.grad is None for p in model.parameters())


def test_tiles_cover_the_latent_and_hardly_change_the_gain(tiny, monkeypatch):
    seen = []

    def mark(model, x, y, quality, temperatures, noise, bar):
        assert x.shape[2:] == (16 * y.shape[2], 16 * y.shape[3])
        seen.append(y.shape[2:])
        return y + 1

    monkeypatch.setattr(refine, "WHOLE", 4)
    monkeypatch.setattr(refine, "TILE", 2)
    monkeypatch.setattr(refine, "MARGIN", 1)
    whole = codec.encode(PHOTO, tiny, 4, effort=1)
    prepared = prepare(PHOTO)
    y = coding.analyse(prepared, tiny)
    x = coding.to_tensor(prepared.rgb)
    with monkeypatch.context() as patch:
        patch.setattr(refine, "_refine_tile", mark)
        assert torch.equal(refine.refine(tiny, x, y, 4.0, [0.1]), y + 1)
    assert len(seen) == 6 and max(seen) == (3, 4)  # 4 x 5 positions
    monkeypatch.undo()
    plain = cost(PHOTO, tiny, codec.encode(PHOTO, tiny, 4), 4)
    assert cost(PHOTO, tiny, whole, 4) < 0.99 * plain


def test_a_soft_choice_becomes_rounding():
    value = torch.linspace(-3, 3, 6001)
    generator = torch.Generator().manual_seed(0)
    cold = refine._soft_round(value, 0.02, generator)
    clear = (value - torch.floor(value) - 0.5).abs() > 0.2
    torch.testing.assert_close(cold[clear], torch.round(value)[clear], atol=1e-3, rtol=0)
    hot = refine._soft_round(torch.full((20_000,), 0.3), 0.5, generator)
    # P(up) of the softmax with logits -artanh(f)/τ and -artanh(1 - f)/τ, f = 0.3: 0.2468
    assert (hot > 0.5).double().mean() == pytest.approx(0.2468, abs=0.01)


def test_aiming_at_a_size_with_effort(tiny, monkeypatch):
    monkeypatch.setattr(refine, "STEPS", (0, 30))
    for bpp in (0.5, 1.0):
        data = codec.encode_to_bpp(PHOTO, tiny, bpp, effort=1)
        about = codec.info(data)
        plain = codec.encode_to_bpp(PHOTO, tiny, bpp)
        assert 0.9 * bpp < about.bpp <= bpp
        assert cost(PHOTO, tiny, data, about.quality) <= cost(PHOTO, tiny, plain, about.quality)


def test_the_command_and_the_evaluation_take_an_effort(tiny, tmp_path, capsys):
    PHOTO.save(tmp_path / "photo.png")
    arguments = ["encode", str(tmp_path / "photo.png"), str(tmp_path / "photo.ainn")]
    assert main([*arguments, "--effort", "1"]) == 0
    data = (tmp_path / "photo.ainn").read_bytes()
    assert data == codec.encode(PHOTO, tiny, effort=1)
    assert main([*arguments, "--effort", "7"]) == 2
    assert "effort must be 0, 1, 2 or 3" in capsys.readouterr().err
    assert (tmp_path / "photo.ainn").read_bytes() == data
    subject = as_codec(tiny, "tiny", 1)
    assert (subject.name, subject.title) == ("tiny-effort1", "A-INN tiny, effort 1")
    assert subject.note.endswith("effort 1") and subject.encode(PHOTO, 4.0) == data


@pytest.mark.slow
def test_twelve_megapixels_fit_into_three_gigabytes():
    program = """
from ainn_lib import codec, load_pretrained
from ainn_lib.studies.benchmark import peak_mib
from ainn_lib.codec import refine
from ainn_lib.measure import datasets
refine.STEPS = (0, 2)
tiles = refine.windows
refine.windows = lambda *arguments: tiles(*arguments)[1:2]  # one of 88: each needs as much memory
image = datasets.photo("coffee").resize((4000, 3000))
data = codec.encode(image, load_pretrained("tiny"), 3, effort=1)
assert codec.info(data).width == 4000
print(peak_mib())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 3e9 / 2**20


def test_the_rate_that_is_minimized_is_the_rate_of_the_file(tiny):
    prepared = prepare(PHOTO)
    y = coding.analyse(prepared, tiny)
    gain, _, bias = tiny.gains(4.0)
    with torch.no_grad():
        hyper, means = refine._means(tiny, y * gain, bias, None)
        chosen = torch.round(y * gain - means) + means
        scales, mu = tiny.gaussian_parameters(hyper, tiny.context_prediction(chosen), bias)
        bits = refine._bits(tiny, chosen, scales, mu).item()
    coded = coder.encode_latent(tiny, y, 4.0)
    assert bits == pytest.approx(coded.y_bits.sum().item(), rel=0.03)
