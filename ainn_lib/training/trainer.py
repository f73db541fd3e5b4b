"""The rate-distortion loss, and single training steps on Lightning Fabric."""

import contextlib
import copy
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..codec.coding import evaluating
from ..codec.weights import stored_tensors
from ..errors import AINNError
from ..network.entropy_model import lagrangian
from ..network.graphs import Graphed
from ..network.model import AINN
from .on_device import PhotosOnDevice
from .recipe import Recipe, learning_rate
from .samples import crop_to_multiple, draw_sample

QUANTILES_EVERY = 100  # steps between two solutions of the bottleneck's quantiles
LOSSES = ("loss", "bpp", "mse")  #: of `rd_loss`
VALIDATED_AT = (2.0, 4.0, 6.0)  #: qualities
CROP = 256  #: side of the crops that `whole_to_crops` compares with whole photos

Photos = list[Tensor] | PhotosOnDevice


@contextlib.contextmanager
def default_float32() -> Iterator[None]:
    """CompressAI makes tensors of PyTorch's default type where the network's is meant."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rd_loss(output: dict, x: Tensor, lam: Tensor,
            weight: Tensor | float = 1.0) -> dict[str, Tensor]:
    r"""CompressAI's loss :math:`\mathrm{bpp} + \lambda\,255^2\,\mathrm{MSE}`, mean over the batch.

    Args:
        output: what `AINN.forward` returned for x, (B, 3, H, W) in [0, 1].
        lam: (B,) or scalar.
        weight: of each sample, (B,) or scalar.

    Returns:
        ``loss``, ``bpp`` (bits per pixel) and ``mse`` (of values in [0, 1]), scalars.
    """
    bits = sum(-torch.log2(p).flatten(1).sum(1) for p in output["likelihoods"].values())
    bpp = bits / (x.shape[2] * x.shape[3])
    mse = (output["x_hat"] - x).square().flatten(1).mean(1)
    loss = weight * (bpp + lam * 255**2 * mse)
    return {"loss": loss.mean(), "bpp": bpp.mean(), "mse": mse.mean()}


def rate_weight(lam: Tensor, lambdas: tuple[float, float]) -> Tensor:
    r"""Weight :math:`\sqrt{\bar\lambda/\lambda}` with which all rates count the same.

    The loss grows about as the root of λ; :math:`\bar\lambda` is the geometric mean of ``lambdas``.

    >>> rate_weight(torch.tensor([0.01, 0.04]), (0.01, 0.04)).tolist()
    [1.4142135381698608, 0.7071067690849304]
    """
    return ((lambdas[0] * lambdas[1]) ** 0.5 / lam).sqrt()


@dataclass(frozen=True)
class Devices:
    """Where a run is computed. Sample i of a step is the same on any number of devices."""

    accelerator: str = "auto"  #: auto (a CUDA GPU if there is one), cpu or gpu
    devices: int = 1
    strategy: str = "auto"  #: auto or ddp
    precision: str = "32-true"  #: or bf16-mixed

    def fabric(self) -> Fabric:
        """Fabric for these devices, not yet launched. Raises AINNError when there are fewer."""
        if self.devices < 1:
            raise AINNError(f"the number of devices must be at least 1, got {self.devices}")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpu = self.accelerator == "gpu" or self.accelerator == "auto" and gpus > 0
        if gpu and self.devices > gpus:
            raise AINNError(f"{self.devices} GPUs are asked for and {gpus} are here; "
                            "try --accelerator cpu")
        device = "cuda" if gpu else "cpu"
        mixed = self.precision == "bf16-mixed"
        how = {"plugins": Autocast(self.precision, device)} if mixed else {
            "precision": self.precision}
        return Fabric(accelerator=device, devices=self.devices, strategy=self.strategy, **how)


class Autocast(MixedPrecision):
    """bfloat16 in the network, not at its input: Fabric moves pixels by up to half a grey level."""

    def convert_input(self, data: object) -> object:
        return data


class Trainer:
    """A model and its optimizer, ready for the steps of a recipe.

    A step changes only the weights and batch-norm statistics of the model. Training modes, and
    which parameters need a gradient, are the same after it as before. ``averaged`` is the moving
    average of the weights, or the model itself where the recipe wants none.

    Args:
        fabric: launched, if it has several devices; None: the CPU. The model moves to its device.

    Raises:
        AINNError: when there is no parameter to train.

    >>> trainer = Trainer(AINN.from_preset("tiny"), Recipe(steps=1, batch=1, patch=64))
    >>> list(trainer.step([torch.zeros(3, 64, 64, dtype=torch.uint8)], 0))
    ['loss', 'bpp', 'mse']
    """

    def __init__(self, model: AINN, recipe: Recipe, fabric: Fabric | None = None):
        self.model, self.recipe = model.to(memory_format=torch.channels_last), recipe
        self.fabric = fabric or Devices("cpu").fabric()
        groups = _parameter_groups(model, recipe)
        if not groups:
            raise AINNError("nothing to train: no parameter needs a gradient (`load_pretrained` "
                            "gives such a network, `start_from` does not)")
        self.trained = [p for group in groups for p in group["params"]]
        averaged = copy.deepcopy(model) if recipe.average else model
        self.averaged = averaged.to(self.fabric.device)
        self.sequential = Graphed(getattr(model, "sequential", None))
        with self._training():  # several devices wait for every gradient that is needed
            self.module, self.optimizer = self.fabric.setup(model, _optimizer(recipe, groups))

    def photos(self, images: list[Tensor]) -> Photos:
        """Photos, uint8 tensors (3, H, W) no smaller than the patch, as `step` takes them."""
        on_device = self.recipe.sampler == "device"
        return PhotosOnDevice(images, self.fabric.device) if on_device else images

    def step(self, photos: Photos, step: int) -> dict[str, float]:
        """Train one step on all devices and return the means of `rd_loss` over the batch.

        Args:
            photos: from `photos`.

        Raises:
            AINNError: on the CPU when a gradient is not finite; the message names the module. On a
                GPU the loss is nan then.
        """
        (losses,) = self.read([self.launch(photos, step)])
        return losses

    def read(self, losses: list[Tensor]) -> list[dict[str, float]]:
        """What `launch` returned for some steps, as `step` returns it; a GPU is waited for."""
        rows = self.fabric.all_reduce(torch.stack(losses), reduce_op="mean").tolist()
        return [dict(zip(LOSSES, row, strict=True)) for row in rows]

    @default_float32()
    def launch(self, photos: Photos, step: int) -> Tensor:
        """`step` without waiting for a GPU: the losses, (3,), stay there until `read`.

        Every hundredth step waits all the same, to solve for the bottleneck's quantiles.
        """
        if step % QUANTILES_EVERY == 0:
            self.model.entropy_bottleneck._update_quantiles()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * learning_rate(self.recipe, step)
        batch = self._batch(photos, step)
        with self._training():
            forward = partial(self.module, batch["x"], batch["quality"], noise=batch["noise"])
            self.optimizer.zero_grad()
            losses = rd_loss(forward(), batch["x"], batch["lam"], batch["weight"])
            self.fabric.backward(losses["loss"])
            norm = self.fabric.clip_gradients(self.module, self.optimizer, error_if_nonfinite=False,
                                              max_norm=self.recipe.clip)
            if not norm.is_cuda and not torch.isfinite(norm):
                place = _first_not_finite(self.model, forward)
                raise AINNError(f"training stopped at step {step}: {place} is not finite")
        self.optimizer.step()
        if self.recipe.average:
            self._update_average()
        bad = 0 * norm  # nan where the gradient is not finite: `read` shows it
        return torch.stack([losses[name].detach() for name in LOSSES]) + bad

    @torch.no_grad()
    def _update_average(self) -> None:
        weights = stored_tensors(self.model)
        for name, mean in stored_tensors(self.averaged).items():
            mean.lerp_(weights[name], 1 - self.recipe.average)

    def _batch(self, photos: Photos, step: int) -> dict:
        """This device's samples of a step, stacked."""
        config, recipe = self.model.config, self.recipe
        count = recipe.batch // self.fabric.world_size
        first = self.fabric.global_rank * count
        if isinstance(photos, PhotosOnDevice):
            drawn = photos.draw(config, recipe, step)
            batch = {key: value[first : first + count] for key, value in drawn.items()}
            batch["x"] = batch["x"].contiguous(memory_format=torch.channels_last)
        else:
            samples = [draw_sample(photos, config, recipe, step, first + i) for i in range(count)]
            batch = self.fabric.to_device({key: torch.stack([sample[key] for sample in samples])
                                           for key in samples[0]})
        batch["noise"] = batch["noise_y"], batch["noise_z"]
        if not config.variable_rate:
            return {**batch, "quality": None, "lam": torch.tensor(recipe.lam), "weight": 1.0}
        lam = lagrangian(batch["quality"], config.lambdas)
        return {**batch, "lam": lam, "weight": rate_weight(lam, config.lambdas)}

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Training, with gradients for what is trained; at the end all modes are as before."""
        modes = [(module, module.training) for module in self.model.modules()]
        needs = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            self.model.train().requires_grad_(False)
            if self.recipe.train_part == "entropy":  # batch-norm statistics belong to the transform
                self.model.g_a.eval()
                self.model.g_s.eval()
            for parameter in self.trained:
                parameter.requires_grad_(True)
            self.model.sequential = self.sequential
            yield
        finally:
            vars(self.model).pop("sequential", None)
            for module, training in modes:
                module.training = training
            for parameter, needed in needs:
                parameter.requires_grad_(needed)


def _parameter_groups(model: AINN, recipe: Recipe) -> list[dict]:
    """What is trained: the transform and the entropy model, each with its learning rate."""
    transform, entropy = [], []
    for name, parameter in model.named_parameters():
        in_transform = name.startswith(("g_a.", "g_s."))
        is_gain = name.endswith("_factor")
        fixed = recipe.train_part == "entropy" and (in_transform or is_gain)
        solved_for = name.endswith(".quantiles")
        if parameter.requires_grad and not fixed and not solved_for:
            (transform if in_transform else entropy).append(parameter)
    groups = ((transform, recipe.lr), (entropy, recipe.entropy_lr))
    return [{"params": part, "lr": lr, "base": lr} for part, lr in groups if part]


def _optimizer(recipe: Recipe, groups: list[dict]) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups)
    from pytorch_optimizer import SOAP  # it takes a second to import

    # the preconditioner is recomputed every tenth step: a step costs about as much as Adam's
    return SOAP(groups, betas=(0.95, 0.95), precondition_frequency=10, weight_decay=0.0)


def validate(model: AINN, images: list[Tensor]) -> dict[str, float]:
    """Estimated bpp and PSNR (dB, of the clamped reconstruction) of uint8 images (3, H, W), means.

    The images are cropped to multiples of 64; on a variable-rate network at `VALIDATED_AT`.
    ``whole_to_crops`` is the ratio of `whole_to_crops`.
    """
    result = {}
    for quality in VALIDATED_AT if model.config.variable_rate else (None,):
        values = [_estimate(model, crop_to_multiple(image, 64), quality) for image in images]
        bpp, psnr = (statistics.fmean(column) for column in zip(*values, strict=True))
        name = "validation" if quality is None else f"q{quality:g}"
        result |= {f"bpp_{name}": round(bpp, 4), f"psnr_{name}": round(psnr, 4)}
    return {**result, "whole_to_crops": whole_to_crops(model, images)}


def whole_to_crops(model: AINN, images: list[Tensor]) -> float | None:
    """Bits of whole photos over the bits of their own 256x256 crops, at quality 4.

    The sequential context is a recursive filter. Where it is unstable, errors grow over a whole
    photo, and the ratio is clearly above 1. None: no photo has more than one crop.
    """
    whole = cut = 0.0
    quality = VALIDATED_AT[1] if model.config.variable_rate else None
    for image in images:
        image = crop_to_multiple(image, CROP)
        crops = [part for rows in image.split(CROP, 1) for part in rows.split(CROP, 2)]
        if len(crops) > 1:
            whole += len(crops) * _estimate(model, image, quality)[0]
            cut += sum(_estimate(model, crop, quality)[0] for crop in crops)
    return round(whole / cut, 4) if cut else None


@torch.no_grad()
def _estimate(model: AINN, image: Tensor, quality: float | None) -> tuple[float, float]:
    """Bits per pixel and PSNR of one uint8 image."""
    x = image[None].to(next(model.parameters()).device).float() / 255
    with evaluating(model):
        output = model(x, quality)
    output["x_hat"] = output["x_hat"].clamp(0, 1)
    losses = rd_loss(output, x, torch.tensor(0.0))
    return losses["bpp"].item(), -10 * math.log10(losses["mse"].item())


def _first_not_finite(model: AINN, forward: Callable[[], object]) -> str:
    """The first module whose output is not finite when ``forward`` runs again, else a gradient."""
    found, names = [], {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _, output: object) -> None:
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(f"the output of {names.get(module)}")

    with torch.no_grad(), register_module_forward_hook(look):
        forward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            found.append(f"the gradient of {name}")
    return found[0]
