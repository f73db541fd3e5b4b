import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import shaken

from ainn_lib import AINN, AINNConfig, AINNError
from ainn_lib.network.cfrm import (
    CFRM,
    ChannelSqueeze,
    CopyToGroups,
    ResidualDenseBlock,
)
from ainn_lib.network.config import PRESETS, preset
from ainn_lib.network.fdsm import Copy, FDSMDecomposition, FDSMSynthesis, Mean
from ainn_lib.network.pdm import KINDS, PDM, count_parameters

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# -- FDSM ------------------------------------------------------------------------------------------


def test_fdsm_pools_count_the_zero_padding():
    seen = {}
    fdsm = FDSMDecomposition()
    fdsm.low.register_forward_pre_hook(lambda module, inputs: seen.update(maps=inputs[0]))
    fdsm(torch.ones(1, 3, 8, 8))
    assert seen["maps"].shape == (1, 9, 8, 8)
    torch.testing.assert_close(
        seen["maps"][0, [0, 3, 6], 0, 0], torch.tensor([4 / 9, 9 / 25, 16 / 49])
    )


def test_fdsm_high_path_sees_what_the_pools_removed():
    seen = {}
    fdsm = FDSMDecomposition()
    fdsm.high.register_forward_pre_hook(lambda module, inputs: seen.update(maps=inputs[0]))
    fdsm(X)
    expected = torch.cat([X - F.avg_pool2d(X, k, 1, k // 2) for k in (3, 5, 7)], dim=1)
    torch.testing.assert_close(seen["maps"], expected)


def test_fdsm_synthesis_is_an_average_weighted_by_its_mask():
    fdsm, low, high = FDSMSynthesis((8, 8, 8)), X, X.flip(3)
    m = fdsm.mask(low, high)
    assert m.shape == (2, 1, 64, 64) and 0 < m.min() and m.max() < 1
    torch.testing.assert_close(fdsm(low, high), m * low + (1 - m) * high)
    torch.testing.assert_close(fdsm(low, low), low)


# -- PDM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("position, channels", ((0, 192), (1, 48), (2, 12)))
def test_the_three_kinds_have_as_many_parameters(name, position, channels):
    counts = []
    for kind in KINDS:
        config = preset(name, pdm=kind)
        with torch.device("meta"):
            pdm = PDM(kind, channels, config.pdm_widths[position], norm=config.pdm_norm)
        counts.append(count_parameters(pdm))
    assert max(counts) / min(counts) < 1.10, counts


WIDTHS = {"unet": (8, 8, 8, 8), "residual": (8, 8), "dense": (8, 8)}


@pytest.mark.parametrize("kind", KINDS)
def test_pdm_skip_is_the_authors_form(kind):
    v = torch.randn(1, 12, 16, 16)
    with_skip = shaken(PDM(kind, 12, WIDTHS[kind], skip=True, norm=False)).eval()
    torch.testing.assert_close(with_skip(v), v + 0.2 * (v + with_skip.net(v)))
    torch.testing.assert_close(with_skip(v, strength=0.0), 1.2 * v)
    without = shaken(PDM(kind, 12, WIDTHS[kind], skip=False, norm=False)).eval()
    torch.testing.assert_close(without(v), v + 0.2 * without.net(v))
    torch.testing.assert_close(without(v, strength=0.5), v + 0.1 * without.net(v))


# -- CFRM ------------------------------------------------------------------------------------------


def test_cfrm_layers_see_all_maps_before_them():
    block = ResidualDenseBlock(192, 768, growth=192, layers=3)
    assert [conv.in_channels for conv in block.layers] == [
        192,
        384,
        576,
    ] and block.fuse.in_channels == 768
    y = torch.randn(1, 192, 4, 4)
    d1 = F.relu(block.layers[0](y))
    d2 = F.relu(block.layers[1](torch.cat([y, d1], 1)))
    d3 = F.relu(block.layers[2](torch.cat([y, d1, d2], 1)))
    torch.testing.assert_close(block(y), block.fuse(torch.cat([y, d1, d2, d3], 1)) + block.skip(y))


def test_cfrm_gives_each_branch_its_own():
    low, high = CFRM(48, 8, 2)(torch.randn(1, 48, 4, 4))
    assert low.shape == high.shape == (1, 768, 4, 4) and not torch.equal(low, high)


# -- the model -------------------------------------------------------------------------------------

SMALL = dict(
    M=48,
    N=8,
    hidden=(4, 4, 4, 4),
    mask_widths=(4, 4, 4),
    cfrm_growth=8,
    hyper_out=8,
    context_out=8,
    parameter_widths=(8, 8),
)


def small(**overrides) -> AINN:
    torch.manual_seed(0)
    return shaken(AINN.from_preset("tiny", **{**SMALL, **overrides}))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"fdsm": False},
        {"cfrm": False},
        {"pdm": "none"},
        {"pdm": "residual"},
        {"pdm": "dense"},
        {"ms_cfrm": True},
        {"squeeze": False},
        {"shared_nets": False},
        {"couplings": (0, 1, 2, 0)},
        {"pdm_skip": True},
        {"pdm_norm": True},
        {"quantization": "noise"},
        {"variable_rate": False},
        {"M": 768, "N": 4},
        {"kernels": (1, 3, 5, 1)},
        {"clamp": 2.0},
        {"cfrm_layers": 0},
        {"align_corners": True},
        {"input_offset": 0.0},
        {"trainable_1x1": (False,) * 4},
    ],
)
def test_every_module_can_be_switched_alone(overrides):
    model = small(**overrides)
    for training in (True, False):
        output = model.train(training)(X)
        assert output["x_hat"].shape == X.shape
        assert set(output["likelihoods"]) == {"y", "z"}
        assert all(0 < p.min() and p.max() <= 1 for p in output["likelihoods"].values())
    if overrides and "trainable_1x1" not in overrides:
        assert not torch.equal(output["x_hat"], small().eval()(X)["x_hat"])
    loss = model.train()(X)["x_hat"].square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_what_stands_in_for_a_module():
    model = small(fdsm=False, cfrm=False, pdm="none").eval()
    assert not any(name.startswith("pdm") for name in model.g_s.names)
    assert isinstance(model.g_a.fdsm_d, Copy) and isinstance(model.g_s.fdsm_s, Mean)
    low, high = model.g_a.fdsm_d(X)
    assert torch.equal(low, high) and torch.equal(low, X - 0.5)
    y = torch.randn(1, 48, 4, 4)
    assert isinstance(model.g_s.cfrm, CopyToGroups)
    low, high = model.g_s.cfrm(y)
    assert torch.equal(low, high) and all(torch.equal(group, y) for group in low.split(48, dim=1))
    torch.testing.assert_close(model.g_s.fdsm_s(X, X.flip(3)), (X + X.flip(3)) / 2 + 0.5)


def test_the_squeeze_is_the_mean_over_all_groups():
    low, high = torch.randn(2, 1, 768, 2, 2)
    y = ChannelSqueeze(48)(low, high)
    groups = [*low.split(48, dim=1), *high.split(48, dim=1)]
    torch.testing.assert_close(y, sum(groups) / 32)


def test_full_dimension_mode_codes_both_branches():
    model = small(squeeze=False).eval()
    assert model.g_a(X).shape == (2, 1536, 4, 4)
    torch.testing.assert_close(
        small(squeeze=False, pdm="none", fdsm=False)
        .double()
        .g_s(small(squeeze=False, pdm="none", fdsm=False).double().g_a(X.double())),
        X.double(),
    )


def test_shared_noise_gives_the_same_output():
    model = small().train()
    noise = torch.rand(2, 48, 4, 4) - 0.5, torch.rand(2, 8, 1, 1) - 0.5
    a, b = (model(X, 5.0, noise)["likelihoods"]["y"] for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, model(X, 5.0)["likelihoods"]["y"])


def test_straight_through_rounding_distorts_with_rounded_latents():
    fixed = dict(variable_rate=False, trainable_1x1=(True,) * 4)
    ste, noisy = (
        small(quantization="ste", **fixed).train(),
        small(quantization="noise", **fixed).train(),
    )
    quiet = torch.zeros(2, 48, 4, 4), torch.zeros(2, 8, 1, 1)
    torch.testing.assert_close(noisy(X, noise=quiet)["x_hat"], noisy.g_s(noisy.g_a(X)))
    assert (ste(X, noise=quiet)["x_hat"] - ste.g_s(ste.g_a(X))).abs().max() > 1e-3
    ste(X, noise=quiet)["x_hat"].sum().backward()
    assert ste.levels[0].conv1x1.weight.grad.abs().max() > 0


def test_quality_moves_the_rate():
    model = small()
    with torch.no_grad():
        model.rate_control.set_steps([0.4 / 1.5**k for k in range(8)], 1.0)
    bits = [-torch.log2(model.eval()(X, q)["likelihoods"]["y"]).sum() for q in (1.0, 4.5, 8.0)]
    assert bits[0] < bits[1] < bits[2]
    both = model(X, torch.tensor([1.0, 8.0]))
    torch.testing.assert_close(both["x_hat"][:1], model(X[:1], 1.0)["x_hat"], atol=1e-5, rtol=1e-4)


def test_a_fixed_rate_network_takes_no_quality():
    with pytest.raises(AINNError, match="fixed rate"):
        small(variable_rate=False)(X, 4.0)


@pytest.mark.parametrize(
    "field, value",
    [
        ("M", 100),
        ("M", 0),
        ("M", 96.0),
        ("N", -1),
        ("couplings", (1, 1, 1)),
        ("couplings", (1, 1, 1, -1)),
        ("kernels", (3, 3, 3, 2)),
        ("hidden", (4, 4, 4, 0)),
        ("pdm", "magic"),
        ("pdm_widths", ((4,), (4, 4, 4), (4, 4, 4, 4))),
        ("mask_widths", (4, 4)),
        ("quantization", "round"),
        ("clamp", 0.0),
        ("lambdas", (0.1, 0.01)),
        ("cfrm_layers", -1),
        ("parameter_widths", (1, 2, 3)),
        ("pdm_widths", ((5, 4), (4, 4, 4), (4, 4, 4, 4))),
    ],
)
def test_a_config_that_does_not_fit_is_named(field, value):
    with pytest.raises(AINNError, match=field):
        AINNConfig(**{field: value})


def test_ms_cfrm_needs_a_squeeze():
    with pytest.raises(AINNError, match="ms_cfrm"):
        AINNConfig(ms_cfrm=True, squeeze=False)


def test_a_config_survives_json():
    import json

    config = preset("tiny")
    assert AINNConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_presets():
    with torch.device("meta"):
        assert count_parameters(AINN.from_preset("paper")) == 215_775_493 - 192 * 384 * 13
    with pytest.raises(AINNError, match="unknown preset"):
        AINN.from_preset("huge")
    with pytest.raises(AINNError, match="depth"):
        AINN.from_preset("tiny", depth=3)
