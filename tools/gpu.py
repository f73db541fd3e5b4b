"""Train `student` on a GPU machine without a network: only PyTorch and scientific packages there.

    python tools/gpu.py pack --photos train  # here: photos and wheels into build/gpu
    python tools/gpu.py train --minutes 6    # there, in a copy of this folder with build/gpu

The second command first trains for a minute and says how many pixels a second it saw. The weights,
their log and the checkpoint are in build/gpu/run: fetch them. The same command resumes there.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

PACK, RECIPE = Path("build/gpu"), "data/recipes/gpu.json"
#: what training imports and such a machine may lack; what they depend on is there already
WHEELS = "compressai", "pytorch-msssim", "lightning-fabric", "lightning-utilities"
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack_photos(source: str) -> None:
    """Write photos as AVIF: 4:4:4, a fifth of the bytes of PNG, about 42 dB."""
    from ainn_lib.training.samples import load_photos

    for name, pixels in zip(*load_photos(source), strict=True):
        image, path = Image.fromarray(pixels.permute(1, 2, 0).numpy()), PACK / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(f"{path}.avif", quality=90, subsampling="4:4:4", speed=8)


def pack_wheels(python: str) -> None:
    """Download the wheels for a version of Python."""
    exact = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    places = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _pip("download", "--no-deps", "--only-binary=:all:", "--implementation", "cp",
         "--python-version", python, *places, "-d", str(PACK / "wheels"), *exact)


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)


def train(minutes: float, folder: Path, *options: str) -> float:
    """Train with the pack's photos; returns megapixels a second, validation included."""
    given = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join(filter(None, [str(PACK.resolve() / "site"), str(Path.cwd()), given]))
    subprocess.run([sys.executable, "-m", "ainn_lib", "train", "--recipe", RECIPE, "--minutes",
                    str(minutes), "--data", str(PACK / "photos"), "--start", "student",
                    "--out", str(folder), *options],
                   check=True, env={**os.environ, "PYTHONPATH": paths})
    recipe = json.loads((folder / "run.json").read_text())["recipe"]
    last = pd.read_csv(folder / "log.csv").iloc[-1]
    return last.step * recipe["batch"] * recipe["patch"] ** 2 / (60e6 * last.minutes)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["pack", "train"])
    parser.add_argument("--photos", default="train", help="to pack: data set or folder")
    parser.add_argument("--python", default="3.12", help="of the GPU machine (default 3.12)")
    parser.add_argument("--minutes", type=float, default=6, help="of training (default 6)")
    parser.add_argument("--precision", default="bf16-mixed", help="(default bf16-mixed)")
    o = parser.parse_args(arguments)
    if o.what == "pack":
        for part in ("photos", "wheels", "site"):  # those of an earlier pack
            shutil.rmtree(PACK / part, ignore_errors=True)
        pack_photos(o.photos)
        pack_wheels(o.python)
        packed = (file for part in ("photos", "wheels") for file in (PACK / part).rglob("*"))
        size = sum(file.stat().st_size for file in packed if file.is_file())
        print(f"{PACK}: {size / 2**20:.1f} MiB; it has to travel along")
        return
    if not (PACK / "site").exists():
        _pip("install", "--no-index", "--no-deps", "--target", str(PACK / "site"),
             *map(str, (PACK / "wheels").glob("*.whl")))
    for minutes, folder in ((1, PACK / "smoke"), (o.minutes, PACK / "run")):
        speed = train(minutes, folder, "--precision", o.precision)
        print(f"{folder}: {speed:.2f} megapixels a second")


if __name__ == "__main__":
    main()
