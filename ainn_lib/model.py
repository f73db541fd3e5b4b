"""The codec's network: `AINNConfig` says what it is made of, `AINN` is it."""

import dataclasses
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import MaskedConv2d, conv3x3, subpel_conv3x3
from compressai.models import CompressionModel
from torch import Tensor, nn

from .cfrm import CFRM, MSCFRM
from .context import sequential_latent
from .errors import AINNError
from .fdsm import FDSMDecomposition, FDSMSynthesis
from .invertible import Level
from .pdm import KINDS, PDM
from .rate import RateControl, snap
from .stages import Stage, run_stages

LEVEL_CHANNELS = (12, 48, 192, 768)
DEFAULT_QUALITY = 4.0


@dataclass(frozen=True)
class AINNConfig:
    """Everything that shapes an `AINN`. The defaults are the authors' network at N = M = 192.

    Raises:
        AINNError: at construction, with one sentence that names the field, when the values do not fit together.

    >>> AINNConfig(M=100)
    Traceback (most recent call last):
    ...
    ainn_lib.errors.AINNError: M must divide 768, got 100
    """

    M: int = 192  #: latent channels after the squeeze; divides 768
    N: int = 192  #: hyper-latent channels
    squeeze: bool = True  #: False: all 1536 channels are coded (then M and CFRM are not used)
    couplings: tuple[int, ...] = (3, 3, 3, 3)  #: coupling layers at levels 1-4
    kernels: tuple[int, ...] = (5, 5, 3, 3)  #: kernel of the coupling nets at levels 1-4
    hidden: tuple[int, ...] = LEVEL_CHANNELS  #: their width at levels 1-4
    shared_nets: bool = False  #: one net with two outputs in place of separate G and H
    clamp: float = 1.0  #: c, bound of the coupling's log scale
    trainable_1x1: tuple[bool, ...] = (True, True, True, True)  #: False: W stays fixed and its inverse cached
    tied: bool = True  #: the synthesis inverts the analysis with its weights; False: with its own, the non-invertible peer
    input_offset: float = 0.0  #: subtracted from x, added to the reconstruction
    fdsm: bool = True
    mask_widths: tuple[int, ...] = (32, 64, 128)  #: mask net of FDSM-S
    cfrm: bool = True
    cfrm_growth: int = 192
    cfrm_layers: int = 3
    ms_cfrm: bool = False
    pdm: str = "unet"  #: unet, residual, dense or none
    pdm_widths: tuple[tuple[int, ...], ...] = ((384, 384), (192, 384, 384), (96, 192, 384, 384))  #: levels 4, 3, 2
    pdm_skip: bool = True  #: v + 0.2 (v + net(v)), the authors'; False: v + 0.2 net(v)
    pdm_norm: bool = True  #: batch norm in the U-Net
    align_corners: bool = True  #: of the U-Net's upsampling; False gives it a finite receptive field
    hyper_out: int = 384  #: channels of the hyper-synthesis output
    context_out: int = 384  #: channels of the context model's output
    parameter_widths: tuple[int, ...] = (640, 512)  #: hidden widths of the entropy-parameter net
    quantization: str = "noise"  #: noise, or ste: noise for the rate, straight-through rounding for the distortion
    variable_rate: bool = False  #: gains for a continuous quality from 1 to 8
    lambdas: tuple[float, ...] = (0.0018, 0.18)  #: λ at quality 1 and at quality 8, CompressAI's convention

    def __post_init__(self):
        for field in dataclasses.fields(self):  # a config read from JSON has lists
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
                object.__setattr__(self, field.name, value)
        def need(ok: bool, message: str) -> None:
            if not ok:
                raise AINNError(message)

        def positive(name: str, value: object) -> None:
            need(isinstance(value, int) and not isinstance(value, bool) and value > 0,
                 f"{name} must be a whole number above 0, got {value!r}")

        for name in ("M", "N", "cfrm_growth", "hyper_out", "context_out"):
            positive(name, getattr(self, name))
        need(768 % self.M == 0, f"M must divide 768, got {self.M}")
        for name, length in (("couplings", 4), ("kernels", 4), ("hidden", 4), ("trainable_1x1", 4), ("mask_widths", 3),
                             ("pdm_widths", 3), ("parameter_widths", 2), ("lambdas", 2)):
            value = getattr(self, name)
            need(isinstance(value, tuple) and len(value) == length, f"{name} must have {length} entries, got {value!r}")
        for name in ("hidden", "kernels", "mask_widths", "parameter_widths"):
            for value in getattr(self, name):
                positive(name, value)
        need(all(isinstance(n, int) and n >= 0 for n in self.couplings), f"couplings must be 0 or more, got {self.couplings}")
        need(all(k % 2 for k in self.kernels), f"kernels must be odd, got {self.kernels}")
        need(isinstance(self.cfrm_layers, int) and self.cfrm_layers >= 0, "cfrm_layers must be 0 or more")
        need(self.pdm in (*KINDS, "none"), f"pdm must be one of {', '.join(KINDS)}, none, got {self.pdm!r}")
        for widths, poolings in zip(self.pdm_widths, (1, 2, 3), strict=True):
            need(isinstance(widths, tuple) and len(widths) == poolings + 1,
                 "pdm_widths must hold 2, 3 and 4 widths for levels 4, 3 and 2")
            for value in widths:
                positive("pdm_widths", value)
            need(all(w % 2 == 0 for w in widths), f"pdm_widths must be even, got {widths}")
        need(self.quantization in ("noise", "ste"), f"quantization must be noise or ste, got {self.quantization!r}")
        for name, values in (("clamp", [self.clamp]), ("input_offset", [self.input_offset]), ("lambdas", self.lambdas)):
            need(all(isinstance(value, (int, float)) for value in values),
                 f"{name} must be numeric, got {getattr(self, name)!r}")
        need(0 < self.clamp <= 10, f"clamp must lie above 0 and at most 10, got {self.clamp}")
        need(not self.ms_cfrm or self.squeeze, "ms_cfrm needs the squeeze: without it nothing is to be recovered")
        need(not self.ms_cfrm or self.M % 4 == 0, "ms_cfrm needs M divisible by 4")
        need(0 < self.lambdas[0] <= self.lambdas[1], f"lambdas must be positive and rising, got {self.lambdas}")

    @property
    def latent_channels(self) -> int:
        """Channels that are quantized and coded: M, or 1536 without the squeeze."""
        return self.M if self.squeeze else 2 * LEVEL_CHANNELS[-1]


_SMALL = dict(
    shared_nets=True, couplings=(1, 1, 1, 1), input_offset=0.5, pdm_skip=False, pdm_norm=False, align_corners=False,
    quantization="ste", variable_rate=True, M=192, N=32, kernels=(3, 3, 3, 1), hidden=(24, 24, 32, 40), mask_widths=(8, 8, 16),
    cfrm_growth=16, cfrm_layers=2, pdm_widths=((16, 16), (16, 24, 24), (16, 16, 16, 16)), hyper_out=96, context_out=64,
    parameter_widths=(128, 128))
PRESETS: dict[str, dict] = {
    "paper": {},
    # goes on where tiny stops: its rotations no longer move, and its best quality is better
    "student": dict(_SMALL, trainable_1x1=(False, False, False, False), lambdas=(0.0018, 0.1)),
    "tiny": dict(_SMALL, trainable_1x1=(True, True, True, False), lambdas=(0.0018, 0.0483)),
}


class AINN(CompressionModel):
    r"""The approximately invertible codec: :math:`y = S\,F(x_L, x_H)`, :math:`\hat x = g_s(\hat y)`.

    Analysis and synthesis share the core's weights. Between them: channel squeeze, quantization and CompressAI's
    `Cheng2020Anchor` entropy model (hyperprior, 5x5 context, Gaussian mean and scale); in the synthesis CFRM, the
    inverse levels with a PDM behind each of levels 4, 3 and 2, and FDSM-S. Images are (B, 3, H, W) with values in
    [0, 1], H and W multiples of 16 (of 64 where CompressAI's own coder is to be used); latents are (B, M, H/16, W/16).

    Args:
        config: see `AINNConfig`; ``AINN.from_preset`` has ready ones.
    """

    def __init__(self, config: AINNConfig | None = None):
        super().__init__()
        self.config = c = config or AINNConfig()
        if c.fdsm:
            self.fdsm_d, self.fdsm_s = FDSMDecomposition(), FDSMSynthesis(c.mask_widths)
        def core() -> nn.ModuleList:
            return nn.ModuleList(
                Level(channels, *rest, clamp=c.clamp, shared=c.shared_nets, trainable=trainable)
                for channels, *rest, trainable in zip(LEVEL_CHANNELS, c.couplings, c.hidden, c.kernels, c.trainable_1x1,
                                                      strict=True))

        self.levels = core()
        if not c.tied:
            self.synthesis_levels = core()
        if c.squeeze and c.cfrm:
            self.cfrm = CFRM(c.M, c.cfrm_growth, c.cfrm_layers)
        if c.ms_cfrm:
            self.ms_cfrm = MSCFRM(c.M, c.cfrm_growth, c.cfrm_layers)
        if c.pdm != "none":
            self.pdm = nn.ModuleList(  # levels 4, 3, 2; low and high branch
                nn.ModuleList(PDM(c.pdm, channels, widths, c.pdm_skip, c.pdm_norm, c.align_corners) for _ in range(2))
                for channels, widths in zip((192, 48, 12), c.pdm_widths, strict=True))

        M, N = c.latent_channels, c.N
        self.h_a = _sequence(conv3x3(M, N), conv3x3(N, N), conv3x3(N, N, stride=2), conv3x3(N, N), conv3x3(N, N, stride=2))
        wide = N * 3 // 2
        self.h_s = _sequence(conv3x3(N, N), subpel_conv3x3(N, N, 2), conv3x3(N, wide), subpel_conv3x3(wide, wide, 2),
                             conv3x3(wide, c.hyper_out))
        self.context_prediction = MaskedConv2d(M, c.context_out, kernel_size=5, padding=2)
        # else only `forward` masks, and the identity would change
        self.context_prediction.weight.data *= self.context_prediction.mask
        first, second = c.parameter_widths
        self.entropy_parameters = _sequence(
            nn.Conv2d(c.hyper_out + c.context_out, first, 1), nn.Conv2d(first, second, 1), nn.Conv2d(second, 2 * M, 1))
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.gaussian_conditional = GaussianConditional(None)
        if c.variable_rate:
            self.rate_control = RateControl(M)

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "AINN":
        """A fresh network of a ready-made size: "paper" (215.8 M parameters), "student" or "tiny".

        Raises:
            AINNError: for an unknown preset, an unknown field or values that do not fit.
        """
        if name not in PRESETS:
            raise AINNError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        known = {field.name for field in dataclasses.fields(AINNConfig)}
        if unknown := sorted(set(overrides) - known):
            raise AINNError(f"AINNConfig has no field {', '.join(unknown)}")
        return cls(AINNConfig(**{**PRESETS[name], **overrides}))

    @classmethod
    def from_official_state_dict(cls, state_dict: dict) -> "AINN":
        """The authors' network from a state dict in their layout; see `ainn_lib.official`."""
        from .official import load_official

        return load_official(cls(), state_dict)

    # -- transforms -----------------------------------------------------------------------------------------------

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) -> the branch inputs x_L, x_H. Without FDSM both are x."""
        x = x - self.config.input_offset
        return self.fdsm_d(x) if self.config.fdsm else (x, x)

    def join(self, low: Tensor, high: Tensor) -> tuple[Tensor]:
        """The branch outputs -> reconstruction (B, 3, H, W), not clamped. Without FDSM their mean."""
        x = self.fdsm_s(low, high) if self.config.fdsm else (low + high) / 2
        return (x + self.config.input_offset,)

    @property
    def cores(self) -> list[nn.ModuleList]:
        """The four levels once, or twice where the synthesis has its own (the non-invertible peer)."""
        return [self.levels] if self.config.tied else [self.levels, self.synthesis_levels]

    def inverse_level(self, number: int) -> Level:
        """The level whose inverse the synthesis uses at level 1 to 4: the analysis's own, or the peer's separate one."""
        return self.cores[-1][number - 1]

    def channel_squeeze(self, low: Tensor, high: Tensor) -> tuple[Tensor]:
        """S: the mean over the groups of M channels of both branches, (B, 768, h, w) twice -> (B, M, h, w)."""
        u = torch.cat([low, high], dim=1)
        if self.config.squeeze:
            b, channels, h, w = u.shape
            u = u.reshape(b, channels // self.config.M, self.config.M, h, w).mean(1)
        return (u,)

    def recover(self, y: Tensor) -> tuple[Tensor, ...]:
        """CFRM: y (B, M, h, w) -> both branches (B, 768, h, w). Without CFRM y is copied to all groups.

        With MS-CFRM y itself comes third: it goes along to the middle scale.
        """
        if not self.config.squeeze:
            return y.chunk(2, dim=1)
        if self.config.cfrm:
            low, high = self.cfrm(y)
        else:
            low = high = y.repeat(1, LEVEL_CHANNELS[-1] // self.config.M, 1, 1)
        return (low, high, y) if self.config.ms_cfrm else (low, high)

    def analysis_stages(self) -> list[Stage]:
        """g_a as stages: FDSM-D, levels 1-4, channel squeeze. Maps in: x; out: y."""
        stages = [Stage("FDSM-D", self.split, reach=5 if self.config.fdsm else 0)]
        for number, level in enumerate(self.levels, start=1):
            stages.append(Stage(f"level {number}", level, reach=2 * level.reach, step=0.5, align=2))
        return [*stages, Stage("channel squeeze", self.channel_squeeze)]

    def synthesis_stages(self) -> list[Stage]:
        """g_s as stages: CFRM, inverse levels 4-1 with MS-CFRM and PDM between them, FDSM-S. Maps in: y; out: x_hat."""
        c = self.config
        stages = [Stage("CFRM", self.recover, reach=c.cfrm_layers if c.cfrm and c.squeeze else 0)]
        for number in (4, 3, 2, 1):
            level = self.inverse_level(number)
            if number == 4 and c.ms_cfrm:
                stages.append(Stage("inverse level 4", self._inverse_carrying_y, reach=level.reach, step=2))
                stages.append(Stage("MS-CFRM", self.ms_cfrm, reach=c.cfrm_layers))
            else:
                stages.append(Stage(f"inverse level {number}", level.inverse, reach=level.reach, step=2))
            if number > 1 and c.pdm != "none":
                net = self.pdm[4 - number][0].net
                stages.append(Stage(f"PDM {number}", partial(self._denoise, 4 - number), reach=net.reach, align=net.align))
        return [*stages, Stage("FDSM-S", self.join, reach=self.fdsm_s.reach if c.fdsm else 0, align=8 if c.fdsm else 1)]

    def _inverse_carrying_y(self, low: Tensor, high: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (*self.inverse_level(4).inverse(low, high), F.pixel_shuffle(y, 2))

    def _denoise(self, stage: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        denoise_low, denoise_high = self.pdm[stage]
        return denoise_low(low), denoise_high(high)

    def g_a(self, x: Tensor, tile: int | None = None) -> Tensor:
        """Analysis transform: image (B, 3, H, W) in [0, 1] -> latent y (B, M, H/16, W/16), before any gain.

        ``tile``: side in pixels of overlapping tiles for large photos; see `run_stages`.
        """
        return run_stages(self.analysis_stages(), (x,), tile)[0]

    def g_s(self, y: Tensor, tile: int | None = None) -> Tensor:
        """Synthesis transform: latent (B, M, h, w) -> image (B, 3, 16h, 16w), not clamped. ``tile`` as in `g_a`."""
        return run_stages(self.synthesis_stages(), (y,), tile)[0]

    # -- rate -----------------------------------------------------------------------------------------------------

    def gains(self, quality: float | Tensor | None, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Gain, inverse gain and entropy bias at a quality (default 4); (1, 1, 0) on a fixed-rate network.

        Raises:
            AINNError: for a quality on a fixed-rate network, and for a number that does not lie from 1 to 8.
        """
        like = self.entropy_bottleneck.quantiles
        if not self.config.variable_rate:
            if quality is not None:
                raise AINNError("this network has one fixed rate; it takes no quality")
            return like.new_ones(1), like.new_ones(1), like.new_zeros(1)
        quality = DEFAULT_QUALITY if quality is None else quality
        if not isinstance(quality, Tensor):
            snap(quality)  # raises where it is out of range: the gains would silently be 0
        return self.rate_control(torch.as_tensor(quality, dtype=like.dtype, device=like.device).expand(batch))

    def gaussian_parameters(self, hyper: Tensor, context: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and mean (each B, M, h, w) of the quantized latent from hyper-synthesis and context outputs."""
        return (self.entropy_parameters(torch.cat([hyper, context], dim=1)) + bias).chunk(2, dim=1)

    def forward(self, x: Tensor, quality: float | Tensor | None = None,
                noise: tuple[Tensor, Tensor] | None = None) -> dict:
        """Reconstruction and likelihoods, as CompressAI's models return them.

        Args:
            x: (B, 3, H, W) in [0, 1], H and W multiples of 16.
            quality: one number or (B,), from 1 to 8, on a variable-rate network.
            noise: in training, uniform noise in ±1/2 for y (B, M, H/16, W/16) and z (B, N, ceil(H/64), ceil(W/64)); drawn afresh
                where None.

        Returns:
            ``x_hat`` (B, 3, H, W), not clamped, and ``likelihoods`` of ``y`` and ``z``. In evaluation mode, with
            quantization "noise", x_hat comes from round(y) as in CompressAI; a file's reconstruction comes from
            round(y - mean) + mean (`codec.reconstruct` gives that one).
        """
        gain, inverse_gain, bias = self.gains(quality, x.shape[0])
        y_hat, likelihoods = self.quantize(self.g_a(x) * gain, bias, noise)
        return {"x_hat": self.g_s(y_hat * inverse_gain), "likelihoods": likelihoods}

    def quantize(self, y: Tensor, bias: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The entropy model's part of `forward`: latent with its gain -> quantized latent, likelihoods of y and z.

        With quantization "ste" the latent is the one that a file holds, in training too, and without training the
        likelihoods are those of the file's symbols.
        """
        with torch.autocast("cpu" if y.is_meta else y.device.type, enabled=False):  # bfloat16 cannot tell the symbols apart
            y = y.to(self.context_prediction.weight.dtype)
            z = self.h_a(y)
            noise_y, noise_z = noise or (torch.rand_like(y) - 0.5, torch.rand_like(z) - 0.5)
            z_hat, z_likelihoods = self._hyper_latent(z, noise_z)
            hyper = self.h_s(z_hat)[:, :, : y.shape[2], : y.shape[3]]  # longer where y is no multiple of 4
            noisy = y + noise_y if self.training else None
            if self.config.quantization == "noise":
                y_hat = torch.round(y) if noisy is None else noisy
                coded = y if noisy is None else noisy
            else:
                seen = sequential_latent(y, hyper, bias, self.context_prediction, self.entropy_parameters)
                y_hat = y + (seen - y).detach()  # straight-through
                coded = y_hat if noisy is None else noisy
            scales, means = self.gaussian_parameters(hyper, self.context_prediction(y_hat), bias)
            return y_hat, {"y": self._gaussian_likelihood(coded, scales, means), "z": z_likelihoods}

    def _gaussian_likelihood(self, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        if not self.training:
            return self.gaussian_conditional(y, scales, means, training=False)[1]
        gaussian = self.gaussian_conditional  # the noise is already in y: `forward` would draw it again
        return gaussian.likelihood_lower_bound(gaussian._likelihood(y, scales, means))

    def _hyper_latent(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        bottleneck = self.entropy_bottleneck
        if not self.training:
            return bottleneck(z, training=False)
        b, channels, h, w = z.shape
        values = (z + noise).transpose(0, 1).reshape(channels, 1, -1)
        likelihood = bottleneck.likelihood_lower_bound(bottleneck._likelihood(values)[0])
        likelihood = likelihood.reshape(channels, b, h, w).transpose(0, 1)
        if self.config.quantization == "noise":
            return z + noise, likelihood
        return _round_through(z, bottleneck._get_medians().detach()[None]), likelihood


def _sequence(*convs: nn.Module) -> nn.Sequential:
    """The convolutions with LeakyReLU between them, numbered as in CompressAI."""
    steps = [step for conv in convs for step in (conv, nn.LeakyReLU())]
    return nn.Sequential(*steps[:-1])


def _round_through(y: Tensor, means: Tensor) -> Tensor:
    """round(y - mean) + mean in value; its gradient is that of y (straight-through)."""
    return y + (torch.round(y - means) + means - y).detach()
