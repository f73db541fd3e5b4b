"""How good a reconstruction is."""

import numpy as np
import torch
from PIL import Image
from pytorch_msssim import ms_ssim as _ms_ssim

from .errors import AINNError

MS_SSIM_SMALLEST = 161  #: five scales of an 11x11 window need more than 160 pixels a side


def psnr(image: Image.Image, reconstruction: Image.Image) -> float:
    r"""Peak signal-to-noise ratio in dB of two 8-bit RGB images, :math:`10\log_{10}(255^2/\mathrm{MSE})`; inf where equal.

    >>> round(psnr(Image.new("RGB", (8, 8), (10, 10, 10)), Image.new("RGB", (8, 8), (12, 12, 12))), 2)
    42.11
    """
    a, b = _pair(image, reconstruction)
    mse = np.mean((a - b) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ms_ssim(image: Image.Image, reconstruction: Image.Image) -> float | None:
    """Multi-scale structural similarity of two 8-bit RGB images, from 0 to 1; None where a side has under 161 pixels."""
    a, b = _pair(image, reconstruction)
    if min(a.shape[:2]) < MS_SSIM_SMALLEST:
        return None
    a, b = (torch.from_numpy(v).float().permute(2, 0, 1)[None] for v in (a, b))  # float64 takes four times as long
    return float(_ms_ssim(a, b, data_range=255.0))


def _pair(image: Image.Image, reconstruction: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    if image.size != reconstruction.size:
        raise AINNError(f"the images differ in size: {image.size} and {reconstruction.size}")
    return tuple(np.asarray(v.convert("RGB")).astype(np.float64) for v in (image, reconstruction))
