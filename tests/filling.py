"""Reproducible numbers for every tensor of the authors' layout, and a test image.

It is our own code for the golden vectors. Each tensor is drawn in float64 from a generator seeded
with the CRC-32 of "seed:key". Kind of tensor -> distribution:

    rotation (1x1 matrices)    Q of the QR decomposition, its columns' signs those of R's diagonal
    other weights              0.6 / sqrt(fan-in) times a standard normal
    biases, running means      0.02 times a standard normal
    batch norm's scale         1 + 0.1 times a standard normal (running variance: absolute value)
    entropy bottleneck         CompressAI's starting values, biases a clipped normal,
                               quantiles -10, 0, 10
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).with_name("golden")


def official_shapes() -> dict[str, tuple[int, ...]]:
    return {
        key: tuple(shape)
        for key, shape in json.loads((GOLDEN / "official_keys.json").read_text()).items()
    }


def fill(seed: int) -> dict[str, torch.Tensor]:
    return {key: _tensor(key, shape, seed) for key, shape in official_shapes().items()}


def _tensor(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    last = key.split(".")[-1]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{key}".encode()))
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if key.startswith("entropy_bottleneck"):
        if last == "quantiles":
            return torch.tensor([-10.0, 0.0, 10.0]).repeat(shape[0], 1, 1)
        if last.startswith("_matrix"):
            return torch.full(shape, math.log(math.expm1(10 ** (-1 / 5) / shape[1])))
        return (
            (normal / 4).clamp(-0.5, 0.5).float()
            if last.startswith("_bias")
            else torch.zeros(shape)
        )
    if last in ("bias", "running_mean"):
        return (0.02 * normal).float()
    if last == "running_var":
        return (1 + 0.1 * normal.abs()).float()
    if "inv_conv" in key:
        q, r = torch.linalg.qr(normal)
        return (q * r.diagonal().sign()).float()
    if len(shape) == 1:
        return (1 + 0.1 * normal).float()
    return (normal * (0.6 / math.sqrt(math.prod(shape[1:])))).float()


def image(height: int, width: int, seed: int) -> torch.Tensor:
    """Smooth colours, an edge and noise, (1, 3, height, width) in [0, 1]."""
    y = torch.linspace(0, 1, height, dtype=torch.float64)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width, dtype=torch.float64)[None].expand(height, width)
    colours = [0.5 + 0.3 * torch.sin(6.0 * (c + 1) * x + 4.0 * (3 - c) * y) for c in range(3)]
    edge = 0.15 * ((x + 0.7 * y) > 0.8)
    noise = torch.randn(
        (1, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (torch.stack(colours)[None] + edge + 0.03 * noise).clamp(0, 1).float()


def vectors() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden_1.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}
