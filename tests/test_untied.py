"""The untied baseline: the same network, but its synthesis has levels of its own."""

import pytest
import torch
from test_linear import IMAGES

from ainn_lib import AINN
from ainn_lib.measure.evaluate import without
from ainn_lib.network.pdm import count_parameters
from ainn_lib.training.linear_start import start_as_linear_codec


@pytest.fixture
def untied() -> AINN:
    torch.manual_seed(0)
    return start_as_linear_codec(AINN.from_preset("tiny", tied=False), IMAGES)


def test_it_starts_as_the_same_linear_codec(untied):
    tied = start_as_linear_codec(AINN.from_preset("tiny"), IMAGES)
    x = IMAGES[0][None, :, :64, :96].float() / 255
    with torch.no_grad():
        y = tied.g_a(x)
        torch.testing.assert_close(untied.g_a(x), y, atol=1e-5, rtol=0)
        torch.testing.assert_close(untied.g_s(y), tied.g_s(y), atol=1e-5, rtol=0)


def test_analysis_and_synthesis_learn_apart(untied):
    untied.g_s(torch.rand(1, 192, 4, 4)).square().sum().backward()
    own = [p.grad for level in untied.synthesis_levels for p in level.parameters()]
    assert all(p.grad is None for level in untied.levels for p in level.parameters())
    assert any(grad is not None and grad.abs().max() > 0 for grad in own)


def test_it_has_the_parameters_of_four_levels_more(untied):
    tied = AINN.from_preset("tiny")
    more = sum(count_parameters(level) for level in tied.levels)
    assert count_parameters(untied) == count_parameters(tied) + more


def test_the_couplings_are_removed_on_both_sides(untied):
    bare = without(untied, "couplings")
    assert not any(len(level.couplings) for levels in bare.cores for level in levels)
    assert all(len(level.couplings) for levels in untied.cores for level in levels)
