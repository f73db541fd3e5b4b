"""The ablation: every network starts as the same linear codec and sees the same samples, in the same order, as often.

``python -m ainn_lib.ablation run --data train --images kodak --steps N`` trains and measures all of it, and takes a stopped
session up again; ``python -m ainn_lib.ablation collect`` writes the committed JSON, from which table and figure are made.
"""

import argparse
import itertools
import json
import math
import statistics
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from compressai.models import MeanScaleHyperprior
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import data
from .codecs import Codec
from .complexity import kmac
from .curves import LOOK, STYLE, Curve, bd_rate, gains
from .errors import AINNError
from .evaluate import as_codec, compact_json, measure, summarise
from .files import whole_file
from .model import AINN
from .provenance import ROOT, provenance
from .rate import lagrangian
from .recipe import Recipe, learning_rate
from .samples import draw_sample, hold_out, load_photos
from .train import LEAVES, QUANTILES_EVERY, Devices, rd_loss, train_preset
from .weights import load_pretrained

RESULTS = ROOT / "figures" / "data" / "ablation.json"
SHORT = RESULTS.with_name("ablation_short.json")  #: the same after a tenth of the steps
PRESET, SEEDS, PLAIN = "student", (0, 1), {"fdsm": False, "cfrm": False, "pdm": "none"}
DEVICES = Devices("cpu", precision="bf16-mixed")
POINTS = (1.0, 2.75, 4.5, 6.25, 8.0)  #: qualities that are measured
VARIANTS: dict[str, tuple[str, dict]] = {  #: name -> what it is, changes to the preset
    "plain": ("the plain INN", PLAIN),
    "cfrm": ("plain + CFRM", {**PLAIN, "cfrm": True}),
    "pdm-residual": ("plain + PDM (residual)", {**PLAIN, "pdm": "residual"}),
    "pdm-dense": ("plain + PDM (dense)", {**PLAIN, "pdm": "dense"}),
    "pdm-unet": ("plain + PDM (U-Net)", {**PLAIN, "pdm": "unet"}),
    "fdsm": ("plain + FDSM", {**PLAIN, "fdsm": True}),
    "all": ("all modules", {}),
    "all-residual": ("all modules, PDM (residual)", {"pdm": "residual"}),
    "all-ms-cfrm": ("all modules + MS-CFRM", {"ms_cfrm": True}),
    "peer-macs": ("non-invertible peer, equal MACs", {"tied": False}),
    "peer-parameters": ("non-invertible peer, equal parameters", {"tied": False, "hidden": (12, 12, 16, 20)}),
}
HYPERPRIOR = "mbt2018-mean"
DEAD_LEAVES, FIXED = "dead-leaves", "fixed-rate"  # beside the ablation: other data; one network for each rate
TITLES = {**{name: title for name, (title, _) in VARIANTS.items()}, HYPERPRIOR: "CompressAI's mbt2018-mean (64, 96)",
          DEAD_LEAVES: "all modules, trained on dead leaves", FIXED: "all modules, one network for each of two rates"}
FIXED_POINTS = (2.75, 6.25)


@dataclass(frozen=True)
class Row:
    """One trained variant, measured on the images of a data set at `POINTS`."""

    variant: str
    seed: int
    dataset: str
    images: int
    parameters: int
    trained: int  #: parameters that training changes; the 1x1 matrices of the core stay those of the linear codec
    kmac: float  #: kMAC a pixel of analysis and synthesis, without the entropy model
    steps: int
    minutes: float
    bpp: tuple[float, ...]  #: of real files
    psnr: tuple[float, ...]  #: dB, of the decoded 8-bit images

    def curve(self) -> Curve:
        """The five points as a curve, to take a BD-rate."""
        count = len(self.bpp)
        return Curve(self.variant, self.dataset, "measured here", RESULTS.name, self.images, True, self.bpp, self.psnr,
                     (None,) * count)


def run(variant: str, seed: int, source: str | Path, images: dict[str, Path], dataset: str, steps: int, out: Path) -> Row:
    """Train one variant and measure it; what has been done before in ``out`` is taken up.

    Raises:
        AINNError: for an unknown variant, and as `train_preset` does.
    """
    if variant not in TITLES:
        raise AINNError(f"no variant {variant!r}; there are {', '.join(TITLES)}")
    folder = out / f"{variant}-{seed}"
    kept = folder / "row.json"
    if kept.exists():
        row = _row(json.loads(kept.read_text()))
        trained_on = {facts["data"] for facts in _facts(folder)} - {LEAVES}
        if row.dataset != dataset or variant != HYPERPRIOR and row.steps != steps or trained_on - {Path(source).name}:
            raise AINNError(f"{folder} holds a run of {row.steps} steps on {', '.join(trained_on) or 'other data'}, measured "
                            f"on {row.dataset}; choose another folder")
        return row
    recipe = Recipe(steps=steps, seed=seed, validate_every=steps)
    points = FIXED_POINTS if variant == FIXED else POINTS
    if variant == HYPERPRIOR:
        codec, facts = _hyperpriors(recipe, source, folder, out / f"all-{seed}" / "row.json")
        subjects = {p: (codec, p) for p in points}
    else:
        changes = VARIANTS.get(variant, ("", {}))[1]
        lambdas = [lagrangian(torch.tensor(p), AINN.from_preset(PRESET).config.lambdas).item() for p in FIXED_POINTS]
        weights = [train_preset(PRESET, None if variant == DEAD_LEAVES else source, replace(recipe, lam=lam),
                                folder / (f"{lam:.4f}" if lam else ""), config=changes, devices=DEVICES)
                   for lam in (lambdas if variant == FIXED else [None])]
        models = [load_pretrained(file) for file in weights]
        logs = [json.loads(file.with_suffix(".json").read_text())["log"][-1] for file in weights]
        codecs = [as_codec(model, variant) for model in models]
        subjects = {p: (codecs[0], p) for p in points}
        if variant == FIXED:
            subjects = {p: (codec, 0.0) for p, codec in zip(points, codecs, strict=True)}
        facts = {"parameters": sum(p.numel() for p in models[0].parameters()), "trained": trained_parameters(models[0]),
                 "steps": steps, "minutes": sum(float(log["minutes"]) for log in logs),
                 "kmac": transforms_kmac(models[0])}
    rows = [{"setting": point, **_measured(*subjects[point], path)}
            for path, point in tqdm(list(itertools.product(images.values(), points)), desc=f"{variant}-{seed}")]
    means = summarise(rows, points)
    row = Row(variant, seed, dataset, len(images), bpp=means["bpp"], psnr=means["psnr-rgb"], **facts)
    kept.write_text(json.dumps(asdict(row)))
    return _row(asdict(row))


def _row(facts: dict) -> Row:
    return Row(**{**facts, "bpp": tuple(facts["bpp"]), "psnr": tuple(facts["psnr"])})


def _measured(codec: Codec, setting: float, path: Path) -> dict:
    with Image.open(path) as image:
        return measure(codec, image, setting)


def trained_parameters(model: AINN) -> int:
    """How many parameters training changes: all but the fixed 1x1 matrices of the core."""
    fixed = sum(level.conv1x1.weight.numel() for core in model.cores
                for level, trainable in zip(core, model.config.trainable_1x1, strict=True) if not trainable)
    return sum(p.numel() for p in model.parameters()) - fixed


def transforms_kmac(network: AINN | MeanScaleHyperprior, side: int = 256) -> float:
    """kMAC a pixel of analysis and synthesis."""
    return kmac(lambda x: network.g_s(network.g_a(x)), torch.rand(1, 3, side, side), side**2)


def _hyperpriors(recipe: Recipe, source: str | Path, folder: Path, peer: Path) -> tuple[Codec, dict]:
    """CompressAI's network from random weights, once for each point, all together in the minutes of the run ``peer``."""
    if not peer.exists():
        raise AINNError(f"the variant 'all' says how many minutes this one has; run it first ({peer} is missing)")
    minutes = json.loads(peer.read_text())["minutes"]
    _, images, _ = hold_out(*load_photos(source, recipe.patch))
    config = AINN.from_preset(PRESET).config
    networks, spent = {}, 0.0
    for point in POINTS:
        torch.manual_seed(recipe.seed)
        network = MeanScaleHyperprior(64, 96)
        lam = lagrangian(torch.tensor(point), config.lambdas)
        timed = _train_hyperprior(network, images, config, Recipe(steps=12, seed=recipe.seed), lam)
        steps = int(60 * minutes / len(POINTS) / (timed / 12))
        torch.manual_seed(recipe.seed)
        network = MeanScaleHyperprior(64, 96)
        spent += _train_hyperprior(network, images, config, Recipe(steps=steps, seed=recipe.seed), lam)
        network.update(force=True)
        networks[point] = network.eval()
    count = sum(p.numel() for p in network.parameters())
    facts = {"parameters": count, "trained": count, "kmac": transforms_kmac(network), "steps": steps,
             "minutes": round(spent / 60, 2)}
    folder.mkdir(parents=True, exist_ok=True)
    return Codec(HYPERPRIOR, HYPERPRIOR, "five networks of one rate", POINTS, lambda image, q: _write(networks[q], image, q),
                 lambda file: _read(networks, file)), facts


def _train_hyperprior(network: MeanScaleHyperprior, images: list[Tensor], config, recipe: Recipe, lam: Tensor) -> float:
    """Our samples, loss and schedule; CompressAI's network. Returns the seconds."""
    network.train().entropy_bottleneck.quantiles.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=recipe.entropy_lr)
    began = time.monotonic()
    for step in tqdm(range(recipe.steps), desc=HYPERPRIOR):
        optimizer.param_groups[0]["lr"] = recipe.entropy_lr * learning_rate(recipe, step)
        if step % QUANTILES_EVERY == 0:
            network.entropy_bottleneck._update_quantiles()
        x = torch.stack([draw_sample(images, config, recipe, step, i)["x"] for i in range(recipe.batch)])
        optimizer.zero_grad()
        rd_loss(network(x), x, lam)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
    network.entropy_bottleneck._update_quantiles()
    return time.monotonic() - began


_HEADER = struct.Struct("<HHBI")  # width, height, 16 times the quality, bytes of y


@torch.no_grad()
def _write(network: MeanScaleHyperprior, image: Image.Image, point: float) -> bytes:
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    padded = F.pad(x, (0, -image.width % 64, 0, -image.height % 64), mode="replicate")
    (y,), (z,) = network.compress(padded)["strings"]
    return _HEADER.pack(image.width, image.height, round(16 * point), len(y)) + y + z


@torch.no_grad()
def _read(networks: dict[float, MeanScaleHyperprior], file: bytes) -> Image.Image:
    width, height, point, length = _HEADER.unpack_from(file)
    y, z = file[_HEADER.size:][:length], file[_HEADER.size + length:]
    shape = -(-height // 64), -(-width // 64)
    x = networks[point / 16].decompress([[y], [z]], shape)["x_hat"][0, :, :height, :width]
    return Image.fromarray((x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


# -- from the committed JSON -------------------------------------------------------------------------------------------


def collect(out: Path, path: Path = RESULTS) -> Path:
    """Write the rows of all finished runs into one JSON file.

    Raises:
        AINNError: when there are none, or their numbers of steps or their photos differ.
    """
    rows = [json.loads(file.read_text()) for file in sorted(out.glob("*/row.json"))]
    if len({row["steps"] for row in rows if row["variant"] != HYPERPRIOR}) != 1:
        raise AINNError(f"{out} holds no finished runs of one length")
    trainings = _facts(out)
    photos = {training["data"] for training in trainings} - {LEAVES}
    if len(photos) != 1:
        raise AINNError(f"{out} holds runs that saw different photos: {', '.join(sorted(photos))}")
    order = list(TITLES)
    rows.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
    run = json.loads((out / f"{rows[0]['variant']}-{rows[0]['seed']}" / "run.json").read_text())
    facts = {"source": "measured here", "training photos": photos.pop(), "lambdas": run["config"]["lambdas"],
             "start": "the same linear codec", "points": POINTS, "precision": run["precision"], "recipe": run["recipe"],
             **provenance(),  # it names the commit that collects; the next line, those that trained
             "training commits": sorted({str(training["commit"]) for training in trainings}), "rows": rows}
    with whole_file(path) as file:
        file.write(compact_json(facts).encode())
    return path


def _facts(out: Path) -> list[dict]:
    """What the weights below a folder say of their training."""
    return [json.loads(file.read_text()) for file in out.glob("**/weights/*.json")]


def read_rows(path: Path = RESULTS) -> list[Row]:
    """The rows of the committed file."""
    return [_row(row) for row in json.loads(path.read_text())["rows"]]


def mean_curve(rows: Iterable[Row], variant: str) -> Curve:
    """The curve of a variant, mean over its seeds at each point."""
    curves = [row.curve() for row in rows if row.variant == variant]
    if not curves:
        raise AINNError(f"the ablation holds no run of {variant!r}")
    bpp, psnr = (tuple(statistics.fmean(values) for values in zip(*(getattr(c, key) for c in curves), strict=True))
                 for key in ("bpp", "psnr"))
    return Curve(variant, curves[0].dataset, "measured here", RESULTS.name, curves[0].images, True, bpp, psnr, (None,) * len(bpp))


def against(rows: list[Row], anchor: str) -> dict[str, list[float]]:
    """BD-rates (percent; NaN without a common range) of the ablation's runs against the mean of ``anchor``'s, one a seed."""
    reference, result = mean_curve(rows, anchor), {}
    for row in (row for row in rows if row.variant in {*VARIANTS, HYPERPRIOR}):
        percent = bd_rate(reference, row.curve()).percent
        result.setdefault(row.variant, []).append(math.nan if percent is None else percent)
    return result


def verdict(runs: list[float], reference: list[float]) -> str:
    """What the seeds allow to say of a variant and its anchor.

    >>> verdict([-3.0, -2.0], [-0.5, 0.5]), verdict([-1.0, 0.0], [-0.5, 0.5])
    ('better', 'no difference measured')
    >>> verdict([-3.0], [-0.5, 0.5]), verdict([], [-0.5, 0.5])
    ('one seed only', '-')
    """
    if any(map(math.isnan, runs)):
        return "no common range of PSNR"
    if len(runs) < 2:
        return "one seed only" if runs else "-"
    if max(runs) < min(reference):
        return "better"
    return "worse" if min(runs) > max(reference) else "no difference measured"


def _spread(runs: list[float]) -> str:
    """Mean and range over the seeds."""
    if not runs or any(map(math.isnan, runs)):
        return "-"
    return f"{statistics.fmean(runs):+.1f} % ({min(runs):+.1f} to {max(runs):+.1f})"


def ablation_table(rows: list[Row], short: list[Row] | None = None, anchor: str = "plain") -> pd.DataFrame:
    """One line a variant: size, cost, BD-rate against ``anchor`` (mean and range over the seeds) and the verdict.

    ``short``: runs of fewer steps, in one more column, each against the anchor of its own length. A dash: no such run, or no
    common range of PSNR.
    """
    trainings = [training for training in (short, rows) if training]
    rates, lines = [against(training, anchor) for training in trainings], {}
    for name in (name for name in TITLES if any(name in runs for runs in rates)):
        own = next(row for row in (*rows, *(short or [])) if row.variant == name)
        lines[TITLES[name]] = {
            "parameters (M)": f"{own.parameters / 1e6:.2f}", "trained (M)": f"{own.trained / 1e6:.2f}",
            "kMAC/px": f"{own.kmac:.1f}",
            **{f"BD-rate, {training[0].steps:,} steps": _spread(of.get(name, [])) for training, of in
               zip(trainings, rates, strict=True)},
            f"against {TITLES[anchor]}": "anchor" if name == anchor else verdict(rates[-1].get(name, []), rates[-1][anchor])}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("network")


@dataclass(frozen=True)
class Price:
    """What a choice costs, in dB of PSNR at equal rate: one number for each measured point in reach."""

    question: str
    decibels: tuple[float, ...]
    steps: int
    minutes: float

    @property
    def answer(self) -> str:
        """One sentence."""
        values = ", ".join(f"{value:+.2f}" for value in self.decibels)
        return (f"{statistics.fmean(self.decibels):+.2f} dB at equal rate, after {self.steps:,} steps "
                f"({self.minutes:.0f} minutes; from low to high rate {values} dB).")


def above(anchor: Row, test: Row) -> tuple[float, ...]:
    """PSNR of the points of ``test`` minus that of ``anchor`` at the same rate (between its points, over log rate), in dB."""
    return tuple(float(gain) for bpp, gain in zip(test.bpp, gains(anchor.curve(), test.curve()), strict=True)
                 if anchor.bpp[0] <= bpp <= anchor.bpp[-1])


def prices(*trainings: list[Row]) -> list[Price]:
    """What is lost with dead leaves in place of photos, and won with one network for each rate in place of one for all.

    ``trainings``: the rows of each length of training (default: both committed files); each gives the prices that it holds,
    against `all modules` of the same length.
    """
    questions = {DEAD_LEAVES: "Dead leaves in place of photos:", FIXED: "One network for one rate, in place of one for all:"}
    chosen = [{row.variant: row for row in rows if row.seed == SEEDS[0]} for rows in trainings or (read_rows(SHORT), read_rows())]
    return [Price(question, above(of["all"], row), row.steps, row.minutes / (len(row.bpp) if name == FIXED else 1))
            for name, question in questions.items() for of in chosen if (row := of.get(name))]


def ablation_figure(rows: list[Row], short: list[Row] | None = None, anchor: str = "plain") -> Figure:
    """BD-rate of every run against the anchor: one dot a seed, the anchor's own range as a grey band.

    Networks that have no PSNR in common with the anchor are left out. ``short``: runs of fewer steps, drawn as open dots
    beside the others, each against the anchor of its own length.
    """
    rates = {name: runs for name, runs in against(rows, anchor).items() if not any(map(math.isnan, runs))}
    before = against(short, anchor) if short else {}
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        ax.axvspan(min(rates[anchor]), max(rates[anchor]), color="0.85", linewidth=0)
        for place, (name, runs) in enumerate(rates.items()):
            ax.plot(runs, [place] * len(runs), "o-", color=LOOK[PRESET][1], markersize=4, linewidth=1)
            earlier = before.get(name, [])
            ax.plot(earlier, [place + 0.25] * len(earlier), "o-", color="0.5", markersize=3, markerfacecolor="white",
                    linewidth=0.7)
        lengths = f"\nopen: after {short[0].steps:,} steps, filled: after {rows[0].steps:,}" if short else ""
        ax.set(yticks=range(len(rates)), yticklabels=[TITLES[name] for name in rates],
               xlabel=f"BD-rate against {TITLES[anchor]} (%)\nleft is better; one dot a seed{lengths}")
        ax.invert_yaxis()
    return figure


def main(arguments: list[str] | None = None) -> int:
    """The command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m ainn_lib.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["run", "collect"])
    parser.add_argument("--data", default="train", metavar="NAME|DIR", help="what to train on (default: %(default)s)")
    parser.add_argument("--images", default="kodak", metavar="NAME|DIR", help="what to measure on (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, HYPERPRIOR], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablation", metavar="DIR")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE",
                        help="what `collect` writes (default: the committed one)")
    options = parser.parse_args(arguments)
    try:
        if options.action == "run":
            for seed, variant in itertools.product(options.seeds, options.variants):
                print(run(variant, seed, options.data, data.images(options.images), Path(options.images).name, options.steps,
                          options.out))
        else:
            print(collect(options.out, options.json))
    except AINNError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
