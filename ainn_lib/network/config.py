"""What shapes a network: `AINNConfig`, and the ready-made sizes `PRESETS`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import get_args, get_origin

from ..errors import AINNError
from .pdm import KINDS

LEVEL_CHANNELS = (12, 48, 192, 768)
DEFAULT_QUALITY = 4.0
Widths = tuple[int, ...]
MOST_CHANNELS = 4096  #: of any layer: a damaged or forged file must not ask for terabytes


@dataclass(frozen=True)
class AINNConfig:
    """Everything that shapes an `AINN`. The defaults are the authors' network at N = M = 192.

    Raises:
        AINNError: at construction, with one sentence that names the field, when a value is of
            another kind, out of range, or does not fit the others.

    >>> AINNConfig(M=100)
    Traceback (most recent call last):
    ...
    ainn_lib.errors.AINNError: M must divide 768, got 100
    """

    M: int = 192  #: latent channels after the squeeze; divides 768
    N: int = 192  #: hyper-latent channels
    squeeze: bool = True  #: False: all 1536 channels are coded (then M and CFRM are not used)
    couplings: tuple[int, int, int, int] = (3, 3, 3, 3)  #: coupling layers at levels 1-4
    kernels: tuple[int, int, int, int] = (5, 5, 3, 3)  #: kernel of the coupling nets at levels 1-4
    hidden: tuple[int, int, int, int] = LEVEL_CHANNELS  #: their width at levels 1-4
    shared_nets: bool = False  #: one net with two outputs in place of separate G and H
    clamp: float = 1.0  #: c, bound of the coupling's log scale
    trainable_1x1: tuple[bool, bool, bool, bool] = (True, True, True, True)  #: at levels 1-4
    tied: bool = True  #: False: the synthesis has levels of its own (the untied baseline)
    input_offset: float = 0.0  #: subtracted from x, added to the reconstruction
    fdsm: bool = True
    mask_widths: tuple[int, int, int] = (32, 64, 128)  #: mask net of FDSM-S
    cfrm: bool = True
    cfrm_growth: int = 192
    cfrm_layers: int = 3
    ms_cfrm: bool = False
    pdm: str = "unet"  #: unet, residual, dense or none
    #: at levels 4, 3, 2: the U-Net's widths by scale, or the two widths of a chain
    pdm_widths: tuple[Widths, Widths, Widths] = (
        (384, 384), (192, 384, 384), (96, 192, 384, 384))
    pdm_skip: bool = True  #: v + 0.2 (v + net(v)), the authors'; False: v + 0.2 net(v)
    pdm_norm: bool = True  #: batch norm in the U-Net
    align_corners: bool = True  #: of the U-Net's upsampling; False: finite receptive field
    hyper_out: int = 384  #: channels of the hyper-synthesis output
    context_out: int = 384  #: channels of the context model's output
    parameter_widths: tuple[int, int] = (640, 512)  #: of the entropy-parameter net
    #: noise, or ste: noise for the rate, straight-through rounding for the distortion
    quantization: str = "noise"
    variable_rate: bool = False  #: gains for a continuous quality from 1 to 8
    lambdas: tuple[float, float] = (0.0018, 0.18)  #: λ at quality 1 and at quality 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _tuples(getattr(self, field.name))  # a config read from JSON has lists
            object.__setattr__(self, field.name, value)
            _check_kind(field.name, value, field.type)
        _need(768 % self.M == 0, f"M must divide 768, got {self.M}")
        _need(all(k % 2 for k in self.kernels), f"kernels must be odd, got {self.kernels}")
        _need(0 < self.clamp <= 10, f"clamp must lie above 0 and at most 10, got {self.clamp}")
        _need(self.quantization in ("noise", "ste"),
              f"quantization must be noise or ste, got {self.quantization!r}")
        _need(0 < self.lambdas[0] <= self.lambdas[1],
              f"lambdas must be positive and rising, got {self.lambdas}")
        _need(not self.ms_cfrm or self.squeeze and self.M % 4 == 0,
              "ms_cfrm needs the squeeze, and M divisible by 4")
        _need(self.pdm in (*KINDS, "none"),
              f"pdm must be one of {', '.join(KINDS)}, none, got {self.pdm!r}")
        if self.pdm == "unet":
            _need([len(widths) for widths in self.pdm_widths] == [2, 3, 4]
                  and all(w % 2 == 0 for widths in self.pdm_widths for w in widths),
                  f"pdm_widths must hold 2, 3 and 4 even widths, got {self.pdm_widths}")
        elif self.pdm != "none":
            _need(all(len(widths) == 2 for widths in self.pdm_widths),
                  f"pdm_widths must hold two widths for each chain, got {self.pdm_widths}")

    @property
    def latent_channels(self) -> int:
        """Channels that are quantized and coded: M, or 1536 without the squeeze."""
        return self.M if self.squeeze else 2 * LEVEL_CHANNELS[-1]


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise AINNError(message)


def _check_kind(name: str, value: object, kind: type) -> None:
    """Raises AINNError unless ``value`` is of the annotated kind and, as a size, in range."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is ...:
            kinds = kinds[:1] * (len(value) if isinstance(value, tuple) else 0)
        _need(isinstance(value, tuple) and len(value) == len(kinds),
              f"{name} must have {len(kinds) or 'several'} entries, got {value!r}")
        for part, its_kind in zip(value, kinds, strict=True):
            _check_kind(name, part, its_kind)
    elif kind is bool:
        _need(isinstance(value, bool), f"{name} must be true or false, got {value!r}")
    elif kind is int:
        least = 0 if name in ("couplings", "cfrm_layers") else 1
        _need(isinstance(value, int) and not isinstance(value, bool)
              and least <= value <= MOST_CHANNELS,
              f"{name} must be a whole number from {least} to {MOST_CHANNELS}, got {value!r}")
    elif kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _need(number and math.isfinite(value), f"{name} must be a finite number, got {value!r}")


def _tuples(value: object) -> object:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


_SMALL = dict(
    shared_nets=True, couplings=(1, 1, 1, 1), kernels=(3, 3, 3, 1), hidden=(24, 24, 32, 40),
    M=192, N=32, input_offset=0.5, mask_widths=(8, 8, 16), cfrm_growth=16, cfrm_layers=2,
    pdm_skip=False, pdm_norm=False, align_corners=False,
    trainable_1x1=(False, False, False, False),
    hyper_out=96, context_out=64, parameter_widths=(128, 128),
    quantization="ste", variable_rate=True)
PRESETS: dict[str, dict] = {
    "paper": {},
    "student": dict(_SMALL, M=256, pdm="residual", lambdas=(0.0018, 0.25)),
    "tiny": dict(_SMALL, lambdas=(0.0018, 0.1)),
}
# Within one size all kinds of PDM have the same number of parameters, within a tenth (tested).
_PAPER_WIDTHS = {
    "unet": AINNConfig.pdm_widths,
    "residual": ((425, 427), (497, 491), (501, 526)),
    "dense": ((162, 168), (170, 190), (188, 188)),
}
_SMALL_WIDTHS = {
    "unet": ((16, 16), (16, 24, 24), (16, 16, 16, 16)),
    "residual": ((11, 10), (25, 27), (25, 28)),
    "dense": ((8, 7), (11, 12), (9, 11)),
}


def preset(name: str, **overrides) -> AINNConfig:
    """The configuration of a ready-made size, with changes; the PDM's widths follow its kind.

    Raises:
        AINNError: for an unknown preset, an unknown field, or values that do not fit.

    >>> preset("tiny", pdm="dense").pdm_widths[0]
    (8, 7)
    """
    if name not in PRESETS:
        raise AINNError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(AINNConfig)}
    if unknown := sorted(set(overrides) - known):
        raise AINNError(f"AINNConfig has no field {', '.join(unknown)}")
    settings = {**PRESETS[name], **overrides}
    widths = _PAPER_WIDTHS if name == "paper" else _SMALL_WIDTHS
    kind = settings.get("pdm", "unet")
    settings.setdefault("pdm_widths", widths.get(kind, widths["unet"]))
    return AINNConfig(**settings)
