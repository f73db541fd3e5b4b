"""A transform's steps in overlapping tiles, so that large photos pass in little memory."""

from collections.abc import Sequence

from torch import Tensor, nn

Maps = tuple[Tensor, ...]


class Step(nn.Module):
    """A step of a transform: one or several maps of one size in, such maps out."""

    #: an output value depends on no input sample farther away; None: on the whole map
    receptive_radius: int | None = 0
    scale: float = 1  #: output samples per input sample, along a side
    align: int = 1  #: tiles start at multiples of so many input samples


def as_maps(output: Tensor | Maps) -> Maps:
    """What a step returned, as a tuple."""
    return output if isinstance(output, tuple) else (output,)


def run_tiled(steps: Sequence[Step], maps: Maps, tile: int) -> Maps:
    """Pass the maps through all steps, each of them in tiles.

    Every tile has as wide a margin as the step's receptive radius, so the result is the same but
    for the order of summation. Steps that see the whole map (radius None) run at once.

    Args:
        maps: tensors (B, C, H, W) with one H and W.
        tile: about this side, in samples of the largest map.
    """
    sizes = [max(maps[0].shape[2:])]
    for step in steps:
        sizes.append(sizes[-1] * step.scale)
    for step, size in zip(steps, sizes, strict=False):
        side = max(1, round(tile * size / max(sizes)))
        maps = as_maps(step(*maps)) if step.receptive_radius is None else _tiled(step, maps, side)
    return maps


def windows(length: int, side: int, step: Step) -> list[tuple[int, int, int, int]]:
    """The tiles along one axis: start and end of each, and the same with its margins.

    Both start at multiples of ``step.align``. At the image's border there is no margin: the
    step's own padding acts there.

    >>> step = Step()
    >>> step.align, step.receptive_radius = 2, 3
    >>> windows(10, 4, step)
    [(0, 4, 0, 8), (4, 8, 0, 10), (8, 10, 4, 10)]
    """
    side = -(-side // step.align) * step.align
    margin = -(-step.receptive_radius // step.align) * step.align
    starts = range(0, length, side)
    ends = [min(start + side, length) for start in starts]
    return [(start, end, max(0, start - margin), min(end + margin, length))
            for start, end in zip(starts, ends, strict=True)]


def _tiled(step: Step, maps: Maps, side: int) -> Maps:
    def scaled(start: int, end: int) -> slice:
        return slice(int(start * step.scale), int(end * step.scale))

    height, width = maps[0].shape[2:]
    results: list[Tensor] = []
    for top, bottom, y0, y1 in windows(height, side, step):
        for left, right, x0, x1 in windows(width, side, step):
            tiles = as_maps(step(*(v[:, :, y0:y1, x0:x1] for v in maps)))
            if not results:
                whole = int(height * step.scale), int(width * step.scale)
                results = [t.new_empty(*t.shape[:2], *whole) for t in tiles]
            rows, columns = scaled(top - y0, bottom - y0), scaled(left - x0, right - x0)
            for result, t in zip(results, tiles, strict=True):
                result[:, :, scaled(top, bottom), scaled(left, right)] = t[:, :, rows, columns]
    return tuple(results)
