"""Photos on the device that trains, and batches drawn there: a GPU waits for nothing."""

import numpy as np
import torch
from torch import Tensor

from ..network.config import AINNConfig
from ..network.entropy_model import QUALITIES
from .recipe import Recipe


class PhotosOnDevice:
    """All photos as one tensor of bytes on a device.

    Args:
        images: uint8 tensors (3, H, W), no smaller than the crops.
    """

    def __init__(self, images: list[Tensor], device: torch.device):
        sizes = torch.tensor([image.numel() for image in images])
        self.pixels = torch.cat([image.reshape(-1) for image in images]).to(device)
        self.starts = (sizes.cumsum(0) - sizes).to(device)
        sides = torch.tensor([image.shape[1:] for image in images]).to(device)
        self.heights, self.widths = sides.unbind(1)

    def draw(self, config: AINNConfig, recipe: Recipe, step: int) -> dict[str, Tensor]:
        """One batch, as `draw_sample` makes samples.

        It follows from (seed, step); another kind of device draws another.
        """
        device, count, patch = self.pixels.device, recipe.batch, recipe.patch
        seed = np.random.SeedSequence([recipe.seed, step]).generate_state(1)
        generator = torch.Generator(device).manual_seed(int(seed[0]))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        def below(bounds: Tensor) -> Tensor:
            """Whole numbers below each of the bounds; rounding may not reach the bound itself."""
            return torch.minimum((uniform(count) * bounds).long(), bounds - 1)

        photo = below(torch.full((count,), len(self.starts), device=device))
        height, width = self.heights[photo], self.widths[photo]
        top, left = below(height - patch + 1), below(width - patch + 1)
        mirrored, turned = uniform(2, count, 1, 1) < 0.5
        along = torch.arange(patch, device=device)
        row, column = torch.meshgrid(along, along, indexing="ij")
        row, column = torch.where(turned, column, row), torch.where(turned, row, column)
        column = torch.where(mirrored, patch - 1 - column, column)
        top, left, height, width, start = (
            v[:, None, None] for v in (top, left, height, width, self.starts[photo]))
        place = start + (top + row) * width + left + column  # in the first colour
        colours = torch.arange(3, device=device)[:, None, None]
        crops = self.pixels[place[:, None] + colours * (height * width)[:, None]]
        lowest, highest = QUALITIES
        part = (torch.arange(count, device=device) + uniform(count)) / count
        y_side, z_side = patch // 16, patch // 64
        return {
            "x": crops.float() / 255,
            "quality": lowest + (highest - lowest) * part,
            "noise_y": uniform(count, config.latent_channels, y_side, y_side) - 0.5,
            "noise_z": uniform(count, config.N, z_side, z_side) - 0.5,
        }
