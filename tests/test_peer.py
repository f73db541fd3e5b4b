"""The non-invertible peer: the same network, but its synthesis has weights of its own."""

import torch
from test_linear import IMAGES

from ainn_lib import AINN
from ainn_lib.evaluate import without
from ainn_lib.linear import start_as_linear_codec


def peer(**overrides) -> AINN:
    torch.manual_seed(0)
    return AINN.from_preset("tiny", tied=False, **overrides)


def test_it_starts_as_the_same_linear_codec():
    tied = start_as_linear_codec(AINN.from_preset("tiny"), IMAGES)
    own = start_as_linear_codec(peer(), IMAGES)
    x = IMAGES[0][None, :, :64, :96].float() / 255
    with torch.no_grad():
        torch.testing.assert_close(own.g_a(x), tied.g_a(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.g_s(own.g_a(x)), tied.g_s(tied.g_a(x)), atol=1e-5, rtol=0)


def test_analysis_and_synthesis_learn_apart():
    model = start_as_linear_codec(peer(), IMAGES)
    y = torch.rand(1, 192, 4, 4)
    model.g_s(y).square().sum().backward()
    assert all(p.grad is None for p in model.levels.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.synthesis_levels.parameters())


def test_it_has_the_parameters_of_one_core_more():
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    tied = AINN.from_preset("tiny")
    assert count(peer()) == count(tied) + count(tied.levels)


def test_the_couplings_are_taken_out_on_both_sides():
    model = start_as_linear_codec(peer(), IMAGES)
    bare = without(model, "couplings")
    assert not any(len(level.couplings) for level in [*bare.levels, *bare.synthesis_levels])
    assert all(len(level.couplings) for level in model.synthesis_levels)
