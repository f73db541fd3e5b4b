"""Dead leaves: synthetic images with the statistics of photographs, to train on without photos."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..codec.files import atomic_write, make_folder
from ..errors import AINNError


def dead_leaves(size: int, seed: int | list[int]) -> Image.Image:
    """A synthetic image with the statistics of photographs: leaves that cover one another.

    The leaves are discs and, three in ten, polygons of 3 to 6 corners, with density of radii
    p(r) ∝ r⁻³ between 1 pixel and half a side. The image is scale invariant, so its power spectrum
    is ∝ f⁻² (Lee, Mumford and Huang 2001). Each leaf has a colour, a gradient, and a grating or
    noise of one scale. It is drawn at twice the size and averaged. The same ``size`` and ``seed``
    give the same (size, size, 3) uint8 RGB image. Raises AINNError for a size below 16.

    >>> dead_leaves(32, 0).size
    (32, 32)
    """
    _check_size(size)
    rng = np.random.default_rng(seed)
    centre, radius, corners, angle = _scatter(size, rng)
    canvas = Image.new("I", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    for i, ((x, y), r) in enumerate(zip(centre, radius, strict=True)):
        if corners[i]:
            draw.regular_polygon((x, y, r), int(corners[i]), np.degrees(angle[i]), fill=i)
        else:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=i)
    colour = _colour(centre, radius, angle, np.asarray(canvas), rng)
    image = colour.reshape(size, 2, size, 2, 3).mean((1, 3))
    return Image.fromarray((image.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _scatter(size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Leaves that cover a square of side 2 size. Leaf 0 is the ground below all others.

    Centres (n, 2), x and y; radii, numbers of corners (0: a disc) and angles, (n,).
    """
    side, smallest, largest = 2 * size, 2.0, float(size)
    wide = side + 2 * largest  # centres outside the image too, so that its border is as its middle
    mean_area = 2 * np.pi * np.log(largest / smallest) / (smallest**-2 - largest**-2)
    # each point is covered 3.5 times on average; exp(-3.5) = 3 % show the ground
    count = int(3.5 * wide**2 / mean_area)
    # the inverse of the radii's distribution function
    radius = (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5
    centre = rng.random((count, 2)) * wide - largest
    seen = ((centre + radius[:, None] > 0) & (centre - radius[:, None] < side)).all(1)
    radius = np.append(side, radius[seen])
    centre = np.vstack([[size, size], centre[seen]])
    n = len(radius)
    corners = np.where(rng.random(n) < 0.3, rng.integers(3, 7, n), 0)
    return centre, radius, corners, 2 * np.pi * rng.random(n)


def _colour(centre: np.ndarray, radius: np.ndarray, angle: np.ndarray, top: np.ndarray,
            rng: np.random.Generator) -> np.ndarray:
    """Colours (side, side, 3), about 0 to 1; ``top`` (side, side) says which leaf is on top."""
    n, side = len(radius), len(top)
    y, x = np.mgrid[:side, :side]
    # grey varies most, then blue-yellow, then green-magenta
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    colour = 0.5 + rng.normal(size=(n, 3)) * (0.4, 0.1, 0.05) @ axes
    slope_x, slope_y = 0.15 * rng.normal(size=(2, n)) / radius
    light = slope_x[top] * (x - centre[top, 0]) + slope_y[top] * (y - centre[top, 1])

    frequency = 2 * np.pi / (4 * 8 ** rng.random(n))  # periods of 2 to 16 pixels of the final image
    wave_x, wave_y = frequency * np.cos(angle), frequency * np.sin(angle)
    grating = np.sin(wave_x[top] * x + wave_y[top] * y)
    sizes = [side // cell for cell in (2, 4, 8, 16)]
    grids = [Image.fromarray(rng.normal(size=(s, s)).astype(np.float32)) for s in sizes]
    noise = np.stack([g.resize((side, side), Image.Resampling.BICUBIC) for g in grids])
    kind = rng.integers(0, 8, n)[top]  # half of the leaves have a grating, the others noise
    texture = np.where(kind < 4, noise[kind % 4, y, x], grating)
    light += (0.05 * np.abs(rng.normal(size=n)))[top] * texture
    return colour[top] + light[..., None]


def write_dead_leaves(folder: str | Path, count: int, size: int = 256, seed: int = 0) -> Path:
    """Write `dead_leaves` 0 to ``count`` - 1 of a seed as PNG files; returns the folder.

    Raises AINNError as `dead_leaves` does, and when the folder cannot be written to.
    """
    if count < 1 or seed < 0:
        raise AINNError("dead leaves need a count of at least 1 and a seed of at least 0")
    _check_size(size)
    folder = make_folder(folder)
    for i in tqdm(range(count), desc="dead leaves", unit="image"):
        with atomic_write(folder / f"dead_leaves_{seed}_{i:05}.png") as file:
            dead_leaves(size, [seed, i]).save(file, "PNG")
    return folder


def radial_spectrum(image: Image.Image | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power over spatial frequency, averaged over directions: the mean of |FFT(w · (g - mean g))|².

    g is the grey image (H, W) and w a Hann window: without it the jump from one border to the
    opposite one would add f⁻².

    Returns:
        Frequencies in cycles per pixel, up to 0.5 in steps of 1 / min(H, W), and the power at each.
    """
    grey = np.asarray(Image.fromarray(np.asarray(image)).convert("L"), dtype=float)
    height, width = grey.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    steps = min(height, width)
    ring = np.rint(distance * steps).astype(int).ravel()
    mean = np.bincount(ring, power.ravel()) / np.bincount(ring)
    k = np.arange(1, steps // 2 + 1)
    return k / steps, mean[k]


def _check_size(size: int) -> None:
    if size < 16:
        raise AINNError(f"dead leaves need a size of at least 16 pixels, not {size}")
