"""``ainn benchmark``: seconds of each part, against CompressAI's serial loop on the same latents.

Each preset runs in a process of its own, so that its peak memory is its own. Seconds are this
machine's at this moment; claims are the ratios, taken in one run.
"""

import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from compressai.layers import MaskedConv2d
from compressai.models import JointAutoregressiveHierarchicalPriors as Serial
from PIL import Image
from torch import Tensor, nn

from .. import codec, paths
from ..codec.files import check_file
from ..codec.images import to_tensor
from ..errors import AINNError
from ..measure.datasets import photo
from ..measure.results import write_results
from ..network import coder
from ..network.config import PRESETS
from ..network.model import AINN
from ..network.pdm import count_parameters
from ..provenance import provenance
from ..training.linear_start import start_as_linear_codec
from ..training.recipe import Recipe
from ..training.trainer import Trainer
from .cost import kmac

WIDTH, HEIGHT, REPEATS = 768, 512, 5
RESULTS = paths.RESULTS / "benchmark.json"
PARTS = ("entropy_encode", "entropy_decode", "encode", "decode")


def benchmark(presets: list[str], output: Path | None = None) -> Path:
    """Time the presets, then a decode and a training step beside a busy process; write one JSON.

    Raises AINNError for an unknown preset, or a file that cannot be written.
    """
    for preset in presets:
        if preset not in PRESETS:
            raise AINNError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    output = output or RESULTS
    check_file(output)  # before minutes of timing
    return write_results(output, {
        "image": f"{WIDTH}x{HEIGHT}, astronaut enlarged", "repeats": REPEATS,
        "source": "measured here", **provenance(),
        "environment": {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT")},
        "results": [_apart(measure, preset) for preset in presets],
        "beside": _apart(beside_busy)})


def _apart(function: Callable[..., dict], *arguments: str) -> dict:
    """Call a function in a process of its own."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        raise AINNError("a measuring process died, perhaps for want of memory") from None


def beside_busy() -> dict:
    """Seconds of a decode with `tiny` and of a training step, idle and beside a busy process."""
    model, pixels = _network("tiny")
    data = codec.encode(_image(), model)
    trainer = Trainer(copy.deepcopy(model), Recipe(steps=2 * REPEATS))
    tasks = {"decode": lambda: codec.decode(data, model),
             "training_step": lambda: trainer.step([pixels], 1)}
    idle = {name: _timed(task)[0] for name, task in tasks.items()}
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = {name: _timed(task)[0] for name, task in tasks.items()}
    finally:
        spinning.kill()
        spinning.wait()
    return {name: {"idle": idle[name], "busy": busy[name], "ratio": busy[name] / idle[name]}
            for name in tasks}


@torch.no_grad()
def measure(preset: str) -> dict:
    """Median seconds of each part of one preset, untrained: training does not change times.

    Entropy coding includes the hyperprior. ``serial_`` is CompressAI's loop on the same latent.
    """
    model, _ = _network(preset)
    x, pixels, seconds = to_tensor(np.asarray(_image())), WIDTH * HEIGHT, {}
    seconds["analysis"], y = _timed(lambda: model.g_a(x))
    y = y / y.std() if preset == "paper" else y  # random weights
    seconds["entropy_encode"], latent = _timed(lambda: coder.encode_latent(model, y))
    seconds["entropy_decode"], y_hat = _timed(lambda: coder.decode(model, latent.data, y.shape))
    y_hat = y_hat.to(y)
    gain, _, bias = model.gains(None)
    twin = serial_twin(model, bias)
    seconds["serial_entropy_encode"], serial = _timed(lambda: twin.compress(y * gain))
    seconds["serial_entropy_decode"], _ = _timed(lambda: twin.decompress(**serial))
    seconds["synthesis"], _ = _timed(lambda: model.g_s(y_hat))
    with torch.autocast("cpu", torch.bfloat16):
        bf16, _ = _timed(lambda: model.g_s(y_hat), repeats=1)
    for way in ("", "serial_"):
        seconds[f"{way}encode"] = seconds["analysis"] + seconds[f"{way}entropy_encode"]
        seconds[f"{way}decode"] = seconds[f"{way}entropy_decode"] + seconds["synthesis"]
    ratios = {part: seconds[f"serial_{part}"] / seconds[part] for part in PARTS}
    ratios["decode_bf16"] = seconds["serial_decode"] / (seconds["entropy_decode"] + bf16)
    return {
        "preset": preset, "parameters": count_parameters(model),
        "seconds": {**seconds, "synthesis_bf16": bf16}, "ratios": ratios,
        "bytes": {"ours": len(latent.data), "serial": sum(len(s) for s, in serial["strings"])},
        "kmac_per_pixel": {"analysis": kmac(model.g_a, x, pixels),
                           "synthesis": kmac(model.g_s, y_hat, pixels)},
        "peak_memory_mib": peak_mib(),
    }


def _image() -> Image.Image:
    return photo("astronaut").resize((WIDTH, HEIGHT))


def _network(preset: str) -> tuple[AINN, Tensor]:
    """A network, and the photo for which it starts as a linear codec; ``paper`` is random."""
    torch.manual_seed(0)
    model = AINN.from_preset(preset)
    pixels = torch.from_numpy(np.array(photo("coffee"))).permute(2, 0, 1)
    if preset != "paper":
        start_as_linear_codec(model, [pixels])
    model.to(memory_format=torch.channels_last).eval()
    model.update(force=True)
    return model, pixels


def serial_twin(model: AINN, bias: Tensor) -> Serial:
    """CompressAI's class with our entropy model; it compresses latents y * gain in place of images.

    ``bias``: the quality's, which is added to the last layer's.
    """
    c, context = model.config, model.context_prediction
    twin = Serial(c.N, c.latent_channels)
    twin.g_a = twin.g_s = nn.Identity()
    for part in ("h_a", "h_s", "entropy_bottleneck", "gaussian_conditional"):
        setattr(twin, part, getattr(model, part))
    twin.entropy_parameters = copy.deepcopy(model.entropy_parameters)
    twin.entropy_parameters[-1].bias.data += bias.flatten()
    twin.context_prediction = MaskedConv2d(c.latent_channels, c.context_out, 5, padding=2)
    twin.context_prediction.weight.data = context.dense().detach()
    twin.context_prediction.bias.data = context.bias.detach()
    return twin.eval()


def peak_mib() -> float | None:
    """The most memory that this process has used so far; None where the system does not say.

    Linux's ``ru_maxrss`` is no less than what the parent used before it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _timed(run: Callable[[], object], repeats: int = REPEATS) -> tuple[float, object]:
    """Median seconds, to the microsecond, and the last result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    return round(statistics.median(times), 6), result
