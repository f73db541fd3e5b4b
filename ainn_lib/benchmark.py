"""``ainn benchmark``: where the seconds go, against CompressAI's own serial loop on the same weights and latents; and how fast
the explorers answer.

Each preset runs in a process of its own, so that its peak memory is its own. Seconds are this machine's at this moment; claims
are the ratios, taken in one run.
"""

import copy
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import constriction
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from compressai.models import JointAutoregressiveHierarchicalPriors as Serial
from torch import Tensor

from . import codec, data
from .complexity import kmac
from .entropy import latent_coder
from .errors import AINNError
from .files import check_file, whole_file
from .linear import start_as_linear_codec
from .model import AINN, PRESETS
from .provenance import ROOT, provenance

WIDTH, HEIGHT, REPEATS = 768, 512, 5
EXPLORERS = "explorers"


def benchmark(presets: list[str], output: Path | None = None) -> Path:
    """Time the presets and write one JSON file. Raises AINNError for an unknown preset or a file that cannot be written."""
    for preset in presets:
        if preset not in PRESETS:
            raise AINNError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    output = output or ROOT / "figures" / "data" / "benchmark.json"
    check_file(output)  # before minutes of timing
    results = {"image": f"{WIDTH}x{HEIGHT}, astronaut enlarged", "repeats": REPEATS, "source": "measured here", **provenance(),
               "results": [_apart(preset) for preset in presets], "explorers": _apart(EXPLORERS)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    return output


def _apart(what: str) -> object:
    done = subprocess.run([sys.executable, "-m", __name__, what], capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, perhaps for want of memory"]
        raise AINNError(f"the benchmark of {what} failed: {why[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def explorer_latency(moves: int = 40, seed: int = 0) -> list[dict]:
    """Seconds from a control's new value to the finished picture, for every explorer of the dashboard and a 256 x 256 crop.

    Every move gives one control, chosen by chance, another value, chosen by chance too. The browser's own time is not in it.
    """
    import matplotlib.pyplot as plt

    from . import app

    plt.switch_backend("agg")
    page, rng, results = app.dashboard(), random.Random(seed), []
    for number, (entry, explorer) in enumerate(zip(app.EXPLORERS, page.explorers, strict=True)):
        page.tabs.selected_index = number  # the first picture is not timed
        times = []
        for _ in range(moves):
            control = rng.choice(list(explorer.controls.values()))
            value = rng.choice([value for value in app.values_of(control) if value != control.value])
            times.append(_timed(lambda control=control, value=value: setattr(control, "value", value), repeats=1)[0])
        if explorer.output.outputs[0]["output_type"] == "error":
            raise AINNError(f"the explorer {entry.title} failed: {explorer.output.outputs[0]['evalue']}")
        results.append({"explorer": entry.title, "moves": moves, "median": statistics.median(times),
                        "p95": float(np.percentile(times, 95)), "largest": max(times)})
    return results


def latency_table(path: Path = ROOT / "figures" / "data" / "benchmark.json") -> pd.DataFrame:
    """How fast each explorer answers (seconds), from a file of `benchmark`; the column's name says the machine."""
    measured = json.loads(path.read_text())
    machine = f"{measured['hardware']['processor']}, {measured['hardware']['cores']} cores"
    rows = {r["explorer"]: {"median (s)": f"{r['median']:.2f}", "95 of 100 (s)": f"{r['p95']:.2f}"}
            for r in measured["explorers"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(machine)


def cost_table(path: Path = ROOT / "figures" / "data" / "benchmark.json") -> pd.DataFrame:
    """What each preset costs, one row each, from a file of `benchmark`: parameters (millions), kMAC a pixel of both transforms,
    seconds for one image (encode, decode, and decode with the serial loop), peak memory (MiB)."""
    rows = {}
    for result in json.loads(path.read_text())["results"]:
        macs, seconds = result["kmac_per_pixel"], result["seconds"]
        rows[result["preset"]] = {
            "parameters (M)": f"{result['parameters'] / 1e6:.2f}", "analysis (kMAC/px)": f"{macs['analysis']:.0f}",
            "synthesis (kMAC/px)": f"{macs['synthesis']:.0f}", "encode (s)": f"{seconds['encode']:.1f}",
            "decode (s)": f"{seconds['decode']:.1f}", "serial decode (s)": f"{seconds['serial_decode']:.1f}",
            "memory (MiB)": "-" if result["peak_memory_mib"] is None else f"{result['peak_memory_mib']:.0f}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("preset")


@torch.no_grad()
def measure(preset: str) -> dict:
    """All times (seconds, medians) of one preset, untrained: times do not depend on training, bits do and are not claimed.

    The small presets start as the linear codec of another photo; the paper preset has random weights and latents scaled to
    a standard deviation of 1.
    """
    image = data.photo("astronaut").resize((WIDTH, HEIGHT))
    torch.manual_seed(0)
    model = AINN.from_preset(preset)
    if preset != "paper":
        start_as_linear_codec(model, [torch.from_numpy(np.array(data.photo("coffee"))).permute(2, 0, 1)])
    model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    model.update(force=True)
    x = codec.to_tensor(np.asarray(image))
    gain, inverse_gain, bias = model.gains(None)
    analysis, y = _timed(lambda: model.g_a(x))
    y = y / y.std() if preset == "paper" else y * gain
    hyper_analysis, z = _timed(lambda: model.h_a(y))

    coder = latent_coder(model)
    symbols = torch.round(z - model.entropy_bottleneck._get_medians()[None])
    grid_synthesis, grid_hyper = _timed(lambda: coder.hyper_synthesis(symbols[0].double()))
    serial_hyper_synthesis, hyper = _timed(lambda: model.h_s(symbols + model.entropy_bottleneck._get_medians()[None]))
    y64 = y[0].double()

    def encode() -> tuple[np.ndarray, Tensor]:
        ans = constriction.stream.stack.AnsCoder()
        units, _ = coder.encode_y(y64, grid_hyper, bias, ans)
        return ans.get_compressed(), units

    def decode() -> Tensor:
        return coder.decode_y(constriction.stream.stack.AnsCoder(words), grid_hyper, *y.shape[2:], bias)

    ours_encode, (words, units) = _timed(encode)
    ours_decode, decoded = _timed(decode)
    assert torch.equal(units, decoded)
    twin = serial_twin(model, bias)
    serial_encode, stream = _timed(lambda: Serial._compress_ar(twin, F.pad(y, (2, 2, 2, 2)), hyper, *y.shape[2:], 5, 2))

    def serial() -> Tensor:
        y_hat = torch.zeros(1, y.shape[1], y.shape[2] + 4, y.shape[3] + 4)
        Serial._decompress_ar(twin, stream, y_hat, hyper, *y.shape[2:], 5, 2)
        return y_hat

    serial_decode, _ = _timed(serial)
    y_hat = (units / 4096).float()[None] * inverse_gain
    synthesis, _ = _timed(lambda: model.g_s(y_hat))

    def synthesis_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.g_s(y_hat)

    bf16 = _timed(synthesis_bf16, repeats=1)[0]
    pixels = WIDTH * HEIGHT
    macs = {"analysis": kmac(model.g_a, x, pixels), "synthesis": kmac(model.g_s, y_hat, pixels)}
    limit = arithmetic_limit()
    with torch.profiler.profile() as profile:
        model.g_s(y_hat)
    events = profile.key_averages()
    everything = sum(e.self_cpu_time_total for e in events)
    convolutions = sum(e.self_cpu_time_total for e in events if "convolution" in e.key)
    rest_encode, rest_decode = analysis + hyper_analysis, synthesis
    return {
        "preset": preset, "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": {
            "analysis": analysis, "hyper_analysis": hyper_analysis, "hyper_synthesis_grid": grid_synthesis,
            "hyper_synthesis_float32": serial_hyper_synthesis, "entropy_encode": ours_encode, "entropy_decode": ours_decode,
            "serial_entropy_encode": serial_encode, "serial_entropy_decode": serial_decode, "synthesis": synthesis,
            "synthesis_bf16": bf16, "encode": rest_encode + grid_synthesis + ours_encode,
            "decode": rest_decode + grid_synthesis + ours_decode,
            "serial_encode": rest_encode + serial_hyper_synthesis + serial_encode,
            "serial_decode": rest_decode + serial_hyper_synthesis + serial_decode,
        },
        "ratios": {
            "entropy_encode": serial_encode / ours_encode, "entropy_decode": serial_decode / ours_decode,
            "encode": (rest_encode + serial_hyper_synthesis + serial_encode) / (rest_encode + grid_synthesis + ours_encode),
            "decode": (rest_decode + serial_hyper_synthesis + serial_decode) / (rest_decode + grid_synthesis + ours_decode),
            "decode_bf16": (rest_decode + serial_hyper_synthesis + serial_decode) / (bf16 + grid_synthesis + ours_decode),
        },
        "bytes": {"ours": 4 * len(words), "serial": len(stream)},
        "kmac_per_pixel": macs,
        "gflops": {"limit": limit, "analysis": 2e3 * macs["analysis"] * pixels / analysis / 1e9,
                   "synthesis": 2e3 * macs["synthesis"] * pixels / synthesis / 1e9},
        "synthesis_share_of_convolutions": convolutions / everything,
        "peak_memory_mib": _peak_mib(),
    }


def serial_twin(model: AINN, bias: Tensor) -> SimpleNamespace:
    """The parts of a model that CompressAI's serial loop needs, the quality's bias folded into the last layer."""
    parameters = copy.deepcopy(model.entropy_parameters)
    parameters[-1].bias.data += bias.flatten()
    return SimpleNamespace(gaussian_conditional=model.gaussian_conditional, context_prediction=model.context_prediction,
                           entropy_parameters=parameters, M=model.config.latent_channels)


def _peak_mib() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def arithmetic_limit(size: int = 1536) -> float:
    """GFLOP/s of a float32 matrix product on this machine: the most that a convolution can hope for."""
    a = torch.randn(size, size)
    return 2 * size**3 / min(_timed(lambda: a @ a)[0] for _ in range(3)) / 1e9


def _timed(run: Callable[[], object], repeats: int = REPEATS) -> tuple[float, object]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    return statistics.median(times), result


if __name__ == "__main__":
    print(json.dumps(explorer_latency() if sys.argv[1] == EXPLORERS else measure(sys.argv[1])))
