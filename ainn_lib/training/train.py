"""Train a preset: photos or dead leaves in, weights with their facts out."""

import contextlib
import ctypes
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..codec.files import check_folder, locked, make_folder
from ..codec.weights import load_pretrained, save_pretrained, stored_tensors
from ..errors import AINNError
from ..network.coder import content_hash
from ..network.model import AINN
from ..network.pdm import count_parameters
from ..provenance import provenance
from .dead_leaves import write_dead_leaves
from .linear_start import can_start_as_linear_codec, start_as_linear_codec
from .recipe import Recipe
from .run import CHECKPOINT, LOG, SETTINGS, check_recipe, copy_tensors, train
from .samples import hold_out, load_photos
from .trainer import Devices

DRAWN_IMAGES = 200  # of 256x256, where no photos are given
LEAVES = "dead leaves"  #: name of these data in facts about weights


def train_preset(preset: str, data: str | Path | None, recipe: Recipe, out: str | Path,
                 start: str | Path | None = None, config: dict | None = None,
                 devices: Devices | None = None) -> Path | None:
    """Train a preset in ``out``, or resume its run there; the weights are in ``out``/weights.

    Before the first step it prints what it trains on.

    Args:
        data: folder of photos, name of a data set, or None: dead leaves, drawn into ``out`` once.
        recipe: with ``lam`` the network has that one rate.
        start: weights to start from. None: the linear codec where the network can be one (the
            authors' cannot), else random values.
        config: changes to the preset's `AINNConfig`.

    Returns:
        Path of the safetensors file; None on all processes but the first.

    Raises:
        AINNError: when ``out`` can be no folder or another process trains there, and as
            `load_photos`, `hold_out`, `start_from`, `Devices.fabric` and `train` do.
    """
    out, devices = Path(out), devices or Devices()
    check_folder(out)
    fabric = devices.fabric()
    model = _fresh_model(preset, recipe, config or {})
    check_recipe(recipe, model.config, devices.devices)
    photos = _drawn_leaves(out / "dead_leaves", recipe.seed) if data is None else data
    names, images, validation = hold_out(*load_photos(photos), recipe.patch)
    facts = {"preset": preset, **_facts_of(names, data), "devices": asdict(devices)}
    make_folder(out)
    first = fabric.local_rank == fabric.node_rank == 0  # processes of one run share the folder
    with locked(out) if first else contextlib.nullcontext():
        facts["start"] = _start(model, images, start, resumed=(out / CHECKPOINT).exists())
        if first:
            print(_summary(facts, photos, model, images, validation, recipe))
        _launch(fabric, model)
        origin = {"start": facts["start"], "pixels_sha256": content_hash([*images, *validation])}
        train(model, images, validation, recipe, out, fabric, origin)
        return _save(model, recipe, out, facts) if fabric.is_global_zero else None


def _launch(fabric: Fabric, model: AINN) -> None:
    keep_memory()
    fabric.launch()
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _facts_of(names: list[str], data: str | Path | None) -> dict:
    listed = "\n".join(names).encode(errors="surrogateescape")  # a name may be no text
    return {"photos": len(names), "data": LEAVES if data is None else Path(data).name,
            "data_sha256": hashlib.sha256(listed).hexdigest()}


def _summary(facts: dict, photos: str | Path, model: AINN, images: list[Tensor],
             validation: list[Tensor], recipe: Recipe) -> str:
    """What is trained, on what, and how long."""
    megapixels = sum(image.shape[1] * image.shape[2] for image in images) / 1e6
    rate = "all rates" if recipe.lam is None else f"λ {recipe.lam:g}"
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.minutes:g} minutes"
    return (f"network: {facts['preset']}, {count_parameters(model) / 1e6:.2f} M parameters, "
            f"{rate}, begins as: {facts['start']}\n"
            f"photos: {len(images)} of {photos} ({megapixels:.1f} megapixels); "
            f"{len(validation)} more for validation\n"
            f"training: {length} of {recipe.batch} crops of {recipe.patch}x{recipe.patch} pixels, "
            f"{recipe.optimizer}")


def _start(model: AINN, images: list[Tensor], weights: str | Path | None, resumed: bool) -> str:
    """Set the weights of a new run; returns where they are from."""
    linear = weights is None and can_start_as_linear_codec(model.config)
    if weights and not resumed:
        start_from(model, weights)
    elif linear and not resumed:
        start_as_linear_codec(model, images)
    return "linear codec" if linear else str(weights or "random")


def start_from(model: AINN, weights: str | Path) -> AINN:
    """Copy trained weights into a fresh network of the same shape; the range of λ may differ.

    Returns the network. Raises AINNError when the shapes differ.
    """
    trained = load_pretrained(weights)
    values, own = stored_tensors(trained), stored_tensors(model)
    if {key: v.shape for key, v in values.items()} != {key: v.shape for key, v in own.items()}:
        raise AINNError(f"{weights} are weights of another shape than this network")
    copy_tensors(values, model)
    if model.config.variable_rate:
        model.rate_control.rescale_steps(trained.config.lambdas, model.config.lambdas)
    return model


def keep_memory() -> None:
    """Let glibc keep freed memory (Linux): else fetching pages again is a fifth of a step."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # trim threshold, top padding, number of mmaps
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0)):
            mallopt(option, value)


def _fresh_model(preset: str, recipe: Recipe, config: dict) -> AINN:
    torch.manual_seed(recipe.seed)
    if recipe.lam is not None:
        config = {**config, "variable_rate": False, "lambdas": (recipe.lam, recipe.lam)}
    return AINN.from_preset(preset, **config)


def _drawn_leaves(folder: Path, seed: int) -> Path:
    """A folder of dead leaves. They are drawn before `launch`, so that one process draws them."""
    if len(list(folder.glob("*.png"))) < DRAWN_IMAGES:
        write_dead_leaves(folder, DRAWN_IMAGES, seed=seed)
    return folder


def _save(model: AINN, recipe: Recipe, out: Path, facts: dict) -> Path:
    run = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    log = pd.read_csv(out / LOG).to_dict("records")
    name = facts["preset"]
    if recipe.lam is not None:
        name += f"-{recipe.lam:g}".replace(".", "_")
    facts = {**facts, "recipe": run["recipe"], "parameters": count_parameters(model), "log": log}
    return save_pretrained(model, out / "weights" / name, {**facts, **provenance()})
