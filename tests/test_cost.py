import pytest
import torch
from compressai.models import MeanScaleHyperprior
from torch.utils.flop_counter import FlopCounterMode

from ainn_lib import AINN, AINNError
from ainn_lib.codec.coding import TILE
from ainn_lib.network.entropy_model import wavefront
from ainn_lib.network.tiles import run_tiled
from ainn_lib.studies import cost

VARIANTS = {
    "tiny": ("tiny", {}),
    "paper": ("paper", {}),
    "untied": ("tiny", {"tied": False}),
    "no squeeze": ("tiny", {"squeeze": False}),
    "middle scale": ("tiny", {"ms_cfrm": True}),
    "bare": ("tiny", {"fdsm": False, "cfrm": False, "pdm": "none"}),
    "dense": ("paper", {"pdm": "dense"}),
}
ENTROPY = ("hyper-analysis", "hyper-synthesis", "context", "entropy parameters")


def network(name: str) -> AINN:
    preset, overrides = VARIANTS[name]
    with torch.device("meta"):
        return AINN.from_preset(preset, **overrides).eval()


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        run()
    return counter.get_total_flops() // 2  # two operations on numbers are one multiply-accumulate


@pytest.mark.parametrize("name", VARIANTS)
def test_macs_are_those_that_torch_counts(name):
    model = network(name)
    costs, x = cost.stage_costs(model, 64, 96), torch.empty(1, 3, 64, 96, device="meta")
    y = torch.empty(1, model.config.latent_channels, 4, 6, device="meta")
    z = torch.empty(1, model.config.N, 1, 2, device="meta")
    features = torch.empty(1, model.entropy_parameters[0].in_channels, 4, 6, device="meta")
    entropy = {"hyper-analysis": lambda: model.h_a(y), "hyper-synthesis": lambda: model.h_s(z),
               "entropy parameters": lambda: model.entropy_parameters(features)}
    for side, transform in (("encoder", lambda: model.g_a(x)), ("decoder", lambda: model.g_s(y))):
        here = {c.name: c.macs for c in costs if c.side == side}
        steps = sum(macs for name, macs in here.items() if name not in ENTROPY)
        assert steps == counted(transform)
        for stage in entropy.keys() & here.keys():
            assert here[stage] == counted(entropy[stage]) > 0
        assert 25 * here["context"] == 12 * counted(lambda: model.context_prediction(y))
        assert ("hyper-analysis" in here) == (side == "encoder")


def test_macs_of_a_network_that_is_not_ours():
    other, x = MeanScaleHyperprior(8, 12), torch.rand(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        other.g_s(other.g_a(x))
    expected = counter.get_total_flops() / 2 / 64**2 / 1e3
    assert cost.kmac(lambda x: other.g_s(other.g_a(x)), x, 64**2) == pytest.approx(expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_add_up_and_stand_where_they_belong(name):
    model = network(name)
    own = {(c.side, c.name): c.parameters for c in cost.stage_costs(model, 64, 64)}
    assert sum(own.values()) == sum(p.numel() for p in model.parameters())
    for number, level in enumerate(model.levels, start=1):
        size = sum(p.numel() for p in level.parameters())
        assert own["encoder", f"level {number}"] == size
        assert own["decoder", f"inverse level {number}"] == (0 if model.config.tied else size)
    if model.config.pdm != "none":
        pdm4 = sum(p.numel() for p in model.g_s.pdm4.parameters())
        assert own["decoder", "PDM 4"] == pdm4 > 0
    assert own["decoder", "hyper-synthesis"] == 0 < own["encoder", "hyper-synthesis"]


def test_the_papers_size_is_what_the_authors_implementation_takes():
    costs = cost.stage_costs(network("paper"), 512, 768)
    transforms = {side: sum(c.macs for c in costs if c.side == side and c.name not in ENTROPY)
                  / (1e3 * 512 * 768) for side in cost.SIDES}
    measured_on_theirs = {"encoder": 773, "decoder": 2024}
    assert transforms == pytest.approx(measured_on_theirs, abs=0.5)


def test_the_largest_convolution():
    costs = {c.name: c for c in cost.stage_costs(network("paper"), 64, 64)}
    assert costs["level 1"].largest == 2 * 12 * 32 * 32
    assert costs["FDSM-S"].largest == (96 + 32) * 64 * 64  # its last k x k convolution


def test_a_step_that_sees_the_whole_map_is_not_scaled_by_tiles():
    """PDM 2 of `paper` upsamples with aligned corners: it runs at once, whatever the size."""
    _, words = cost.at_size(network("paper"), 12)
    assert "largest convolution **3,310 MiB**" in words


def test_tiles_count_with_their_margins():
    """The largest convolution is that of the tiles which the codec really runs."""
    model = network("tiny")
    costs = {c.name: c for c in cost.stage_costs(model, 2048, 2048)}
    with torch.no_grad(), cost.MacCounter() as counter:
        run_tiled([model.g_s.fdsm_s], [torch.empty(1, 3, 2048, 2048, device="meta")] * 2, TILE)
    assert costs["FDSM-S"].largest == counter.largest == (16 + 8) * (TILE + 2 * 48) ** 2


def test_steps_are_those_of_the_coder():
    for height, width in ((512, 768), (511, 769), (48, 64), (1000, 50)):
        h, w = -(-height // 16), -(-width // 16)
        steps = [len(rows) for rows, _ in wavefront(h, w)]
        assert cost.decoding_steps(height, width) == (sum(steps), len(steps))


def test_the_size_explorer_over_its_range():
    model, last = network("tiny"), 0
    for megapixels in (0.01, 0.1, 2.0, 2.2, 24, 64):
        figure, words = cost.at_size(model, megapixels)
        width, height = map(int, words.split(":")[0].split("x"))
        assert height * width == pytest.approx(megapixels * 1e6, rel=0.03)
        costs = cost.stage_costs(model, height, width)
        gmac = sum(c.macs for c in costs if c.side == "decoder") / 1e9
        assert f"decoder **{gmac:,.0f} GMAC**" in words
        drawn = [bar.get_width() for bar in figure.axes[0].patches]
        assert drawn == pytest.approx([c.macs / 1e9 for c in costs if c.macs])
        serial, wavefront = cost.decoding_steps(height, width)
        assert f"**{wavefront}** steps of the wavefront in place of {serial:,}" in words
        assert last < wavefront
        last = wavefront
    for wrong in (0.001, 65):
        with pytest.raises(AINNError, match="megapixels"):
            cost.at_size(model, wrong)
    with pytest.raises(AINNError, match="pixels"):
        cost.stage_costs(model, 0, 16)
