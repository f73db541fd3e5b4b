"""How good a reconstruction is."""

import numpy as np
import pytorch_msssim
import torch
from PIL import Image

from ..errors import AINNError

MS_SSIM_SMALLEST = 161  #: pixels: five scales of an 11x11 window need more than 160 a side


def psnr(image: Image.Image, reconstruction: Image.Image) -> float:
    r"""Peak signal-to-noise ratio in dB of two 8-bit RGB images; inf for equal ones.

    It is :math:`10\log_{10}(255^2/\mathrm{MSE})`. Raises AINNError for images of different sizes.

    >>> one, two = (Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in (10, 12))
    >>> round(psnr(one, two), 2)
    42.11
    """
    a, b = _arrays(image, reconstruction)
    mse = np.mean((a - b) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ms_ssim(image: Image.Image, reconstruction: Image.Image) -> float | None:
    """Multi-scale structural similarity of two 8-bit RGB images, from 0 to 1.

    None where a side has under 161 pixels. Raises AINNError for images of different sizes.
    """
    a, b = _arrays(image, reconstruction)
    if min(a.shape[:2]) < MS_SSIM_SMALLEST:
        return None
    # float32: float64 takes four times as long
    a, b = (torch.from_numpy(v).float().permute(2, 0, 1)[None] for v in (a, b))
    return float(pytorch_msssim.ms_ssim(a, b, data_range=255.0))


def _arrays(image: Image.Image, reconstruction: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    if image.size != reconstruction.size:
        raise AINNError(f"the images differ in size: {image.size} and {reconstruction.size}")
    a, b = (np.asarray(v.convert("RGB")).astype(np.float64) for v in (image, reconstruction))
    return a, b
