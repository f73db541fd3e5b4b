"""How fast the explorers answer; ``ainn benchmark`` measures it."""

import gc
import random
import statistics
import time

import matplotlib.pyplot as plt
import numpy as np

from ..errors import AINNError
from .dashboard import EXPLORERS, Dashboard
from .explorers import values_of


def explorer_latency(moves: int = 40, seed: int = 0) -> list[dict]:
    """Seconds from a control's new value to the finished picture, for every explorer.

    Each move gives one control another value, both chosen at random, on the dashboard's 256 x 256
    photo. The browser's own time is not measured, and the effort stays 0.
    """
    plt.switch_backend("agg")
    gc.collect()
    gc.freeze()  # as in the dashboard's own kernel, `app.ipynb`
    try:
        return _measure(moves, random.Random(seed))
    finally:
        gc.unfreeze()


def _measure(moves: int, rng: random.Random) -> list[dict]:
    page, results = Dashboard(), []
    for number, entry in enumerate(EXPLORERS):
        page.tabs.selected_index = number  # the first picture is not timed
        explorer, seconds = page.explorers[number], []
        quick = [c for name, c in explorer.controls.items() if name != "effort"]
        for _ in range(moves):
            control = rng.choice(quick)
            value = rng.choice([v for _, v in values_of(control) if v != control.value])
            began = time.perf_counter()
            control.value = value
            seconds.append(time.perf_counter() - began)
        if "error" in explorer.stage.view:
            raise AINNError(f"the explorer {entry.title}: {explorer.stage.view['error']}")
        results.append({"explorer": entry.title, "moves": moves,
                        "median": statistics.median(seconds),
                        "p95": float(np.percentile(seconds, 95)), "largest": max(seconds)})
    return results
