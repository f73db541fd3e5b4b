import matplotlib.pyplot as plt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ainn_lib import AINN, AINNError, complexity
from ainn_lib.context import wavefront

VARIANTS = {"tiny": ("tiny", {}), "paper": ("paper", {}), "peer": ("tiny", {"tied": False}),
            "whole": ("tiny", {"squeeze": False}), "middle scale": ("tiny", {"ms_cfrm": True}),
            "bare": ("tiny", {"fdsm": False, "cfrm": False, "pdm": "none"}),
            "dense": ("paper", {"pdm": "dense"})}


def network(name: str) -> AINN:
    preset, overrides = VARIANTS[name]
    with torch.device("meta"):
        return AINN.from_preset(preset, **overrides).eval()


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        run()
    return counter.get_total_flops() // 2  # of operations on numbers, two make one multiply-accumulate


@pytest.mark.parametrize("name", VARIANTS)
def test_macs_are_those_that_torch_counts_by_itself(name):
    model = network(name)
    costs, x = complexity.stage_costs(model, 64, 96), torch.empty(1, 3, 64, 96, device="meta")
    y = torch.empty(1, model.config.latent_channels, 4, 6, device="meta")
    z = torch.empty(1, model.config.N, 1, 2, device="meta")
    entropy = {"hyper-analysis": lambda: model.h_a(y), "hyper-synthesis": lambda: model.h_s(z),
               "entropy parameters": lambda: model.entropy_parameters(
                   torch.empty(1, model.entropy_parameters[0].in_channels, 4, 6))}
    for side, transform in (("encoder", lambda: model.g_a(x)), ("decoder", lambda: model.g_s(y))):
        here = {c.name: c for c in costs if c.side == side}
        assert sum(c.macs for c in here.values() if c.name not in (*entropy, "context")) == counted(transform)
        assert entropy.keys() - here.keys() == ({"hyper-analysis"} if side == "decoder" else set())
        for stage in entropy.keys() & here.keys():
            assert here[stage].macs == counted(entropy[stage]) > 0
        assert 25 * here["context"].macs == 12 * counted(lambda: model.context_prediction(y))


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_add_up_and_stand_where_they_belong(name):
    model = network(name)
    own = {(c.side, c.name): c.parameters for c in complexity.stage_costs(model, 64, 64)}
    assert sum(own.values()) == sum(p.numel() for p in model.parameters())
    for number in (1, 2, 3, 4):
        size = sum(p.numel() for p in model.levels[number - 1].parameters())
        assert own["encoder", f"level {number}"] == size
        assert own["decoder", f"inverse level {number}"] == (0 if model.config.tied else size)
    if model.config.pdm != "none":
        expected = [sum(p.numel() for p in pair.parameters()) for pair in model.pdm]
        assert [own["decoder", f"PDM {k}"] for k in (4, 3, 2)] == expected
    assert own["decoder", "hyper-synthesis"] == 0 < own["encoder", "hyper-synthesis"]


def test_the_papers_size_is_what_the_authors_implementation_takes():
    costs = complexity.stage_costs(network("paper"), 512, 768)
    transforms = {side: sum(c.macs for c in costs if c.side == side and c.name not in
                            ("hyper-analysis", "hyper-synthesis", "context", "entropy parameters")) / (1e3 * 512 * 768)
                  for side in complexity.SIDES}
    assert transforms == {"encoder": pytest.approx(773, abs=0.5), "decoder": pytest.approx(2024, abs=0.5)}  # measured on theirs


def test_the_largest_convolution():
    level1 = next(c for c in complexity.stage_costs(network("paper"), 64, 64) if c.name == "level 1")
    assert level1.largest == 2 * 12 * 32 * 32
    mask = complexity.stage_costs(network("paper"), 64, 64)[-2]
    assert mask.name == "FDSM-S" and mask.largest == (96 + 32) * 64 * 64  # its last k x k convolution


def test_steps_are_those_of_the_coder():
    for height, width in ((512, 768), (511, 769), (48, 64), (1000, 50)):
        h, w = -(-height // 16), -(-width // 16)
        assert complexity.wavefront_steps(height, width) == len(list(wavefront(h, w)))
        assert complexity.serial_steps(height, width) == sum(len(i) for i, _ in wavefront(h, w))


def test_the_size_explorer_over_its_range():
    model, last = network("tiny"), 0
    for megapixels in (0.01, 0.1, 2.0, 2.2, 24, 64):
        figure, numbers = complexity.at_size(model, megapixels)
        plt.close(figure)
        assert numbers.height * numbers.width == pytest.approx(megapixels * 1e6, rel=0.03)
        size = numbers.height, numbers.width
        per_pixel = complexity.kmac_per_pixel(complexity.stage_costs(model, *size), *size)
        assert numbers.gmac["decoder"] * 1e6 == pytest.approx(per_pixel["decoder"] * size[0] * size[1])
        assert last < numbers.wavefront and f"{numbers.wavefront}** steps" in str(numbers)
        last = numbers.wavefront
    assert numbers.mib < 100  # in tiles
    for wrong in (0.001, 65):
        with pytest.raises(AINNError, match="megapixels"):
            complexity.at_size(model, wrong)
    with pytest.raises(AINNError, match="pixels"):
        complexity.stage_costs(model, 0, 16)


def test_the_figure_has_a_bar_for_every_stage_that_computes():
    models = {name: network(name) for name in ("tiny", "paper")}
    figure = complexity.cost_figure(models)
    for ax, (name, model) in zip(figure.axes, models.items(), strict=True):
        costs = [c for c in complexity.stage_costs(model, 512, 768) if c.macs]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx([c.macs / 1e3 / 512 / 768 for c in costs])
        assert name in ax.get_title()
    plt.close(figure)
