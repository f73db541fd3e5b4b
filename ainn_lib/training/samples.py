"""What a network is trained on: photos in memory, some of them held out, and random crops."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec.images import read_rgb
from ..errors import AINNError
from ..measure import datasets
from ..network.config import AINNConfig
from ..network.entropy_model import QUALITIES
from .recipe import Recipe

SMALLEST = 64  #: pixels, side of the smallest crop


def load_photos(source: str | Path) -> tuple[list[str], list[Tensor]]:
    """Names and uint8 tensors (3, H, W) of the photos of a data set or folder, sorted by name.

    Photos with a side below `SMALLEST` are left out. Raises AINNError when the data set or folder
    is missing, holds no such photo, one that cannot be read, or one that is for evaluation only
    (known by the SHA-256 of its pixels or of its file).
    """
    reserved = datasets.evaluation_hashes()
    names, images = [], []
    found = datasets.images(source)
    for name, path in found.items():
        pixels = read_rgb(path)
        if min(pixels.shape[:2]) < SMALLEST:
            continue
        hashes = {hashlib.sha256(path.read_bytes()), hashlib.sha256(pixels.tobytes())}
        if reserved & {h.hexdigest() for h in hashes}:
            raise AINNError(f"{name} is an image for evaluation: remove it from {source}")
        names.append(name)
        images.append(torch.tensor(pixels).permute(2, 0, 1).contiguous())
    if not images:
        raise AINNError(f"{source} holds no photo of at least {SMALLEST} pixels a side")
    _say_left_out(sorted(set(found) - set(names)), len(found), SMALLEST)
    return names, images


def hold_out(names: list[str], images: list[Tensor],
             patch: int = SMALLEST) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Hold out every twelfth photo (of fewer than twelve, the last) for validation.

    Which they are does not depend on ``patch``, so that runs with different crops compare.

    Returns:
        Names and images to train on, those with sides of at least ``patch`` pixels; and at most 8
        images to validate on.

    Raises:
        AINNError: for a single photo, or when none is large enough to train on.
    """
    count = len(images)
    if count < 2:
        raise AINNError("at least two photos are needed: one of them is for validation")
    held_out = list(range(11, count, 12)) or [count - 1]
    trained_on = [i for i in range(count)
                  if i not in held_out and min(images[i].shape[1:]) >= patch]
    if not trained_on:
        raise AINNError(f"no photo to train on has sides of at least {patch} pixels, the crop's")
    small = [names[i] for i in range(count) if i not in trained_on and i not in held_out]
    _say_left_out(small, count, patch)
    every = max(1, len(held_out) // 8)
    validation = [images[i] for i in held_out][::every][:8]
    return [names[i] for i in trained_on], [images[i] for i in trained_on], validation


def _say_left_out(names: list[str], total: int, side: int) -> None:
    if names:
        warnings.warn(f"{len(names)} of {total} photos are left out, since a side is below {side} "
                      f"pixels: {datasets.named(names)}", stacklevel=3)


def crop_to_multiple(image: Tensor, side: int) -> Tensor:
    """The upper left of an image (..., H, W), with height and width multiples of ``side``."""
    height, width = image.shape[-2:]
    return image[..., : height // side * side, : width // side * side]


def draw_sample(images: list[Tensor], config: AINNConfig, recipe: Recipe, step: int,
                index: int) -> dict[str, Tensor]:
    """One training sample, a function of (seed, step, index) alone.

    Returns ``x`` (3, patch, patch) in [0, 1], ``quality`` (scalar), and the uniform quantization
    noise of the latents, ``noise_y`` and ``noise_z``, in [-0.5, 0.5).
    """
    rng = np.random.default_rng([recipe.seed, step, index])
    image = images[rng.integers(len(images))]
    top, left = (int(rng.integers(side - recipe.patch + 1)) for side in image.shape[1:])
    crop = image[:, top : top + recipe.patch, left : left + recipe.patch]
    if rng.random() < 0.5:
        crop = crop.flip(2)
    if rng.random() < 0.5:
        crop = crop.transpose(1, 2)
    lowest, highest = QUALITIES
    part = (index + rng.random()) / recipe.batch  # a batch covers the qualities from low to high
    y_side, z_side = recipe.patch // 16, recipe.patch // 64
    noise_y = rng.random((config.latent_channels, y_side, y_side), dtype=np.float32) - 0.5
    noise_z = rng.random((config.N, z_side, z_side), dtype=np.float32) - 0.5
    return {
        "x": crop.float() / 255,
        "quality": torch.tensor(lowest + (highest - lowest) * part, dtype=torch.float32),
        "noise_y": torch.from_numpy(noise_y),
        "noise_z": torch.from_numpy(noise_z),
    }
