"""What a network costs, read from its own modules: parameters and multiply-accumulate operations (MAC) of every stage."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .codec import TILE, TILED_FROM, check_size
from .context import PAST
from .curves import BLUE, RED, STYLE
from .errors import AINNError
from .model import AINN

SIDES = {"encoder": BLUE, "decoder": RED}  #: and their colours
_PARTS = {"fdsm_d": "FDSM-D", "fdsm_s": "FDSM-S", "cfrm": "CFRM", "ms_cfrm": "MS-CFRM", "h_a": "hyper-analysis",
          "h_s": "hyper-synthesis", "context_prediction": "context", "entropy_parameters": "entropy parameters"}


@dataclass(frozen=True)
class StageCost:
    """One stage on the encoder's or the decoder's side."""

    side: str  #: a key of `SIDES`
    name: str
    parameters: int  #: its own; 0 where an earlier stage has them already, as the inverse of a tied level does
    macs: int  #: of all its convolutions and matrix products, for the whole image
    largest: int  #: values that go into and out of its largest convolution, together


class _Count(TorchFunctionMode):
    """Sees every convolution and matrix product: each value that comes out is a dot product with one row of weights."""

    def __init__(self):
        super().__init__()
        self.macs = self.largest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, F.linear):
            self.macs += out.numel() * args[1][0].numel()
            self.largest = max(self.largest, args[0].numel() + out.numel())
        return out


@torch.no_grad()
def stage_costs(model: AINN, height: int, width: int) -> list[StageCost]:
    """The cost of every stage for one image, encoder first, in the order in which they run.

    Only sizes are computed, no values: the largest network takes less than a second, and may live on the "meta" device.
    Sides are rounded up to multiples of 16. Of the context's 25 taps the 12 in the past are counted. What is no convolution
    or matrix product (sums, pools, interpolation, activations) is not counted.

    Raises:
        AINNError: for an image without pixels, or with more than the codec takes.

    >>> tiny = AINN.from_preset("tiny")
    >>> sum(c.parameters for c in stage_costs(tiny, 64, 64)) == sum(p.numel() for p in tiny.parameters())
    True
    """
    check_size(width, height)
    with torch.device("meta"):  # sizes without values
        model = AINN(model.config).eval()
        own, costs = _parameters(model), []

        def run(side: str, name: str, function: Callable, *maps: Tensor) -> tuple[Tensor, ...]:
            with _Count() as count:
                out = function(*maps)
            macs = count.macs * len(PAST) // 25 if name == "context" else count.macs
            costs.append(StageCost(side, name, own.pop(name, 0), macs, count.largest))
            return out if isinstance(out, tuple) else (out,)

        x = torch.empty(1, 3, -(-height // 16) * 16, -(-width // 16) * 16)
        maps = (x,)
        for stage in model.analysis_stages():
            maps = run("encoder", stage.name, stage.run, *maps)
        y = maps[0]
        (z,) = run("encoder", "hyper-analysis", model.h_a, y)
        for side in SIDES:
            (hyper,) = run(side, "hyper-synthesis", model.h_s, z)
            (context,) = run(side, "context", model.context_prediction, y)
            both = torch.cat([hyper[:, :, : y.shape[2], : y.shape[3]], context], dim=1)
            run(side, "entropy parameters", model.entropy_parameters, both)
        maps = (y,)
        for stage in model.synthesis_stages():
            maps = run("decoder", stage.name, stage.run, *maps)
    return [*costs, StageCost("decoder", "prior and gains", sum(own.values()), 0, 0)]


def _parameters(model: AINN) -> Counter:
    """Stage -> parameters. What belongs to none (the prior of the hyper-latent, the gains) stands under its own name."""
    own = Counter()
    for key, parameter in model.named_parameters():
        part, number = key.split(".")[:2]
        places = {"levels": "level {}", "synthesis_levels": "inverse level {}", "pdm": "PDM {}"}
        if part in places:
            name = places[part].format(4 - int(number) if part == "pdm" else int(number) + 1)
        else:
            name = _PARTS.get(part, part)
        own[name] += parameter.numel()
    return own


def kmac_per_pixel(costs: list[StageCost], height: int, width: int) -> dict[str, float]:
    """Thousand MAC for a pixel, summed over the stages of each side and of the entropy model's part in it."""
    total = Counter()
    for cost in costs:
        total[cost.side] += cost.macs / (1e3 * height * width)
    return dict(total)


@torch.no_grad()
def kmac(transform: Callable[[Tensor], object], x: Tensor, pixels: int) -> float:
    """Thousand MAC for a pixel of any transform that runs on x, as PyTorch's own counter sees it: of networks not ours too.

    >>> kmac(torch.nn.Conv2d(3, 10, 1), torch.rand(1, 3, 8, 8), 64)
    0.03
    """
    with FlopCounterMode(display=False) as counter:
        transform(x)
    return counter.get_total_flops() / 2 / pixels / 1e3


def _bars(ax: Axes, costs: list[StageCost], unit: float) -> list[float]:
    """One bar for each stage that computes anything, in its side's colour; returns their lengths."""
    costs = [c for c in costs if c.macs]
    lengths = [c.macs / unit for c in costs]
    bars = ax.barh(range(len(costs)), lengths, color=[SIDES[c.side] for c in costs])
    ax.bar_label(bars, [f"{value:.3g}" for value in lengths], padding=2, fontsize=6)
    ax.set_yticks(range(len(costs)), [c.name for c in costs], fontsize=6)
    ax.set(xlim=(0, 1.18 * max(lengths)), ylim=(len(costs) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    return lengths


def _key(figure: Figure, place: str = "outside lower center") -> None:
    keys = [Rectangle((0, 0), 1, 1, color=colour) for colour in SIDES.values()]
    figure.legend(keys, list(SIDES), loc=place, ncols=2)


def cost_figure(models: dict[str, AINN], height: int = 512, width: int = 768) -> Figure:
    """Where the MACs are: thousands for a pixel in every stage, one panel for each network (name -> network)."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(models), figsize=(7.16, 3.6), squeeze=False)
        for ax, (name, model) in zip(axes[0], models.items(), strict=True):
            kmac = _bars(ax, stage_costs(model, height, width), 1e3 * height * width)
            ax.set(title=f"{name}: {sum(kmac):.4g} kMAC/pixel", xlabel="kMAC/pixel")
        _key(figure)
    return figure


@dataclass(frozen=True)
class SizeNumbers:
    """Numbers of `at_size`."""

    height: int
    width: int
    gmac: dict[str, float]  #: side -> 10⁹ MAC for the whole image
    serial: int  #: positions that a serial decoder visits one by one
    wavefront: int  #: steps of ours
    mib: float  #: of the maps into and out of the largest convolution, float32, tiles considered

    def __str__(self) -> str:
        return (f"{self.width}x{self.height}: encoder **{self.gmac['encoder']:,.0f} GMAC**, "
                f"decoder **{self.gmac['decoder']:,.0f} GMAC**; "
                f"**{self.wavefront}** steps of the wavefront in place of {self.serial:,}; "
                f"largest convolution **{self.mib:,.0f} MiB**")


def serial_steps(height: int, width: int) -> int:
    """Positions of the latent of an image, h w: what a serial coder visits one after another."""
    return -(-height // 16) * -(-width // 16)


def wavefront_steps(height: int, width: int) -> int:
    """Steps of the wavefront over the latent of an image: w + 3 (h − 1) for w x h positions, w at least 3.

    >>> wavefront_steps(512, 768)
    141
    """
    return -(-width // 16) + 3 * (-(-height // 16) - 1)


def at_size(model: AINN, megapixels: float) -> tuple[Figure, SizeNumbers]:
    """What an image of 3:2 and so many megapixels (0.01 to 64) costs: MAC by stage, and steps of the two ways to decode."""
    if not 0.01 <= megapixels <= 64:
        raise AINNError(f"megapixels must lie from 0.01 to 64, got {megapixels}")
    height = max(16, round((megapixels * 1e6 / 1.5) ** 0.5))
    width = round(1.5 * height)
    costs = stage_costs(model, height, width)
    share = 1 if height * width <= TILED_FROM else TILE**2 / (height * width)
    gmac = {side: sum(c.macs for c in costs if c.side == side) / 1e9 for side in SIDES}
    numbers = SizeNumbers(height, width, gmac, serial_steps(height, width), wavefront_steps(height, width),
                          4 * max(c.largest for c in costs) * share / 2**20)
    with plt.style.context(STYLE):
        # a slider moves it: fixed places, since the automatic layout takes as long as the rest
        figure, axes = plt.subplots(1, 2, figsize=(7.16, 3.4), width_ratios=(3, 2), layout="none")
        figure.subplots_adjust(left=0.15, right=0.98, top=0.97, bottom=0.2, wspace=0.25)
        _bars(axes[0], costs, 1e9)
        axes[0].set(xlabel="GMAC")
        heights = range(80, 6600, 80)
        for label, steps in (("one position after another", serial_steps), ("wavefront", wavefront_steps)):
            axes[1].loglog([1.5e-6 * h**2 for h in heights], [steps(h, round(1.5 * h)) for h in heights], label=label)
        axes[1].axvline(megapixels, color="grey", linewidth=6, alpha=0.25)
        axes[1].set(xlabel="megapixels", ylabel="steps")
        axes[1].minorticks_off()
        axes[1].legend()
        _key(figure, "lower left")
    return figure, numbers
