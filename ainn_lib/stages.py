"""Analysis and synthesis as lists of stages, so that a large photo can pass through each of them in overlapping tiles."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class Stage:
    """One step of a transform: maps of one size in, maps of one size out."""

    name: str  #: the paper's name of the module, and its level
    run: Callable[..., Maps]
    reach: int | None = 0  #: an output value depends on no input sample farther away than this; None: on the whole map
    step: float = 1  #: output samples for each input sample, along a side
    align: int = 1  #: tiles begin at multiples of this many input samples (squeezing and pooling)


def run_stages(stages: Iterable[Stage], maps: Maps, tile: int | None = None) -> Maps:
    """Pass the maps through all stages.

    Args:
        maps: tensors (B, C, H, W) with one H and W.
        tile: None computes each stage at once. A number computes it in tiles of about ``tile`` x ``tile`` samples of the
            largest map, each with as wide a margin as the stage's reach: the same result but for the order of
            summation, in little memory. Stages with unlimited reach are computed at once.
    """
    stages = list(stages)
    largest = max(maps[0].shape[2:])
    size = float(largest)
    for stage in stages:
        size *= stage.step
        largest = max(largest, size)
    for stage in stages:
        side = None if tile is None else max(1, round(tile * max(maps[0].shape[2:]) / largest))
        maps = stage.run(*maps) if side is None or stage.reach is None else _run_tiled(stage, maps, side)
    return maps


def _run_tiled(stage: Stage, maps: Maps, side: int) -> Maps:
    up = -(-side // stage.align) * stage.align
    margin = -(-stage.reach // stage.align) * stage.align
    height, width = maps[0].shape[2:]
    results: list[Tensor] = []
    for top in range(0, height, up):
        for left in range(0, width, up):
            bottom, right = min(top + up, height), min(left + up, width)
            y0, x0 = max(0, top - margin), max(0, left - margin)  # at the image's border the stage's own padding acts
            window = (slice(y0, min(bottom + margin, height)), slice(x0, min(right + margin, width)))
            tiles = stage.run(*(v[:, :, window[0], window[1]] for v in maps))
            if not results:
                results = [torch.empty(t.shape[0], t.shape[1], int(height * stage.step), int(width * stage.step),
                                       dtype=t.dtype, device=t.device) for t in tiles]
            rows, columns = (slice(int(a * stage.step), int(b * stage.step)) for a, b in ((top, bottom), (left, right)))
            inner = (slice(int((top - y0) * stage.step), int((bottom - y0) * stage.step)),
                     slice(int((left - x0) * stage.step), int((right - x0) * stage.step)))
            for result, t in zip(results, tiles, strict=True):
                result[:, :, rows, columns] = t[:, :, inner[0], inner[1]]
    return tuple(results)
