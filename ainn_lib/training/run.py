"""A training run in a folder, with checkpoints: it can be killed and resumes exactly."""

import contextlib
import copy
import json
import math
import signal
import statistics
import time
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from ..codec.files import atomic_write, make_folder
from ..codec.weights import stored_tensors
from ..errors import AINNError
from ..network.config import AINNConfig
from ..network.model import AINN
from .recipe import Recipe
from .trainer import Devices, Trainer, default_float32, validate

LARGEST_RATIO = 1.03  #: of bits on whole photos to bits on their crops, without a warning
#: a loss explodes: above that, or the mean of 10 steps above 100 times the first (at least 1)
LARGEST_LOSS, LARGEST_GROWTH, WINDOW = 1e6, 100, 10
CHECKPOINT, SETTINGS, LOG = "checkpoint.pt", "run.json", "log.csv"
READ_AFTER = {"cpu": 1, "cuda": 20}  #: steps, before their losses are read, which waits for a GPU
WARM, TIMED = 2, 5  # groups of steps that `steps_for` runs before it measures, and while it does


@dataclass
class Progress:
    """How far a run is. A checkpoint holds it beside settings, weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    rows: list[dict] = field(default_factory=list)  #: of the log, one for each validation
    sums: dict[str, float] = field(default_factory=dict)  #: of the losses since the last row
    first: float | None = None  #: loss of the first step

    def add(self, losses: dict[str, float]) -> None:
        """Count a step."""
        self.step += 1
        self.first = losses["loss"] if self.first is None else self.first
        self.sums = {key: self.sums.get(key, 0.0) + value for key, value in losses.items()}

    def means(self) -> dict[str, float]:
        """Means of the losses since the last row."""
        steps = self.step - (self.rows[-1]["step"] if self.rows else 0)
        return {key: value / steps for key, value in self.sums.items()}

    def add_row(self, validation: dict[str, float]) -> None:
        means = {key: round(value, 5) for key, value in self.means().items()}
        minutes = round(self.seconds / 60, 2)
        self.rows.append({"step": self.step, "minutes": minutes, **means, **validation})
        self.sums = {}


@default_float32()
def train(model: AINN, images: list[Tensor], validation: list[Tensor], recipe: Recipe,
          folder: str | Path, fabric: Fabric | None = None, origin: dict | None = None) -> AINN:
    """Run the recipe in ``folder``, or resume the run there from its checkpoint.

    Args:
        model: as a new run starts, for instance from `start_as_linear_codec`.
        images: as `load_photos` returns them.
        validation: images that are neither trained on nor used for evaluation.
        fabric: launched; only its first process writes files. None: the CPU.
        origin: what else a resumed run must share, such as the start and a hash of the photos.

    Returns the model, trained, in evaluation mode and ready to code. Raises AINNError when the loss
    explodes or is no longer finite (the message names the step, and the module), the folder holds a
    damaged run or one with other settings, or recipe and network do not fit.
    """
    fabric = fabric or Devices("cpu").fabric()
    folder, device = Path(folder), next(model.parameters()).device
    check_recipe(recipe, model.config, fabric.world_size)
    kept = _read(folder / CHECKPOINT)
    if recipe.steps is None:
        steps = (kept["settings"]["recipe"]["steps"] if kept else
                 fabric.broadcast(steps_for(model, images, validation, recipe, fabric)))
        recipe = replace(recipe, steps=steps)
    settings = {"recipe": asdict(recipe), "config": asdict(model.config), "images": len(images),
                "precision": fabric.strategy.precision.precision, **(origin or {})}
    settings = json.loads(json.dumps(settings))  # as it is read back: lists, not tuples
    if names := _differing(kept["settings"], settings) if kept else None:
        raise AINNError(f"{folder} holds a run with other settings ({', '.join(names)}); choose "
                        "another folder or delete it")
    try:
        _run(Trainer(model, recipe, fabric), images, validation, folder, settings, kept)
    finally:
        model.to(device).zero_grad()
    model.update(force=True, update_quantiles=True)
    return model.eval()


def _differing(before: dict, now: dict) -> list[str]:
    """Names of the settings that differ. The number of steps may grow."""
    before, now = ({**s, **s["recipe"], **s["config"]} for s in (before, now))
    names = [name for name in now if name not in ("recipe", "config")
             and (name not in before or before[name] != now[name])]
    return [name for name in names if not (name == "steps" and before[name] < now[name])]


def check_recipe(recipe: Recipe, config: AINNConfig, devices: int) -> None:
    """Raise AINNError where recipe, network and number of devices do not fit."""
    if recipe.batch % devices:
        raise AINNError(f"a batch of {recipe.batch} cannot be divided among {devices} devices")
    if recipe.steps is None and recipe.minutes is None:
        raise AINNError("say how long to train: a number of steps or of minutes")
    if config.variable_rate and recipe.lam is not None:
        raise AINNError("a variable-rate network takes no λ; one with variable_rate=False does")
    if not config.variable_rate and recipe.lam is None:
        raise AINNError("this network has one fixed rate: give its λ")


def steps_for(model: AINN, images: list[Tensor], validation: list[Tensor], recipe: Recipe,
              fabric: Fabric) -> int:
    """How many steps fit into ``recipe.minutes``, measured on a copy of the model."""
    group = READ_AFTER[fabric.device.type]
    steps = group * (WARM + TIMED)
    trial = Trainer(copy.deepcopy(model), replace(recipe, steps=steps), fabric)
    photos, seconds = trial.photos(images), []
    for first in range(0, steps, group):
        began = time.monotonic()
        trial.read([trial.launch(photos, step) for step in range(first, first + group)])
        seconds.append((time.monotonic() - began) / group)
    began = time.monotonic()
    validate(trial.model, validation)
    validating = time.monotonic() - began
    one = statistics.median(seconds[WARM:]) + validating / recipe.validate_every
    return max(1, int(60 * recipe.minutes / one))


def _read(path: Path) -> dict | None:
    """A checkpoint, if there is one."""
    if not path.exists():
        return None
    try:
        kept = torch.load(path, weights_only=True, map_location="cpu")
        return {**kept, "progress": Progress(**kept["progress"]), "settings": kept["settings"]}
    except Exception:  # a damaged file raises errors of many kinds
        raise AINNError(f"{path} is damaged: delete {path.parent} and train again") from None


def _run(trainer: Trainer, images: list[Tensor], validation: list[Tensor], folder: Path,
         settings: dict, kept: dict | None) -> None:
    recipe, writes = trainer.recipe, trainer.fabric.is_global_zero
    progress = _load(trainer, kept) if kept else Progress()
    if writes:
        _open(folder, settings, progress)
    photos, began, waiting = trainer.photos(images), time.monotonic() - progress.seconds, []
    recent, group = deque(maxlen=WINDOW), READ_AFTER[trainer.fabric.device.type]
    bar = tqdm(range(progress.step, recipe.steps), initial=progress.step, total=recipe.steps,
               disable=not writes)
    with _asked_to_stop() as stop:
        for step in bar:
            waiting.append(trainer.launch(photos, step))
            last = step + 1 == recipe.steps
            validates = last or (step + 1) % recipe.validate_every == 0
            saves = last or (step + 1) % recipe.save_every == 0
            if len(waiting) < group and not (validates or saves):
                continue
            for losses in trainer.read(waiting):
                progress.add(losses)
                recent.append(losses["loss"])
                _check_loss(recent, progress)
            waiting.clear()
            progress.seconds = time.monotonic() - began
            bar.set_postfix_str(_in_words(progress.means()), refresh=False)
            if writes and validates:
                progress.add_row(validate(trainer.averaged, validation))
                _warn_of(progress.rows[-1])
                _write_log(progress, folder)
            asked = bool(stop)
            if writes and (saves or asked):
                _save(trainer, settings, progress, folder)
            if asked and not last:
                warnings.warn(f"saved after step {progress.step}; the same command resumes",
                              stacklevel=2)
                raise KeyboardInterrupt
    copy_tensors(stored_tensors(trainer.averaged), trainer.model)
    trainer.fabric.barrier()  # until the first process has written its files


def _in_words(means: dict[str, float]) -> str:
    psnr = -10 * math.log10(means["mse"])
    return f"{means['bpp']:.3f} bpp, {psnr:.2f} dB, loss {means['loss']:.3f}"


def _check_loss(recent: deque[float], progress: Progress) -> None:
    """Raises AINNError where the loss explodes; ``recent``: of the last steps."""
    limit = LARGEST_GROWTH * max(1.0, progress.first)
    grown = len(recent) == WINDOW and statistics.fmean(recent) > limit
    if grown or not recent[-1] <= LARGEST_LOSS:
        raise AINNError(
            f"training stopped at step {progress.step}: the loss exploded, {recent[-1]:.3g} after "
            f"{progress.first:.3g} at the first step; look at the photos, or lower --lr")


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list]:
    """A list that is empty until Ctrl-C asks for a stop after this step; a second one stops now."""
    asked = []

    def ask(*signal_and_frame) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: Ctrl-C does not arrive here
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _save(trainer: Trainer, settings: dict, progress: Progress, folder: Path) -> None:
    state = {"model": stored_tensors(trainer.model), "settings": settings,
             "averaged": stored_tensors(trainer.averaged),
             "optimizer": trainer.optimizer.state_dict(), "progress": vars(progress)}
    with atomic_write(folder / CHECKPOINT) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # its own name for a file that cannot be written
            raise OSError(str(error).split("\n")[0]) from None


def _warn_of(row: dict) -> None:
    ratio = row["whole_to_crops"]
    if ratio and ratio > LARGEST_RATIO:
        warnings.warn(f"step {row['step']}: whole photos need {100 * (ratio - 1):.0f} % more bits "
                      "than their crops: the context is unstable; train on larger crops",
                      stacklevel=2)


@torch.no_grad()
def copy_tensors(tensors: dict[str, Tensor], model: AINN) -> None:
    """Set all stored tensors of a model, those of `stored_tensors`."""
    for key, tensor in stored_tensors(model).items():
        tensor.copy_(tensors[key])


def _load(trainer: Trainer, kept: dict) -> Progress:
    copy_tensors(kept["model"], trainer.model)
    copy_tensors(kept["averaged"], trainer.averaged)
    trainer.optimizer.load_state_dict(kept["optimizer"])
    return kept["progress"]


def _open(folder: Path, settings: dict, progress: Progress) -> None:
    make_folder(folder)
    for partial in folder.glob(".*.part"):  # left by a kill
        partial.unlink()
    with atomic_write(folder / SETTINGS) as file:  # for the reader
        file.write(json.dumps(settings, indent=1).encode())
    if progress.rows:
        _write_log(progress, folder)


def _write_log(progress: Progress, folder: Path) -> None:
    with atomic_write(folder / LOG) as file:
        pd.DataFrame(progress.rows).to_csv(file, index=False)
