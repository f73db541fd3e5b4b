"""The transforms g_a and g_s: modules whose children, in order, are the paper's figure."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AINNError
from .blocks import Level
from .cfrm import CFRM, MSCFRM, ChannelSqueeze, Concat, CopyToGroups, Halves
from .config import LEVEL_CHANNELS, AINNConfig
from .fdsm import Copy, FDSMDecomposition, FDSMSynthesis, Mean
from .pdm import PDM, Denoise
from .tiles import Maps, Step, as_maps, run_tiled

TITLES = {  # step -> the paper's words
    "fdsm_d": "FDSM-D", "level1": "level 1", "level2": "level 2", "level3": "level 3",
    "level4": "level 4", "squeeze": "channel squeeze",
    "cfrm": "CFRM", "inverse_level4": "inverse level 4", "ms_cfrm": "MS-CFRM", "pdm4": "PDM 4",
    "inverse_level3": "inverse level 3", "pdm3": "PDM 3", "inverse_level2": "inverse level 2",
    "pdm2": "PDM 2", "inverse_level1": "inverse level 1", "fdsm_s": "FDSM-S",
}


class Transform(nn.Module):
    """Steps that run one after the other: the module's children, in order."""

    @property
    def steps(self) -> list[tuple[str, Step]]:
        """Name and module of every step, in order."""
        return list(self.named_children())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.steps)

    def forward(self, x: Tensor, tile: int | None = None) -> Tensor:
        """One tensor through all steps; ``tile``: side in pixels of tiles, for large photos."""
        (result,) = self.run((x,), tile=tile)
        return result

    def run(self, maps: Maps, start: str | None = None, stop: str | None = None,
            tile: int | None = None) -> Maps:
        """Run the steps from the one named ``start`` to the one before ``stop``.

        Args:
            maps: what goes into the first of them, a tuple of tensors (B, C, H, W).
            tile: as `run_tiled` takes it; None runs each step at once.

        Raises:
            AINNError: for a name that is no step of this transform.
        """
        first = 0 if start is None else self._index(start)
        last = len(self.names) if stop is None else self._index(stop)
        steps = [step for _, step in self.steps[first:last]]
        if tile is not None:
            return run_tiled(steps, maps, tile)
        for step in steps:
            maps = as_maps(step(*maps))
        return maps

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise AINNError(f"no step {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)


class Inverse(Step):
    """The inverse of a `Level`. What comes after the two branches is brought to their scale.

    A tied synthesis inverts the analysis's own levels: they are no children of this module, so
    that their weights are stored, counted and hashed once.
    """

    scale = 2

    def __init__(self, level: Level, tied: bool):
        super().__init__()
        self.tied = tied
        if tied:
            self.__dict__["level"] = level  # past nn.Module's registration
        else:
            self.level = level

    @property
    def receptive_radius(self) -> int:
        return self.level.coupling_radius

    def extra_repr(self) -> str:
        return "with the weights of the analysis" if self.tied else ""

    def forward(self, low: Tensor, high: Tensor, *more: Tensor) -> Maps:
        branches = self.level.inverse(low, high)
        return *branches, *(F.pixel_shuffle(v, 2) for v in more)


def make_levels(c: AINNConfig) -> list[Level]:
    """Four fresh levels."""
    return [
        Level(channels, couplings, hidden, kernel, c.clamp, c.shared_nets, trainable)
        for channels, couplings, hidden, kernel, trainable in zip(
            LEVEL_CHANNELS, c.couplings, c.hidden, c.kernels, c.trainable_1x1, strict=True)
    ]


class Analysis(Transform):
    r"""g_a: FDSM-D, levels 1 to 4 on both branches, channel squeeze; :math:`y = S\,F(x_L, x_H)`.

    Shapes: image (B, 3, H, W) in [0, 1], H and W multiples of 16 -> latent y (B, M, H/16, W/16),
    before any gain.
    """

    def __init__(self, c: AINNConfig):
        super().__init__()
        self.fdsm_d = FDSMDecomposition(c.input_offset) if c.fdsm else Copy(c.input_offset)
        for number, level in enumerate(make_levels(c), start=1):
            self.add_module(f"level{number}", level)
        self.squeeze = ChannelSqueeze(c.M) if c.squeeze else Concat()


class Synthesis(Transform):
    r"""g_s: CFRM, inverse levels 4 to 1 with a PDM after each of levels 4, 3 and 2, FDSM-S.

    Shapes: latent (B, M, h, w) -> image (B, 3, 16h, 16w), not clamped.

    Args:
        levels: the analysis's levels 1 to 4; an untied configuration makes its own.
    """

    def __init__(self, c: AINNConfig, levels: list[Level]):
        super().__init__()
        levels = levels if c.tied else make_levels(c)
        if not c.squeeze:
            self.cfrm = Halves()
        elif c.cfrm:
            self.cfrm = CFRM(c.M, c.cfrm_growth, c.cfrm_layers, keep_latent=c.ms_cfrm)
        else:
            self.cfrm = CopyToGroups(keep_latent=c.ms_cfrm)
        for number, widths in zip((4, 3, 2), c.pdm_widths, strict=True):
            self.add_module(f"inverse_level{number}", Inverse(levels[number - 1], c.tied))
            if number == 4 and c.ms_cfrm:
                self.ms_cfrm = MSCFRM(c.M, c.cfrm_growth, c.cfrm_layers)
            if c.pdm != "none":
                self.add_module(f"pdm{number}", _denoise(c, LEVEL_CHANNELS[number - 2], widths))
        self.inverse_level1 = Inverse(levels[0], c.tied)
        self.fdsm_s = (FDSMSynthesis(c.mask_widths, c.input_offset) if c.fdsm
                       else Mean(c.input_offset))


def _denoise(c: AINNConfig, channels: int, widths: tuple[int, ...]) -> Denoise:
    return Denoise(*(PDM(c.pdm, channels, widths, c.pdm_skip, c.pdm_norm, c.align_corners)
                     for _ in range(2)))
