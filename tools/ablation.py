"""Train and measure every network of the ablation, and write figures/data/ablation.json.

    python tools/ablation.py run        called again, it resumes what was stopped
    python tools/ablation.py collect    the finished runs as one JSON file, for notebook 10
"""

import argparse
import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from compressai.models import MeanScaleHyperprior
from compressai.utils.eval_model.__main__ import inference
from PIL import Image
from torch import Tensor, nn

from ainn_lib import AINN, AINNConfig, AINNError, load_pretrained
from ainn_lib.codec.images import read_rgb, to_tensor
from ainn_lib.measure import datasets
from ainn_lib.measure.evaluate import as_codec, measure
from ainn_lib.measure.results import write_results
from ainn_lib.network.config import PRESETS
from ainn_lib.network.entropy_model import lagrangian
from ainn_lib.network.pdm import count_parameters
from ainn_lib.paths import ROOT
from ainn_lib.provenance import provenance
from ainn_lib.studies import ablation as study
from ainn_lib.studies.cost import kmac
from ainn_lib.training.recipe import Recipe
from ainn_lib.training.run import train
from ainn_lib.training.samples import hold_out, load_photos
from ainn_lib.training.train import LEAVES, train_preset
from ainn_lib.training.trainer import Devices

DEVICES = Devices("cpu", precision="bf16-mixed")
POINTS, FIXED_POINTS = (1.0, 2.75, 4.5, 6.25, 8.0), (2.75, 6.25)  # qualities


def run(variant: str, seed: int, data: str, images: str, steps: int, out: Path) -> dict:
    """Train a variant on ``data`` and measure it on ``images``, or read what was measured."""
    folder = out / f"{variant}-{seed}"
    row = folder / "row.json"
    if not row.exists():
        paths = datasets.images(images)
        recipe = Recipe(steps=steps, seed=seed, validate_every=steps)
        train_and_measure = run_hyperprior if variant == study.HYPERPRIOR else run_ours
        facts = train_and_measure(variant, recipe, data, list(paths.values()), folder)
        about = {"variant": variant, "seed": seed, "dataset": Path(images).name}
        write_results(row, {**about, "images": len(paths), **facts})
    return json.loads(row.read_text())


def run_ours(variant: str, recipe: Recipe, data: str, images: list[Path], folder: Path) -> dict:
    """A variant of A-INN; `FIXED` is one network for each of its points."""
    _, changes = study.VARIANTS.get(variant, ("", {}))
    data = None if variant == study.ON_LEAVES else data
    lams, settings, points = [None], POINTS, []
    if variant == study.FIXED:
        lams, settings = lambdas(FIXED_POINTS), [0.0]
    for lam in lams:
        place = folder / f"{lam:.4f}" if lam else folder
        model = load_pretrained(train_preset(
            study.PRESET, data, replace(recipe, lam=lam), place, config=changes, devices=DEVICES))
        codec = as_codec(model, variant)
        for setting in settings:
            points.append([measure(codec, Image.fromarray(read_rgb(path)), setting)
                           for path in images])
    minutes = sum(float(training["log"][-1]["minutes"]) for training in trainings(folder))
    fresh = AINN(model.config).parameters()  # what is loaded is frozen
    trained = sum(parameter.numel() for parameter in fresh if parameter.requires_grad)
    return described(model, points, trained=trained, steps=recipe.steps, minutes=minutes)


class Hyperprior(MeanScaleHyperprior):
    """CompressAI's network, as `train` wants one."""

    def __init__(self):
        super().__init__(64, 96)
        self.config = AINNConfig(N=64, M=96)

    def forward(self, x: Tensor, *_, **noise) -> dict:
        return super().forward(x)


def run_hyperprior(variant: str, recipe: Recipe, data: str, images: list[Path],
                   folder: Path) -> dict:
    """CompressAI's network for each point, all together in the minutes of the run "all"."""
    ours = folder.with_name(f"all-{recipe.seed}") / "row.json"
    if not ours.exists():
        raise AINNError(f"{variant} takes the minutes of 'all': run it first ({ours} is missing)")
    minutes = json.loads(ours.read_text())["minutes"]
    _, training, validation = hold_out(*load_photos(data), recipe.patch)
    points = []
    for lam in lambdas(POINTS):
        torch.manual_seed(recipe.seed)
        part = Recipe(minutes=minutes / len(POINTS), seed=recipe.seed, lam=lam, lr=1e-3)
        place = folder / f"{lam:.4f}"
        network = train(Hyperprior(), training, validation, part, place)
        points.append([inference(network, to_tensor(read_rgb(path))[0]) for path in images])
    steps = json.loads((place / "run.json").read_text())["recipe"]["steps"]
    return described(network, points, steps=steps, minutes=minutes)


def lambdas(qualities: tuple[float, ...]) -> list[float]:
    return lagrangian(torch.tensor(qualities), AINNConfig(**PRESETS[study.PRESET]).lambdas).tolist()


def described(network: nn.Module, points: list[list[dict]], **facts: float) -> dict:
    """Fields of a `Row`; ``points`` has one list of measured images for each point."""
    bpp, psnr = ([statistics.fmean(image[key] for image in images) for images in points]
                 for key in ("bpp", "psnr-rgb"))
    cost = kmac(lambda x: network.g_s(network.g_a(x)), torch.rand(1, 3, 256, 256), 256**2)
    count = count_parameters(network)
    return {"parameters": count, "trained": count, "kmac": cost, **facts, "bpp": bpp, "psnr": psnr}


def trainings(folder: Path) -> list[dict]:
    """What the weights below a folder say of their training."""
    return [json.loads(file.read_text()) for file in folder.glob("**/weights/*.json")]


def collect(out: Path, path: Path) -> Path:
    """Write the rows of all finished runs, which must be comparable, into one JSON file."""
    rows = [json.loads(file.read_text()) for file in out.glob("*/row.json")]
    rows.sort(key=lambda row: (list(study.TITLES).index(row["variant"]), row["seed"]))
    runs = trainings(out)
    photos = {training["data"] for training in runs} - {LEAVES}
    lengths = {row["steps"] for row in rows if row["variant"] != study.HYPERPRIOR}
    measured_on = {row["dataset"] for row in rows}
    for values in (lengths, photos, measured_on):
        if len(values) != 1:
            raise AINNError(f"{out} holds runs that cannot be compared: {sorted(values)}")
    first = out / f"{rows[0]['variant']}-{rows[0]['seed']}"
    settings = json.loads((first / "run.json").read_text())
    return write_results(path, {
        "source": "measured here", "training photos": photos.pop(),
        "lambdas": settings["config"]["lambdas"], "start": "the same linear codec",
        "points": POINTS, "precision": settings["precision"], "recipe": settings["recipe"],
        **provenance(),  # of this collection; the next line is that of the runs
        "training commits": sorted({str(training["commit"]) for training in runs}),
        "rows": rows})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("action", choices=["run", "collect"])
    add("--data", default="train", metavar="NAME|DIR", help="to train on (default: train)")
    add("--images", default="kodak", metavar="NAME|DIR", help="to measure on (default: kodak)")
    add("--steps", type=int, default=8000)
    add("--variants", nargs="+", default=[*study.VARIANTS, study.HYPERPRIOR], metavar="NAME",
        choices=study.TITLES)
    add("--seeds", nargs="+", type=int, default=study.SEEDS)
    add("--out", type=Path, default=ROOT / "runs" / "ablation", metavar="DIR")
    add("--json", type=Path, default=study.RESULTS, metavar="FILE", help="what `collect` writes")
    o = parser.parse_args(arguments)
    if o.action == "collect":
        print(collect(o.out, o.json))
        return
    for seed, variant in itertools.product(o.seeds, o.variants):
        print(run(variant, seed, o.data, o.images, o.steps, o.out))


if __name__ == "__main__":
    main()
