"""Where quality saturates at high rates."""

import copy
import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .. import codec
from ..errors import AINNError
from ..measure.evaluate import without
from ..measure.metrics import psnr
from ..network.model import AINN
from .activations import coded, psnr_of
from .recovery import core_output, plain_copy


def with_finer_steps(model: AINN, factor: float) -> AINN:
    """A copy of a variable-rate network with quantization steps Δ/factor at every quality.

    It was not trained for these steps, but its files are real. Raises AINNError for a fixed-rate
    network.
    """
    if not model.config.variable_rate:
        raise AINNError("finer steps need a variable-rate network")
    model = copy.deepcopy(model)
    model.rate_control.rescale_steps((1.0, 1.0), (factor**2, factor**2))  # Δ goes with 1/√λ
    return model


class Saturation(NamedTuple):
    """PSNR of one image, in dB, when bits cost nothing."""

    bpp: tuple[float, ...]  #: of real files, at finer and finer steps
    psnr: tuple[float, ...]
    ceiling: float  #: from y g g' without rounding
    whole: float  #: from u g g', without squeeze and CFRM; nan where F is not inverted
    exact: float  #: from u, without PDM as well: F⁻¹ and FDSM-S alone; nan likewise


@torch.no_grad()
def saturation(model: AINN, image: Image.Image,
               factors: tuple[float, ...] = (1, 2, 4, 8)) -> Saturation:
    """Files of an image at quality 8 with ``factors`` times finer steps, and what limits them.

    Raises AINNError for a side that is no multiple of 16, and as `with_finer_steps`.
    """
    start, files = coded(model, image, 8.0), []
    for factor in factors:
        network = with_finer_steps(model, factor)
        data = codec.encode(image, network, 8.0)
        bpp = 8 * len(data) / (image.width * image.height)
        files.append((bpp, psnr(image, codec.decode(data, network))))

    def from_core(network: AINN, u: Tensor) -> float:
        (x_hat,) = network.g_s.run(u.chunk(2, dim=1), start="inverse_level4")
        return psnr_of(x_hat, start.x)

    ceiling, whole, exact = psnr_of(model.g_s(start.unrounded), start.x), math.nan, math.nan
    if model.config.tied and model.config.squeeze and not model.config.ms_cfrm:
        u, _ = core_output(model, start.x)
        gain, inverse_gain, _ = model.gains(8.0)
        whole = from_core(model, u * torch.cat(plain_copy(gain * inverse_gain), dim=1))
        exact = from_core(without(model, "PDM"), u)
    return Saturation(*zip(*files, strict=True), ceiling, whole, exact)
