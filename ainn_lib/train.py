"""Training on Lightning Fabric: one rate-distortion loss, one optimizer, a run that can be killed and resumed exactly."""

import contextlib
import copy
import csv
import ctypes
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from .dead_leaves import write_dead_leaves
from .errors import AINNError
from .files import check_folder
from .linear import BLOCK, best_step, start_as_linear_codec
from .model import AINN, AINNConfig
from .provenance import provenance
from .rate import lagrangian
from .recipe import Recipe, learning_rate
from .samples import draw_sample, hold_out, load_photos
from .weights import load_pretrained, save_pretrained, tensors_of

ENTROPY_PARTS = ("h_a", "h_s", "context_prediction", "entropy_parameters", "entropy_bottleneck", "rate_control")
QUANTILES_EVERY = 100  # steps between two solutions of the bottleneck's quantiles
DEAD_LEAVES = 200  # images of 256x256 that are drawn where no photos are given
LEAVES = "dead leaves"  #: name of these data in facts about weights
WARM, TIMED = 2, 5  # steps that `steps_for` runs before it measures, and while it does


# -- loss -------------------------------------------------------------------------------------------------------------


def rd_loss(output: dict, x: Tensor, lam: Tensor, weight: Tensor | float = 1.0) -> dict[str, Tensor]:
    r"""CompressAI's rate-distortion loss, mean over the batch of :math:`\mathrm{bpp} + \lambda\,255^2\,\mathrm{MSE}`.

    Args:
        output: what `AINN.forward` returned for x, (B, 3, H, W) in [0, 1].
        lam: (B,) or scalar.
        weight: of each sample, (B,) or scalar.

    Returns:
        ``loss``, ``bpp`` (bits a pixel) and ``mse`` (of values in [0, 1]), scalars.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = sum(-torch.log2(p).flatten(1).sum(1) for p in output["likelihoods"].values()) / pixels
    mse = (output["x_hat"] - x).square().flatten(1).mean(1)
    return {"loss": (weight * (bpp + lam * 255**2 * mse)).mean(), "bpp": bpp.mean(), "mse": mse.mean()}


def balance(lam: Tensor, lambdas: tuple[float, float]) -> Tensor:
    r"""Weight :math:`\sqrt{\bar\lambda/\lambda}` that gives all rates an equal say: the loss grows about as the root of λ.

    >>> balance(torch.tensor([0.01, 0.04]), (0.01, 0.04)).tolist()
    [1.4142135381698608, 0.7071067690849304]
    """
    return ((lambdas[0] * lambdas[1]) ** 0.5 / lam).sqrt()


# -- the start --------------------------------------------------------------------------------------------------------


def start_from(model: AINN, weights: str | Path) -> AINN:
    """Give a fresh network the trained values of another of the same shape; the range of λ may differ.

    Raises:
        AINNError: when the shapes differ.
    """
    trained = load_pretrained(weights)
    values, own = tensors_of(trained), tensors_of(model)
    if {name: value.shape for name, value in values.items()} != {name: value.shape for name, value in own.items()}:
        raise AINNError(f"{weights} are weights of another shape than this preset")
    nn.Module.load_state_dict(model, values, strict=False)
    if model.config.variable_rate:
        model.rate_control.move(trained.config.lambdas, model.config.lambdas)
    return model


@torch.no_grad()
def start_at_fixed_rate(model: AINN, images: list[Tensor], lam: float) -> AINN:
    r"""`start_as_linear_codec` for a network without gains: the gain :math:`\sqrt G/\Delta(\lambda)` that gives rounding to
    whole numbers the best step goes into W of level 4 (and leaves again through its inverse) and the entropy model.
    """
    start_as_linear_codec(model, images)
    gain = math.sqrt(BLOCK / model.config.M) / best_step(lam)
    for core in model.cores:
        core[3].conv1x1.weight.mul_(gain)
    model.entropy_parameters[-1].bias.mul_(gain)
    return model


def beginning(config: AINNConfig, weights: str | Path | None = None) -> str:
    """Where training of a network begins: at trained weights, as the linear codec or, where the configuration cannot be
    one (the authors' cannot), at random values.

    >>> beginning(AINNConfig()), beginning(AINNConfig(pdm_skip=False))
    ('random', 'linear codec')
    """
    return str(weights or ("random" if config.pdm_skip and config.pdm != "none" or not config.squeeze else "linear codec"))


# -- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Devices:
    """Where a run is computed. Sample i of a step is the same on any number of devices."""

    accelerator: str = "auto"  #: auto (a CUDA GPU if there is one), cpu or gpu
    devices: int = 1
    strategy: str = "auto"  #: auto or ddp
    precision: str = "32-true"  #: or bf16-mixed

    def fabric(self) -> Fabric:
        """Not yet launched. Raises AINNError for devices that are not here."""
        if self.devices < 1:
            raise AINNError(f"the number of devices must be at least 1, got {self.devices}")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpu = self.accelerator == "gpu" or self.accelerator == "auto" and gpus > 0
        if gpu and self.devices > gpus:
            raise AINNError(f"{self.devices} GPUs are asked for and {gpus} are here; try --accelerator cpu")
        return Fabric(accelerator="cuda" if gpu else "cpu", devices=self.devices, strategy=self.strategy,
                      precision=self.precision)


def train_preset(preset: str, data: str | Path | None, recipe: Recipe, out: str | Path, start: str | Path | None = None,
                 config: dict | None = None, devices: Devices | None = None) -> Path | None:
    """Train a preset, from the linear codec or from trained weights (``start``); weights with their facts end in
    ``out``/weights. With ``recipe.lam`` it is a network of that one rate.

    Args:
        data: folder of photos, name of a data set, or None: dead leaves, drawn once into ``out``/dead_leaves.
        config: changes to the preset's `AINNConfig`.

    Returns the path of the safetensors file (None on all processes but the first). Run again with the same arguments, it
    goes on where it stopped.

    Raises:
        AINNError: when ``out`` can be no folder, and as `load_photos`, `hold_out`, `start_from`, `Devices.fabric` and
            `train` do.
    """
    out, lam, devices = Path(out), recipe.lam, devices or Devices()
    check_folder(out)
    fabric = devices.fabric()
    _check(recipe, devices.devices)
    torch.manual_seed(recipe.seed)
    fixed = {} if lam is None else {"variable_rate": False, "lambdas": (lam, lam)}
    model = AINN.from_preset(preset, **{**(config or {}), **fixed})
    leaves = out / "dead_leaves"
    if data is None and len(list(leaves.glob("*.png"))) < DEAD_LEAVES:  # before `launch`, so that one process draws them
        write_dead_leaves(leaves, DEAD_LEAVES, seed=recipe.seed)
    names, images, validation = hold_out(*load_photos(leaves if data is None else data, recipe.patch))
    keep_memory()
    began = beginning(model.config, start)
    if (out / "checkpoint.pt").exists():
        pass  # `train` takes the run up again
    elif start:
        start_from(model, start)
    elif began == "linear codec":
        start_as_linear_codec(model, images) if lam is None else start_at_fixed_rate(model, images, lam)
    fabric.launch()
    pixels = hashlib.sha256()
    for image in (*images, *validation):
        pixels.update(image.numpy().tobytes())
    train(model, images, validation, recipe, out, fabric, origin={"start": began, "pixels_sha256": pixels.hexdigest()})
    if not fabric.is_global_zero:
        return None
    facts = {
        "preset": preset, "recipe": json.loads((out / "run.json").read_text())["recipe"], "start": began,
        "photos": len(names), "data": LEAVES if data is None else Path(data).name,
        "data_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(), "devices": asdict(devices),
        "parameters": sum(p.numel() for p in model.parameters()),
        "log": _Log(out / "log.csv").rows, **provenance(),
    }
    name = preset if lam is None else f"{preset}-{lam:g}".replace(".", "_")
    return save_pretrained(model, out / "weights" / name, facts)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: else a fifth of a training step goes into fetching pages again. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0)):  # trim threshold, top padding, number of mmaps
            mallopt(option, value)


def train(model: AINN, images: list[Tensor], validation: list[Tensor], recipe: Recipe, folder: str | Path,
          fabric: Fabric | None = None, progress: bool = True, origin: dict | None = None) -> AINN:
    """Run (or take up again) the recipe in ``folder``, where checkpoint, log and a copy of the recipe lie.

    Args:
        model: for a new run, as it is to start, for instance from `start_as_linear_codec`.
        images: as `load_photos` returns them.
        validation: images that are neither trained on nor used for evaluation.
        fabric: launched, where it has several devices; only its first process writes files.
        origin: whatever else a run that is taken up again must share, such as the start and a hash of the photos.

    Raises:
        AINNError: when the loss is no longer finite (naming the first module whose output is not, else whose gradient), the
            folder holds a run of another recipe, or recipe and network do not fit.
    """
    fabric = fabric or Devices("cpu").fabric()
    folder = Path(folder)
    _check(recipe, fabric.world_size)
    if model.config.variable_rate != (recipe.lam is None):
        raise AINNError("this network has one fixed rate: give its λ" if recipe.lam is None else
                        "a network for every rate takes no λ; a fixed-rate one does (variable_rate=False)")
    recipe = _settle(model, images, validation, recipe, folder, fabric, origin or {})
    checkpoint, start, minutes = folder / "checkpoint.pt", 0, 0.0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu") if checkpoint.exists() else None
    if state:
        nn.Module.load_state_dict(model, state["model"])
        start, minutes = state["step"], state["minutes"]
    module, optimizer = set_up(model, recipe, fabric)
    log, running = _Log(folder / "log.csv", start), {}
    if state:
        optimizer.load_state_dict(state["optimizer"])
        log.sums, log.count = state.get("log", ({}, 0))
    began = time.monotonic()
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps,
               disable=not (progress and fabric.is_global_zero))
    for step in bar:  # shows the time left by itself
        values = train_step(fabric, module, model, optimizer, images, recipe, step)
        log.add(values)
        running = {key: 0.98 * running.get(key, value) + 0.02 * value for key, value in values.items()}
        psnr = -10 * math.log10(running["mse"])
        bar.set_postfix_str(f"{running['bpp']:.3f} bpp, {psnr:.2f} dB, loss {running['loss']:.3f}", refresh=False)
        done, spent = step + 1, minutes + (time.monotonic() - began) / 60
        if fabric.is_global_zero and (done % recipe.validate_every == 0 or done == recipe.steps):
            log.write(done, spent, validate(model, validation))
        if fabric.is_global_zero and (done % recipe.save_every == 0 or done == recipe.steps):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "minutes": spent,
                     "log": (log.sums, log.count)}
            with _whole(checkpoint) as path:
                torch.save(state, path)
    fabric.barrier()  # the others wait for the first one's files
    model.entropy_bottleneck._update_quantiles()
    model.cpu().update(force=True)
    return model.eval()


def _check(recipe: Recipe, devices: int) -> None:
    if recipe.batch % devices:
        raise AINNError(f"a batch of {recipe.batch} cannot be divided among {devices} devices")
    if recipe.steps is None and recipe.minutes is None:
        raise AINNError("say how long to train: a number of steps or of minutes")


def _settle(model: AINN, images: list[Tensor], validation: list[Tensor], recipe: Recipe, folder: Path,
            fabric: Fabric, origin: dict) -> Recipe:
    """The recipe with its number of steps; run.json keeps it, and everything else that a run taken up again must share."""
    settings = json.loads(json.dumps({"recipe": asdict(recipe), "config": asdict(model.config), "images": len(images),
                                      "precision": fabric.strategy.precision.precision, **origin}))
    kept = folder / "run.json"
    if kept.exists():
        # a run of an older version knows fewer settings
        known = {"precision": "32-true", **origin, **json.loads(kept.read_text())}
        known["recipe"] = {**json.loads(json.dumps(asdict(Recipe()))), **known["recipe"]}
        if recipe.steps is None:
            recipe = replace(recipe, steps=known["recipe"]["steps"])
            settings["recipe"]["steps"] = recipe.steps
        if known != settings:
            raise AINNError(f"{folder} holds a run with other settings; choose another folder or delete it")
    elif recipe.steps is None:
        recipe = replace(recipe, steps=fabric.broadcast(steps_for(model, images, validation, recipe, fabric)))
        settings["recipe"]["steps"] = recipe.steps
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        with _whole(kept) as path:
            path.write_text(json.dumps(settings, indent=1))
    return recipe


def steps_for(model: AINN, images: list[Tensor], validation: list[Tensor], recipe: Recipe, fabric: Fabric) -> int:
    """How many steps fit into ``recipe.minutes``, from the median time of a few steps and the time of a validation, on a
    throw-away copy: the run itself begins untouched.
    """
    twin, trial = copy.deepcopy(model), replace(recipe, steps=WARM + TIMED)
    module, optimizer = set_up(twin, trial, fabric)
    seconds = []
    for step in range(trial.steps):
        began = time.monotonic()
        train_step(fabric, module, twin, optimizer, images, trial, step)
        seconds.append(time.monotonic() - began)
    began = time.monotonic()
    validate(twin, validation)
    return _fitting(recipe, statistics.median(seconds[WARM:]), time.monotonic() - began)


def _fitting(recipe: Recipe, step: float, validation: float) -> int:
    """
    >>> _fitting(Recipe(minutes=10, validate_every=100), step=0.5, validation=10)
    1000
    """
    return max(1, int(60 * recipe.minutes / (step + validation / recipe.validate_every)))


def set_up(model: AINN, recipe: Recipe, fabric: Fabric) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model as Fabric wraps it (with gradients averaged over devices), and Adam with two learning rates.

    Where the recipe trains the entropy model only, all other parameters (and the gains) stand still.
    """
    model.entropy_bottleneck.quantiles.requires_grad_(False)  # they are solved for; DDP would wait for their gradient
    if recipe.only == "entropy":
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and name.startswith(ENTROPY_PARTS) and not name.endswith("_factor"))
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.0  # its statistics belong to the transform
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    entropy = [p for name, p in parameters.items() if name.startswith(ENTROPY_PARTS)]
    transform = [p for name, p in parameters.items() if not name.startswith(ENTROPY_PARTS)]
    groups = [{"params": part, "lr": lr, "base": lr} for part, lr in ((transform, recipe.lr), (entropy, recipe.entropy_lr))]
    if not parameters:
        raise AINNError("nothing to train: all parameters stand still (`load_pretrained` gives such a network, "
                        "`start_from` does not)")
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    return fabric.setup(model.to(memory_format=torch.channels_last).train(), optimizer)


def train_step(fabric: Fabric, module: nn.Module, model: AINN, optimizer: torch.optim.Optimizer, images: list[Tensor],
                recipe: Recipe, step: int) -> dict[str, float]:
    """One step of all devices; ``module`` is ``model`` as Fabric wraps it. Returns the means of `rd_loss` over the batch.

    Raises:
        AINNError: when a gradient is not finite, naming the module.
    """
    c, local = model.config, recipe.batch // fabric.world_size
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * learning_rate(recipe, step)
    if step % QUANTILES_EVERY == 0:
        model.entropy_bottleneck._update_quantiles()
    samples = [draw_sample(images, c, recipe, step, fabric.global_rank * local + i) for i in range(local)]
    batch = fabric.to_device({key: torch.stack([s[key] for s in samples]) for key in samples[0]})
    quality = batch["quality"] if c.variable_rate else None
    lam = torch.tensor(recipe.lam) if quality is None else lagrangian(quality, c.lambdas)
    forward = partial(module, batch["x"], quality, noise=(batch["noise_y"], batch["noise_z"]))
    losses = rd_loss(forward(), batch["x"], lam, 1.0 if quality is None else balance(lam, c.lambdas))
    optimizer.zero_grad()
    fabric.backward(losses["loss"])
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], recipe.clip)
    if not torch.isfinite(norm):
        raise AINNError(f"training stopped at step {step}: {_first_not_finite(model, forward)} is not finite")
    optimizer.step()
    means = fabric.all_reduce(torch.stack([value.detach() for value in losses.values()]), reduce_op="mean")
    return dict(zip(losses, means.tolist(), strict=True))


@torch.no_grad()
def validate(model: AINN, images: list[Tensor], qualities: tuple[float, ...] = (2.0, 4.0, 6.0)) -> dict[str, float]:
    """Estimated bpp and PSNR (dB, of the clamped reconstruction), mean over the images cropped to multiples of 64."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    result = {}
    for quality in qualities if model.config.variable_rate else (None,):
        rows = []
        for image in images:
            x = image[None, :, : image.shape[1] // 64 * 64, : image.shape[2] // 64 * 64].to(device).float() / 255
            output = model(x, quality)
            bits = sum(-torch.log2(p).sum().item() for p in output["likelihoods"].values())
            mse = (output["x_hat"].clamp(0, 1) - x).square().mean().item()
            rows.append((bits / (x.shape[2] * x.shape[3]), -10 * math.log10(mse)))
        name = "_validation" if quality is None else f"_q{quality:g}"
        result[f"bpp{name}"], result[f"psnr{name}"] = (float(v) for v in np.mean(rows, axis=0))
    model.train(was_training)
    return {key: round(value, 4) for key, value in result.items()}


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Another name to write to; it replaces ``path`` in the end: a kill leaves the old file or the new one, whole."""
    new = path.with_suffix(".new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


class _Log:
    """log.csv: one row a validation, with the means of the training steps since the row before."""

    def __init__(self, path: Path, start: float = math.inf):
        self.path, self.sums, self.count = path, {}, 0
        self.rows = []
        if path.exists():  # rows after the checkpoint are measured again
            self.rows = [row for row in csv.DictReader(path.read_text().splitlines()) if int(row["step"]) <= start]

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def write(self, step: int, minutes: float, validation: dict[str, float]) -> None:
        means = {key: round(value / self.count, 5) for key, value in self.sums.items()}
        self.rows.append({"step": step, "minutes": round(minutes, 2), **means, **validation})
        self.sums, self.count = {}, 0
        with _whole(self.path) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def _first_not_finite(model: AINN, forward: Callable[[], object]) -> str:
    """Name of the first module whose output is not finite when ``forward`` runs once more, else of such a gradient."""
    found: list[str] = []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(name)

    hooks = [module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
             for name, module in model.named_modules() if name]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    gradients = [f"the gradient of {name}" for name, p in model.named_parameters()
                 if p.grad is not None and not torch.isfinite(p.grad).all()]
    return f"the output of {found[0]}" if found else (gradients or ["the loss"])[0]
