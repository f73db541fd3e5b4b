import importlib
import json

import numpy as np
import pytest
import torch
from conftest import shaken
from PIL import Image

from ainn_lib import AINN, AINNError
from ainn_lib.codec.images import to_pixels
from ainn_lib.codec.weights import fingerprint
from ainn_lib.measure import datasets
from ainn_lib.measure.metrics import psnr
from ainn_lib.paths import ROOT
from ainn_lib.studies import recovery
from ainn_lib.studies.activations import as_tensor, coded, denoising
from ainn_lib.training.dead_leaves import dead_leaves

CHELSEA = datasets.photo("chelsea").crop((100, 40, 164, 88))  # 64x48
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def samples(count, k):
    """Pairs of random u and y, and their least-squares problem: rows (patch, 1) -> targets."""
    side = (8, 9)
    pairs = [(randn(1, 1536, *side, seed=s), randn(1, 2, *side, seed=100 + s))
             for s in range(count)]
    rows = []
    for _, y in pairs:
        padded = torch.nn.functional.pad(y, (k // 2,) * 4)
        for i, j in np.ndindex(*side):
            patch = padded[0, :, i:i + k, j:j + k].flatten()
            rows.append(torch.cat([patch, torch.ones(1)]))
    return pairs, torch.stack(rows), torch.cat([u[0].flatten(1).T for u, _ in pairs])


@pytest.mark.parametrize("k", [1, 3])
def test_the_linear_recovery_against_lstsq(k):
    pairs, rows, target = samples(2, k)
    solution = torch.linalg.lstsq(rows, target).solution
    sums = recovery.moments(pairs, k)
    found = recovery.linear_recovery(sums, ridge=0)
    weight = found.weight.flatten(1).double()  # kept in float32
    torch.testing.assert_close(weight, solution[:-1].T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.bias.double(), solution[-1], rtol=1e-4, atol=1e-6)
    expected = (rows @ solution)[:72].T.reshape(1, 1536, 8, 9)
    recovered = torch.cat(found(pairs[0][1]), dim=1)
    torch.testing.assert_close(recovered, expected, rtol=1e-4, atol=1e-6)
    assert sums.gram[-1, -1] == 144
    left = (target - rows @ solution).square().sum().item()
    assert sums.error(sums.solve(0)) == pytest.approx(left, rel=1e-9)


def test_a_large_ridge_is_the_plain_copy():
    u, y = randn(1, 1536, 5, 5), randn(1, 4, 5, 5, seed=1)
    u = u - u.mean((2, 3), keepdim=True)
    y = y - y.mean((2, 3), keepdim=True)
    found = recovery.linear_recovery(recovery.moments([(u, y)]), ridge=1e9)
    torch.testing.assert_close(found(y), recovery.plain_copy(y), atol=1e-6, rtol=0)


def test_cross_validation_against_fits_that_leave_a_photo_out():
    pairs, rows, target = samples(3, 3)
    copies = [torch.cat(recovery.plain_copy(y), dim=1)[0].flatten(1).T for _, y in pairs]
    missing = target - torch.cat(copies)
    folds = [recovery.moments([pair], 3) for pair in pairs]
    found = recovery.cross_validation(folds, (1e-3, 0.5))
    free = torch.diag(torch.tensor([1.0] * 18 + [0.0]))
    for ridge, value in found.items():
        wrong = 0.0
        for i in range(3):
            out = torch.zeros(216, dtype=bool)
            out[72 * i: 72 * (i + 1)] = True
            kept = rows[~out]
            damping = ridge * (kept.T @ kept).diagonal()[:-1].mean() * free
            added = torch.linalg.solve(kept.T @ kept + damping, kept.T @ missing[~out])
            wrong += (missing[out] - rows[out] @ added).square().sum().item()
        assert value == pytest.approx(wrong / missing.square().sum().item(), rel=1e-6)


def test_sums_add_and_subtract():
    pairs, *_ = samples(3, 1)
    parts = [recovery.moments([pair]) for pair in pairs]
    rest = sum(parts[1:], parts[0]) - parts[1]
    expected = recovery.moments([pairs[0], pairs[2]])
    for a, b in zip(vars(rest).values(), vars(expected).values(), strict=True):
        a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
        torch.testing.assert_close(a, b)


def test_recovery_adds_up_over_images(tiny):
    images = [CHELSEA, CHELSEA.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    ways = {"copy": recovery.plain_copy, "CFRM": tiny.g_s.cfrm}
    copy, trained = recovery.recovery(tiny, iter(images), ways)
    wrong = whole = 0.0
    for image in images:
        u, y = recovery.core_output(tiny, as_tensor(image, tiny))
        torch.testing.assert_close(y, tiny.g_a(as_tensor(image, tiny)))
        wrong += (torch.cat(tiny.g_s.cfrm(y), dim=1) - u).square().sum().item()
        whole += u.square().sum().item()
    assert trained.lost == pytest.approx(wrong / whole, rel=1e-4) and copy.name == "copy"
    decibels = []
    for image in images:
        x_hat = tiny.g_s(tiny.g_a(as_tensor(image, tiny)))
        decibels.append(psnr(image, Image.fromarray(to_pixels(x_hat))))
    assert trained.psnr == pytest.approx(np.mean(decibels), abs=1e-2)


def test_recovery_at_a_quality_starts_from_what_the_file_holds(tiny):
    (rounded,) = recovery.recovery(tiny, [CHELSEA], {"CFRM": tiny.g_s.cfrm}, 3.0)
    decoded = denoising(tiny, coded(tiny, CHELSEA, 3.0))
    assert rounded.psnr == pytest.approx(decoded.psnr, abs=1e-2)


def test_ms_cfrm_cannot_be_measured():
    with pytest.raises(AINNError, match="MS-CFRM"):
        model = shaken(AINN.from_preset("tiny", **SMALL, ms_cfrm=True))
        recovery.core_output(model, torch.rand(1, 3, 16, 16))


def test_the_middle_of_an_image_in_whole_blocks():
    assert recovery.whole_blocks(Image.new("RGB", (451, 300))).size == (448, 288)
    middle = recovery.whole_blocks(datasets.photo("coffee"), 64)
    expected = datasets.photo("coffee").crop((268, 168, 332, 232))
    assert middle.size == (64, 64) and middle.tobytes() == expected.tobytes()


@pytest.mark.slow
def test_the_tool_writes_what_it_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("recovery")
    monkeypatch.setattr(recovery, "RESULTS", tmp_path / "recovery.json")
    monkeypatch.setattr(recovery, "RIDGES", (1.0, 1e3))
    monkeypatch.setattr(tool, "FOLDS", 2)
    monkeypatch.setattr(datasets, "EMBEDDED", ("rocket",))
    for i in range(4):
        dead_leaves(256, i).save(tmp_path / f"{i}.png")
    tool.main([str(tmp_path), "--count", "4"])
    facts = json.loads((tmp_path / "recovery.json").read_text())
    unrounded, result = facts["results"]
    assert result["fingerprint"] == unrounded["fingerprint"] == fingerprint(tiny)
    assert (unrounded["quality"], result["quality"]) == (None, 4.0)
    assert result["fitted_on"] == 4
    assert facts["fitted"] == [f"{i}.png" for i in range(4)]
    for k in (1, 3):
        linear = result["linear"][f"linear, {k}×{k}"]
        assert linear["samples"] == 4 * 256 and linear["unknowns"] == 192 * k**2 + 1
        assert linear["ridge"] == float(min(linear["held_out"], key=linear["held_out"].get))
    rocket = recovery.whole_blocks(datasets.photo("rocket"))
    (copy,) = recovery.recovery(tiny, [rocket], {"plain copy": recovery.plain_copy}, 4.0)
    assert result["measured"][0] == {
        "name": "plain copy", "lost": pytest.approx(copy.lost, abs=1e-6),
        "psnr": pytest.approx(copy.psnr, abs=1e-6)}
    assert unrounded["measured"][0]["psnr"] > copy.psnr
    names = [m["name"] for m in result["measured"]]
    assert names == ["plain copy", "CFRM", "linear, 1×1", "linear, 3×3"]


def test_cfrm_gets_latents_of_the_scale_that_it_knows(tiny):
    x = as_tensor(CHELSEA, tiny)
    _, y = recovery.core_output(tiny, x)
    expected = tiny.g_s.cfrm(coded(tiny, CHELSEA, 8.0).unrounded)
    torch.testing.assert_close(recovery.cfrm_recovery(tiny)(y), expected)
    assert recovery.cfrm_recovery(tiny, 4.0) is tiny.g_s.cfrm
    fixed = AINN.from_preset("tiny", **SMALL, variable_rate=False)
    assert recovery.cfrm_recovery(fixed) is fixed.g_s.cfrm
