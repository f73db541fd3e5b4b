"""Training on Lightning Fabric: one rate-distortion loss, one optimizer, a run that can be killed and resumed exactly."""

import contextlib
import csv
import ctypes
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .errors import AINNError
from .linear import start_as_linear_codec
from .model import AINN, AINNConfig
from .provenance import provenance
from .rate import QUALITIES, lagrangian
from .weights import load_pretrained, save_pretrained

ENTROPY_PARTS = ("h_a", "h_s", "context_prediction", "entropy_parameters", "entropy_bottleneck", "rate_control")
QUANTILES_EVERY = 100  # steps between two solutions of the bottleneck's quantiles


@dataclass(frozen=True)
class Recipe:
    """How a run goes. Everything random in it follows from ``seed``."""

    steps: int
    batch: int = 4
    patch: int = 128  #: side of the square crops, a multiple of 64
    lr: float = 4e-4  #: of the transform
    entropy_lr: float = 1e-3  #: of entropy model and gains
    hold: float = 0.3  #: part of the steps before the cosine decay begins
    warmup: int = 100
    clip: float = 1.0  #: largest gradient norm
    lam: float | None = None  #: λ of a fixed-rate network
    seed: int = 0
    validate_every: int = 500
    save_every: int = 100


def load_photos(folder: str | Path, smallest: int = 128) -> tuple[list[str], list[Tensor]]:
    """Names and uint8 tensors (3, H, W) of all photos of a folder that are no smaller than a crop, sorted by name.

    Raises:
        AINNError: when the folder is missing or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AINNError(f"{folder} is no folder")
    names, images = [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")):
        with Image.open(path) as image:
            if min(image.size) >= smallest:
                names.append(path.name)
                images.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous())
    if not images:
        raise AINNError(f"{folder} holds no photo of at least {smallest} pixels a side")
    return names, images


def hold_out(names: list[str], images: list[Tensor]) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Every twelfth photo is kept for validation: names and images to train on, and at most 8 images to validate on.

    >>> hold_out([str(i) for i in range(13)], list(range(13)))[2]
    [11]
    """
    keep = [i for i in range(len(images)) if i % 12 != 11]
    validation = [image for i, image in enumerate(images) if i % 12 == 11]
    return [names[i] for i in keep], [images[i] for i in keep], validation[::max(1, len(validation) // 8)][:8]


def draw_sample(images: list[Tensor], config: AINNConfig, recipe: Recipe, step: int, index: int) -> dict[str, Tensor]:
    """One training sample, a function of (seed, step, index) alone: crop, quality and quantization noise."""
    rng = np.random.default_rng([recipe.seed, step, index])
    image = images[rng.integers(len(images))]
    top, left = (int(rng.integers(side - recipe.patch + 1)) for side in image.shape[1:])
    crop = image[:, top:top + recipe.patch, left:left + recipe.patch]
    if rng.random() < 0.5:
        crop = crop.flip(2)
    if rng.random() < 0.5:
        crop = crop.transpose(1, 2)
    small = recipe.patch // 16
    return {
        "x": crop.float() / 255,
        # every batch goes through the qualities from low to high
        "quality": torch.tensor(QUALITIES[0] + (QUALITIES[1] - QUALITIES[0]) * (index + rng.random()) / recipe.batch,
                                dtype=torch.float32),
        "noise_y": torch.from_numpy(rng.random((config.latent_channels, small, small), dtype=np.float32) - 0.5),
        "noise_z": torch.from_numpy(rng.random((config.N, small // 4, small // 4), dtype=np.float32) - 0.5),
    }


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


def learning_rate(recipe: Recipe, step: int) -> float:
    """Factor on the learning rates: linear warm-up, constant, then a cosine to 1 %."""
    hold = int(recipe.hold * recipe.steps)
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if step < hold:
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - hold) / max(1, recipe.steps - hold)))


def start_from(model: AINN, weights: str | Path) -> AINN:
    """Give a fresh network the trained values of another of the same shape; the range of λ may differ.

    Raises:
        AINNError: when the shapes differ.
    """
    trained = load_pretrained(weights)
    values, own = trained.state_dict(), dict(model.named_parameters())
    if {name: p.shape for name, p in trained.named_parameters()} != {name: p.shape for name, p in own.items()}:
        raise AINNError(f"{weights} are weights of another shape than this preset")
    state = {name: value for name, value in values.items() if name in own or name.startswith("rate_control.")}
    torch.nn.Module.load_state_dict(model, state, strict=False)
    if model.config.variable_rate:
        model.rate_control.move(trained.config.lambdas, model.config.lambdas)
    return model


def train_preset(preset: str, data: str | Path, recipe: Recipe, out: str | Path, start: str | Path | None = None) -> Path:
    """Train a preset on a folder of photos, from the linear codec or from trained weights (``start``); weights with their facts
    end in ``out``/weights.

    Returns the path of the safetensors file. Run again with the same arguments, it goes on where it stopped.
    """
    out = Path(out)
    keep_memory()
    names, images, validation = hold_out(*load_photos(data, recipe.patch))
    torch.manual_seed(recipe.seed)
    model = AINN.from_preset(preset)
    if (out / "checkpoint.pt").exists():
        pass  # `train` takes the run up again
    elif start:
        start_from(model, start)
    else:
        start_as_linear_codec(model, images)
    train(model, names, images, validation, recipe, out)
    facts = {
        "preset": preset, "recipe": asdict(recipe), "start": str(start or "linear codec"), "photos": len(names), "data": Path(data).name,
        "data_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "log": list(csv.DictReader((out / "log.csv").open())), **provenance(),
    }
    return save_pretrained(model, out / "weights" / preset, facts)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: without this a fifth of a training step goes into fetching pages again. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0)):  # trim threshold, top padding, number of mmaps
            mallopt(option, value)


def train(model: AINN, names: list[str], images: list[Tensor], validation: list[Tensor], recipe: Recipe, folder: str | Path,
          fabric: Fabric | None = None, progress: bool = True) -> AINN:
    """Run (or take up again) the recipe in ``folder``, where checkpoint, log and a copy of the recipe lie.

    Args:
        model: for a new run, as it is to start, for instance from `start_as_linear_codec`.
        names, images: as `load_photos` returns them.
        validation: images that are neither trained on nor used for evaluation.

    Raises:
        AINNError: when the loss is no longer finite (naming the first module with such a gradient), or the folder
            holds a run of another recipe.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"recipe": asdict(recipe), "config": asdict(model.config), "images": len(names)}
    settings = json.loads(json.dumps(settings))
    kept = folder / "run.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise AINNError(f"{folder} holds a run with other settings; choose another folder or delete it")
    kept.write_text(json.dumps(settings, indent=1))

    entropy = [p for n, p in model.named_parameters()
               if n.startswith(ENTROPY_PARTS) and not n.endswith("quantiles") and p.requires_grad]
    transform = [p for n, p in model.named_parameters() if not n.startswith(ENTROPY_PARTS) and p.requires_grad]
    optimizer = torch.optim.Adam([{"params": transform, "lr": recipe.lr, "base": recipe.lr},
                                  {"params": entropy, "lr": recipe.entropy_lr, "base": recipe.entropy_lr}])
    checkpoint, start, minutes = folder / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        torch.nn.Module.load_state_dict(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, minutes = state["step"], state["minutes"]
    model = model.to(memory_format=torch.channels_last).train()
    module, optimizer = fabric.setup(model, optimizer)
    log = _Log(folder / "log.csv", start)
    began, local = time.monotonic(), recipe.batch // fabric.world_size
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, disable=not (progress and fabric.is_global_zero))
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * learning_rate(recipe, step)
        if step % QUANTILES_EVERY == 0:
            model.entropy_bottleneck._update_quantiles()
        samples = [draw_sample(images, model.config, recipe, step, fabric.global_rank * local + i) for i in range(local)]
        batch = fabric.to_device({key: torch.stack([s[key] for s in samples]) for key in samples[0]})
        quality = batch["quality"] if model.config.variable_rate else None
        lam = lagrangian(quality, model.config.lambdas) if quality is not None else torch.tensor(recipe.lam or model.config.lambdas[0])
        forward = partial(module, batch["x"], quality, noise=(batch["noise_y"], batch["noise_z"]))
        losses = rd_loss(forward(), batch["x"], lam, balance(lam, model.config.lambdas) if quality is not None else 1.0)
        optimizer.zero_grad()
        fabric.backward(losses["loss"])
        norm = torch.nn.utils.clip_grad_norm_([*transform, *entropy], recipe.clip)
        if not torch.isfinite(norm):
            raise AINNError(f"training stopped at step {step}: {_first_not_finite(model, forward)} is not finite")
        optimizer.step()
        values = {key: float(value.detach()) for key, value in losses.items()}
        log.add(step, values)
        done, spent = step + 1, minutes + (time.monotonic() - began) / 60
        if done % recipe.validate_every == 0 or done == recipe.steps:
            log.write(done, spent, validate(model, validation, recipe.lam))
            bar.set_postfix(log.last)
        if fabric.is_global_zero and (done % recipe.save_every == 0 or done == recipe.steps):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "minutes": spent}
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)  # a kill leaves the old one or the new one, whole
    model.entropy_bottleneck._update_quantiles()
    model.update(force=True)
    return model.eval()


@torch.no_grad()
def validate(model: AINN, images: list[Tensor], lam: float | None, qualities: tuple[float, ...] = (2.0, 4.0, 6.0)) -> dict[str, float]:
    """Estimated bpp and PSNR (dB, of the clamped reconstruction), mean over the images cropped to multiples of 64."""
    was_training = model.training
    model.eval()
    result = {}
    for quality in qualities if model.config.variable_rate else (None,):
        rows = []
        for image in images:
            x = image[None, :, : image.shape[1] // 64 * 64, : image.shape[2] // 64 * 64].float() / 255
            output = model(x, quality)
            bits = sum(-torch.log2(p).sum().item() for p in output["likelihoods"].values())
            mse = (output["x_hat"].clamp(0, 1) - x).square().mean().item()
            rows.append((bits / (x.shape[2] * x.shape[3]), -10 * math.log10(mse)))
        name = "" if quality is None else f"_q{quality:g}"
        result[f"bpp{name}"], result[f"psnr{name}"] = (float(v) for v in np.mean(rows, axis=0))
    model.train(was_training)
    return {key: round(value, 4) for key, value in result.items()}


class _Log:
    """log.csv: one row a validation, with the means of the training steps since the row before."""

    def __init__(self, path: Path, start: int):
        self.path, self.sums, self.count, self.last = path, {}, 0, {}
        self.rows = []
        if path.exists():  # rows after the checkpoint are measured again
            self.rows = [row for row in csv.DictReader(path.open()) if int(row["step"]) <= start]

    def add(self, step: int, values: dict[str, float]) -> None:
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def write(self, step: int, minutes: float, validation: dict[str, float]) -> None:
        means = {key: round(value / self.count, 5) for key, value in self.sums.items()}
        self.last = validation
        self.rows.append({"step": step, "minutes": round(minutes, 2), **means, **validation})
        self.sums, self.count = {}, 0
        with self.path.open("w", newline="") as file:
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
