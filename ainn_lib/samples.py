"""What a network is trained on: photos in memory, some of them held out, and samples drawn from (seed, step, index)."""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import data
from .errors import UNREADABLE, AINNError
from .model import AINNConfig
from .rate import QUALITIES
from .recipe import Recipe


def load_photos(source: str | Path, smallest: int = 128) -> tuple[list[str], list[Tensor]]:
    """Names and uint8 tensors (3, H, W) of the photos of a data set or folder that are no smaller than a crop, by name.

    Raises:
        AINNError: when the data set or folder is not here, holds no such photo or one that cannot be read, or holds an image
            that is for evaluation only (known by the SHA-256 of its pixels or its file).
    """
    paths, reserved = data.images(source), data.evaluation_hashes()
    names, images = [], []
    for name, path in paths.items():
        try:
            packed = path.read_bytes()
            with Image.open(io.BytesIO(packed)) as image:
                pixels = np.array(image.convert("RGB")) if min(image.size) >= smallest else None
        except UNREADABLE as error:
            raise AINNError(f"{path} cannot be read as an image: {error}") from None
        if pixels is None:
            continue
        if {hashlib.sha256(packed).hexdigest(), hashlib.sha256(pixels.tobytes()).hexdigest()} & reserved:
            raise AINNError(f"{name} is an image for evaluation: nothing may be trained on it; take it out of {source}")
        names.append(name)
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    if not images:
        raise AINNError(f"{source} holds no photo of at least {smallest} pixels a side")
    return names, images


def hold_out(names: list[str], images: list[Tensor]) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Every twelfth photo (of fewer than twelve, the last) is kept for validation: names and images to train on, and at
    most 8 images to validate on. Raises AINNError for a single photo.

    >>> hold_out([str(i) for i in range(13)], list(range(13)))[2]
    [11]
    """
    count = len(images)
    if count < 2:
        raise AINNError("two photos are needed at least: one of them is for validation")
    kept = [i for i in range(count) if i % 12 == 11 or i == count - 1 < 11]
    validation = [images[i] for i in kept]
    rest = [i for i in range(count) if i not in kept]
    return [names[i] for i in rest], [images[i] for i in rest], validation[::max(1, len(validation) // 8)][:8]


def draw_sample(images: list[Tensor], config: AINNConfig, recipe: Recipe, step: int, index: int) -> dict[str, Tensor]:
    """One training sample, a function of (seed, step, index) alone: crop, quality and quantization noise."""
    rng = np.random.default_rng([recipe.seed, step, index])
    image = images[rng.integers(len(images))]
    top, left = (int(rng.integers(side - recipe.patch + 1)) for side in image.shape[1:])
    crop = image[:, top:top + recipe.patch, left:left + recipe.patch]
    if rng.random() < 0.5:
        crop = crop.flip(2)
    if rng.random() < 0.5:
        crop = crop.transpose(1, 2)
    small = recipe.patch // 16
    return {
        "x": crop.float() / 255,
        # every batch goes through the qualities from low to high
        "quality": torch.tensor(QUALITIES[0] + (QUALITIES[1] - QUALITIES[0]) * (index + rng.random()) / recipe.batch,
                                dtype=torch.float32),
        "noise_y": torch.from_numpy(rng.random((config.latent_channels, small, small), dtype=np.float32) - 0.5),
        "noise_z": torch.from_numpy(rng.random((config.N, small // 4, small // 4), dtype=np.float32) - 0.5),
    }
