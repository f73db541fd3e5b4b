"""What the paper does not show: re-encoding for generations, and where quality saturates at high rates."""

import copy
from dataclasses import dataclass

import torch
from PIL import Image

from . import codec, inside, recovery
from .codecs import Codec
from .errors import AINNError
from .metrics import psnr
from .model import AINN


@dataclass(frozen=True)
class Generation:
    """One file in a chain in which each is made from the picture before it."""

    number: int  #: 1 is made from the original
    bytes: int
    psnr: float  #: dB, against the original
    change: float  #: dB, against the picture before; inf: not a pixel changed


def generations(subject: Codec, image: Image.Image, setting: float, count: int = 10) -> list[Generation]:
    """Encodes and decodes ``count`` times in a row, at one setting, the 8-bit picture each time.

    Raises:
        AINNError: for a count below 1, and as the codec does.
    """
    if count < 1:
        raise AINNError(f"count must be at least 1, got {count}")
    picture, chain = image.convert("RGB"), []
    for number in range(1, count + 1):
        data = subject.encode(picture, setting)
        decoded = subject.decode(data)
        chain.append(Generation(number, len(data), psnr(image, decoded), psnr(picture, decoded)))
        picture = decoded
    return chain


def finer(model: AINN, factor: float) -> AINN:
    r"""A copy of a variable-rate network whose quantization steps are Δ/factor at every quality; otherwise the same weights.

    Nothing in it was trained for that, but its files are real: latent, noise and picture are those of a finer quantizer.

    Raises:
        AINNError: for a network with one rate, or a factor that is not above 0.
    """
    if not model.config.variable_rate or not factor > 0:
        raise AINNError("finer steps need a variable-rate network and a factor above 0")
    model = copy.deepcopy(model)
    model.rate_control.move((1.0, 1.0), (factor**2, factor**2))  # steps go with the root of λ
    return model


@dataclass(frozen=True)
class Saturation:
    """How good a picture gets when bits cost nothing; PSNR in dB of the 8-bit picture."""

    bpp: tuple[float, ...]  #: of real files, at finer and finer steps
    psnr: tuple[float, ...]
    ceiling: float  #: from y g g' without rounding
    whole: float  #: from u with the same factors, squeeze and CFRM left out; nan for the peer, which does not invert F
    exact: float  #: from u itself, PDM left out as well: F⁻¹ and FDSM-S alone; nan likewise


@torch.no_grad()
def saturation(model: AINN, image: Image.Image, factors: tuple[float, ...] = (1, 2, 4, 8)) -> Saturation:
    """Files of one image at quality 8 with steps that are ``factors`` times finer, and what limits them.

    Raises:
        AINNError: for a side that is no multiple of 16, and as `finer`.
    """
    files = []
    for factor in factors:
        network = finer(model, factor)
        data = codec.encode(image, network, 8.0)
        files.append((8 * len(data) / (image.width * image.height), psnr(image, codec.decode(data, network))))
    start, whole, exact = inside.coded(model, image, 8.0), float("nan"), float("nan")

    def quality(x_hat: torch.Tensor) -> float:
        return psnr(image, Image.fromarray(inside.picture(x_hat)))

    if model.config.tied and model.config.squeeze and not model.config.ms_cfrm:
        u, _ = recovery.core_output(model, start.x)
        gain, inverse_gain, _ = model.gains(8.0)
        scaled = u * torch.cat(recovery.plain_copy(gain * inverse_gain), dim=1)
        whole, exact = quality(_from_core(model, scaled, pdm=True)), quality(_from_core(model, u, pdm=False))
    return Saturation(*zip(*files, strict=True), quality(model.g_s(start.unrounded)), whole, exact)


def _from_core(model: AINN, u: torch.Tensor, pdm: bool) -> torch.Tensor:
    maps = u.chunk(2, dim=1)
    for stage in model.synthesis_stages()[1:]:
        if pdm or not stage.name.startswith("PDM"):
            maps = stage.run(*maps)
    return maps[0]
