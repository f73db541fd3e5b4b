"""Parameters, operations and memory of every step of a network, read from its own modules."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..codec.coding import TILE, TILED_FROM
from ..codec.images import check_size
from ..errors import AINNError
from ..network.config import AINNConfig
from ..network.entropy_model import CAUSAL_TAPS
from ..network.model import AINN
from ..network.pdm import count_parameters
from ..network.tiles import as_maps, windows
from ..network.transforms import TITLES
from ..style import BLUE, RED, figure_style

SIDES = {"encoder": BLUE, "decoder": RED}
KEYS = [Patch(color=colour, label=side) for side, colour in SIDES.items()]  #: of a legend


@dataclass(frozen=True)
class StageCost:
    """One step on the encoder's or the decoder's side."""

    side: str  #: a key of `SIDES`
    name: str
    parameters: int  #: its own; 0 where an earlier step has them, as for a tied inverse level
    macs: int  #: multiply-accumulate operations for the whole image
    largest: int  #: values into and out of its largest convolution, in one tile of a large photo


class MacCounter(TorchFunctionMode):
    """Counts the operations of convolutions and linear layers, in any network."""

    def __init__(self):
        super().__init__()
        self.macs = self.largest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, torch.conv_transpose2d, F.linear):
            x, weight = args[:2]
            products = x if func is torch.conv_transpose2d else out
            self.macs += products.numel() * weight[0].numel()
            self.largest = max(self.largest, x.numel() + out.numel())
        return out


@torch.no_grad()
def kmac(transform: Callable[[Tensor], object], x: Tensor, pixels: int) -> float:
    """Thousand multiply-accumulate operations per pixel of any transform that runs on x.

    >>> kmac(nn.Conv2d(3, 10, 1), torch.rand(1, 3, 8, 8), pixels=64)
    0.03
    """
    with MacCounter() as counter:
        transform(x)
    return counter.macs / pixels / 1e3


def stage_costs(model: AINN, height: int, width: int) -> list[StageCost]:
    """The cost of every step for one image, encoder first, in the order in which they run.

    Only sizes are computed, on the "meta" device, where the model may live too. Sides are rounded
    up to multiples of 16. Sums, pools, interpolation and activations are not counted. Raises
    AINNError for an image without pixels, or with more than the codec takes.
    """
    check_size(width, height)
    model, costs = _on_meta(model.config), []
    h, w = -(-height // 16), -(-width // 16)
    scale = TILE / (16 * max(h, w)) if height * width > TILED_FROM else None
    maps: Shapes = ((1, 3, 16 * h, 16 * w),)
    for name, step in model.g_a.steps:
        maps = _add(costs, "encoder", TITLES[name], step, maps, scale)
    latent = maps
    z = _add(costs, "encoder", "hyper-analysis", model.h_a, latent)
    for side in SIDES:
        ((_, hyper, *_),) = _add(costs, side, "hyper-synthesis", model.h_s, z)
        ((_, context, *_),) = _add(costs, side, "context", model.context_prediction, latent)
        both = ((1, hyper + context, h, w),)
        _add(costs, side, "entropy parameters", model.entropy_parameters, both)
    for name, step in model.g_s.steps:
        latent = _add(costs, "decoder", TITLES[name], step, latent, scale)
    rest = count_parameters(model) - sum(cost.parameters for cost in costs)
    return [*costs, StageCost("decoder", "prior and gains", rest, 0, 0)]


@lru_cache
def _on_meta(config: AINNConfig) -> AINN:
    with torch.device("meta"):
        return AINN(config).eval()


Shapes = tuple[tuple[int, ...], ...]  #: of a step's maps


@lru_cache(maxsize=4096)  # a large photo's tiles are those of the next one
@torch.no_grad()
def _run(module: nn.Module, shapes: Shapes) -> tuple[int, int, Shapes]:
    """Operations, values around the largest convolution, and the shapes that come out."""
    with MacCounter() as counter, torch.device("meta"):
        out = as_maps(module(*(torch.empty(shape) for shape in shapes)))
    return counter.macs, counter.largest, tuple(tuple(v.shape) for v in out)


def _add(costs: list[StageCost], side: str, name: str, module: nn.Module, maps: Shapes,
         scale: float | None = None) -> Shapes:
    """Add a step's cost. ``scale``: side of a tile over that of the whole map."""
    macs, largest, out = _run(module, maps)
    if name == "context":  # computed with zeros at the taps that a decoder does not have
        macs = macs * len(CAUSAL_TAPS) // 25
    if scale is not None and module.receptive_radius is not None:
        tile = max(1, round(scale * max(maps[0][2:])))
        _, largest, _ = _run(module, _largest_tile(module, maps, tile))
    own = 0 if any(cost.name == name for cost in costs) else count_parameters(module)
    costs.append(StageCost(side, name, own, macs, largest))
    return out


def _largest_tile(step: nn.Module, maps: Shapes, side: int) -> Shapes:
    """The largest of the tiles, with margins, in which the codec runs a step."""
    cut = [max(end - start for *_, start, end in windows(length, side, step))
           for length in maps[0][2:]]
    return tuple((*shape[:2], *cut) for shape in maps)


def bars(ax: Axes, costs: list[StageCost], unit: float, label: str) -> float:
    """One bar for each step that computes, in its side's colour; returns their sum."""
    costs = [cost for cost in costs if cost.macs]
    lengths = [cost.macs / unit for cost in costs]
    bars = ax.barh(range(len(costs)), lengths, color=[SIDES[cost.side] for cost in costs])
    ax.bar_label(bars, [f"{value:.3g}" for value in lengths], padding=2, fontsize=6)
    ax.set_yticks(range(len(costs)), [cost.name for cost in costs], fontsize=6)
    ax.set(xlim=(0, 1.18 * max(lengths)), ylim=(len(costs) - 0.4, -0.6), xlabel=label)
    ax.grid(axis="y", visible=False)
    return sum(lengths)


def decoding_steps(height: int, width: int) -> tuple[int, int]:
    """Steps to decode a latent of h x w positions: h w one by one, w + 3 (h − 1) as a wavefront.

    >>> decoding_steps(512, 768)
    (1536, 141)
    """
    h, w = -(-height // 16), -(-width // 16)
    return h * w, w + 3 * (h - 1)


def at_size(model: AINN, megapixels: float) -> tuple[Figure, str]:
    """What an image of 3:2 and 0.01 to 64 megapixels costs: a figure, and words (Markdown).

    The memory is that of the maps into and out of the largest convolution, in float32.
    """
    if not 0.01 <= megapixels <= 64:
        raise AINNError(f"megapixels must lie from 0.01 to 64, got {megapixels}")
    height = max(16, round((megapixels * 1e6 / 1.5) ** 0.5))
    width = round(1.5 * height)
    costs = stage_costs(model, height, width)
    gmac = {side: sum(c.macs for c in costs if c.side == side) / 1e9 for side in SIDES}
    serial, wavefront = decoding_steps(height, width)
    words = (f"{width}x{height}: encoder **{gmac['encoder']:,.0f} GMAC**, "
             f"decoder **{gmac['decoder']:,.0f} GMAC**; "
             f"**{wavefront}** steps of the wavefront in place of {serial:,}; "
             f"largest convolution **{4 * max(c.largest for c in costs) / 2**20:,.0f} MiB**")
    return _size_figure(costs, megapixels), words


def _size_figure(costs: list[StageCost], megapixels: float) -> Figure:
    with figure_style():
        # for a slider: automatic layout takes as long as the rest
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.16, 3.4), width_ratios=(3, 2),
                                             layout="none")
        figure.subplots_adjust(left=0.15, right=0.98, top=0.97, bottom=0.2, wspace=0.25)
        bars(left, costs, 1e9, "GMAC")
        heights = np.arange(80, 6600, 80)
        steps = [decoding_steps(h, round(1.5 * h)) for h in heights]
        labels = "one position after another", "wavefront"
        right.loglog(1.5e-6 * heights**2, steps, label=labels)
        right.axvline(megapixels, color="grey", linewidth=6, alpha=0.25)
        right.set(xlabel="megapixels", ylabel="steps")
        right.set_xticks(*_plain(0.01, 0.1, 1, 10))  # a formula's label takes long to draw
        right.set_yticks(*_plain(10, 1000, 100_000))
        right.minorticks_off()
        right.legend()
        figure.legend(handles=KEYS, loc="lower left", ncols=2)
    return figure


def _plain(*ticks: float) -> tuple[tuple[float, ...], list[str]]:
    return ticks, [f"{tick:,g}" for tick in ticks]
