"""Dead leaves: synthetic images with the statistics of photographs, to train on where no photos are at hand."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from .data import arriving
from .errors import AINNError


def dead_leaves(size: int, seed: int | list[int]) -> Image.Image:
    """A synthetic image with the statistics of photographs: leaves that lie one upon the other, until all is covered.

    Discs and, three in ten, polygons of 3 to 6 corners, with density of radii p(r) ∝ r⁻³ between 1 pixel and half a side:
    scale invariance, hence a power spectrum ∝ f⁻² (Lee, Mumford and Huang 2001). Each leaf has a colour whose variance is
    mostly grey, then blue-yellow, then green-magenta; a gradient; and a grating or noise of one scale. Drawn at twice the
    size and averaged. The same ``size`` and ``seed`` give the same (size, size, 3) uint8 RGB image.

    Raises:
        AINNError: for a size below 16.

    >>> dead_leaves(32, 0).size
    (32, 32)
    """
    _check_size(size)
    rng = np.random.default_rng(seed)
    side, smallest, largest = 2 * size, 2.0, float(size)
    wide = side + 2 * largest  # centres outside the image too, or its border would differ from its middle
    mean_area = 2 * np.pi * np.log(largest / smallest) / (smallest**-2 - largest**-2)
    count = int(3.5 * wide**2 / mean_area)  # each point is covered 3.5 times on average; e^-3.5 = 3 % show the ground
    r = (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5  # inverse of the distribution function
    centre = rng.random((count, 2)) * wide - largest
    seen = ((centre + r[:, None] > 0) & (centre - r[:, None] < side)).all(1)
    r, centre = np.append(side, r[seen]), np.vstack([[size, size], centre[seen]])  # leaf 0 is the ground
    corners = np.where(rng.random(len(r)) < 0.3, rng.integers(3, 7, len(r)), 0)
    angle = 2 * np.pi * rng.random(len(r))

    canvas = Image.new("I", (side, side))
    draw = ImageDraw.Draw(canvas)
    shapes = zip(centre.tolist(), r.tolist(), corners.tolist(), np.degrees(angle).tolist(), strict=True)
    for i, ((x, y), radius, n, turn) in enumerate(shapes):
        if n:
            draw.regular_polygon((x, y, radius), n, turn, fill=i)
        else:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=i)
    leaf = np.asarray(canvas)  # (side, side): which leaf is on top

    y, x = np.mgrid[:side, :side]
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    colour = 0.5 + rng.normal(size=(len(r), 3)) * (0.4, 0.1, 0.05) @ axes
    slope = 0.15 * rng.normal(size=(2, len(r))) / r
    light = slope[0][leaf] * (x - centre[leaf, 0]) + slope[1][leaf] * (y - centre[leaf, 1])
    frequency = 2 * np.pi / (4 * 8 ** rng.random(len(r)))  # periods of 2 to 16 pixels of the final image
    grating = np.sin((frequency * np.cos(angle))[leaf] * x + (frequency * np.sin(angle))[leaf] * y)
    grids = (rng.normal(size=(side // cell, side // cell)).astype(np.float32) for cell in (2, 4, 8, 16))
    noise = np.stack([np.asarray(Image.fromarray(g).resize((side, side), Image.Resampling.BICUBIC)) for g in grids])
    kind = rng.integers(0, 8, len(r))[leaf]  # half of the leaves have a grating, the others noise of one of four scales
    texture = np.where(kind < 4, noise[kind % 4, y, x], grating)
    light += (0.05 * np.abs(rng.normal(size=len(r))))[leaf] * texture
    image = (colour[leaf] + light[..., None]).reshape(size, 2, size, 2, 3).mean((1, 3))
    return Image.fromarray((image.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def write_dead_leaves(folder: str | Path, count: int, size: int = 256, seed: int = 0, progress: bool = True) -> Path:
    """Write `dead_leaves` 0 to ``count`` - 1 of a seed as PNG files; returns the folder. Raises AINNError as it does."""
    if count < 1 or seed < 0:
        raise AINNError("dead leaves need a count of at least 1 and a seed of at least 0")
    _check_size(size)
    with arriving(Path(folder)) as scratch:
        for i in tqdm(range(count), desc="dead leaves", unit="image", disable=not progress):
            dead_leaves(size, [seed, i]).save(scratch / f"dead_leaves_{seed}_{i:05}.png")
    return Path(folder)


def radial_spectrum(image: Image.Image | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power over spatial frequency, averaged over directions: S(f) = mean of |FFT(w · (g − mean g))|² where |f_xy| ≈ f.

    g is the grey image (H, W), w a Hann window: without it the jump from one border to the other would add f⁻².

    Returns:
        Frequencies in cycles per pixel, up to 0.5 in steps of 1 / min(H, W), and the power at each.
    """
    grey = np.asarray(Image.fromarray(np.asarray(image)).convert("L"), dtype=float)
    window = np.outer(*(np.hanning(n) for n in grey.shape))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    steps = min(grey.shape)
    distance = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1]))
    ring = np.rint(distance * steps).astype(int).ravel()
    mean = np.bincount(ring, power.ravel()) / np.bincount(ring)
    k = np.arange(1, steps // 2 + 1)
    return k / steps, mean[k]


def _check_size(size: int) -> None:
    if size < 16:
        raise AINNError(f"dead leaves need a size of at least 16 pixels, not {size}")
