"""How a training run goes: `Recipe`, its learning rates, and recipe files."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AINNError

DROP = 0.3  # factor on the learning rate at each drop
RENAMED = {"hold": "constant_fraction", "only": "train_part"}  # fields of version 0.1


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _are_rising(parts: object) -> bool:
    if not isinstance(parts, tuple) or not all(_is_number(p) and 0 < p < 1 for p in parts):
        return False
    return list(parts) == sorted(set(parts))


_COUNT = (lambda v: type(v) is int and v >= 1, "a whole number of at least 1")
_COUNT_OR_ZERO = (lambda v: type(v) is int and v >= 0, "a whole number of at least 0")
_POSITIVE = (lambda v: _is_number(v) and 0 < v < math.inf, "a number above 0")
_RULES = {  # what each value must be, and a function that says whether it is
    **dict.fromkeys(("steps", "batch", "validate_every", "save_every"), _COUNT),
    **dict.fromkeys(("warmup", "seed"), _COUNT_OR_ZERO),
    **dict.fromkeys(("minutes", "lr", "entropy_lr", "clip", "lam"), _POSITIVE),
    "optimizer": (lambda v: v in ("adam", "soap"), "adam or soap"),
    "average": (lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    "patch": (lambda v: type(v) is int and v >= 64 and v % 64 == 0, "a multiple of 64"),
    "constant_fraction": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "drops": (_are_rising, "rising numbers between 0 and 1"),
    "schedule": (lambda v: v in ("cosine", "drops"), "cosine or drops"),
    "sampler": (lambda v: v in ("host", "device"), "host or device"),
    "train_part": (lambda v: v in ("all", "entropy"), "all or entropy"),
}


@dataclass(frozen=True)
class Recipe:
    """How a run goes. Everything random in it follows from ``seed``.

    Values that make no sense raise AINNError; the message names the field.

    >>> Recipe(steps=10, patch=100)
    Traceback (most recent call last):
    ...
    ainn_lib.errors.AINNError: patch must be a multiple of 64, got 100
    """

    steps: int | None = None  #: None: as many as fit into ``minutes``; the run sets the number once
    minutes: float | None = None
    batch: int = 4  #: of all devices together
    patch: int = 128  #: side of the square crops, a multiple of 64
    lr: float = 5e-4  #: of the transform
    entropy_lr: float = 1e-3  #: of the entropy model and the gains
    schedule: str = "cosine"  #: cosine, or drops: a factor of 0.3 at each part in ``drops``
    constant_fraction: float = 0.3  #: part of the steps before the cosine decay begins
    drops: tuple[float, ...] = ()
    warmup: int = 100
    clip: float = 1.0  #: largest gradient norm
    optimizer: str = "adam"  #: adam, or soap: Adam in the eigenbasis of Shampoo's preconditioner
    average: float = 0.0  #: decay a step of the moving average of the weights; 0: no average
    lam: float | None = None  #: λ of a fixed-rate network; None: all rates
    train_part: str = "all"  #: all, or entropy: the entropy model only, with a fixed transform
    #: host: the processor draws the crops, the same for any device; device: the device that trains
    sampler: str = "host"
    seed: int = 0
    validate_every: int = 500
    save_every: int = 100

    def __post_init__(self):
        if isinstance(self.drops, list):  # from JSON
            object.__setattr__(self, "drops", tuple(self.drops))
        for name, (fits, what) in _RULES.items():
            value = getattr(self, name)
            may_be_missing = name in ("steps", "minutes", "lam")
            if not (fits(value) or may_be_missing and value is None):
                raise AINNError(f"{name} must be {what}, got {value!r}")


def learning_rate(recipe: Recipe, step: int) -> float:
    r"""Factor on the learning rates at a step.

    It rises linearly for ``warmup`` steps and then stays at 1. At the end it falls along a cosine
    to 1 %, or to :math:`0.3^k` after the k-th drop.

    >>> recipe = Recipe(steps=100, warmup=0, schedule="drops", drops=(0.5, 0.9))
    >>> [round(learning_rate(recipe, step), 2) for step in (0, 49, 50, 90)]
    [1.0, 1.0, 0.3, 0.09]
    """
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "drops":
        return DROP ** sum(step >= part * recipe.steps for part in recipe.drops)
    constant = int(recipe.constant_fraction * recipe.steps)
    if step < constant:
        return 1.0
    progress = (step - constant) / max(1, recipe.steps - constant)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file holds."""

    preset: str = "tiny"
    config: dict = field(default_factory=dict)  #: changes to the preset's `AINNConfig`
    lambdas: tuple[float, ...] = ()  #: of fixed-rate networks, one for each quality from 1 on
    training: dict = field(default_factory=dict)  #: fields of `Recipe`
    about: dict = field(default_factory=dict)  #: for the reader

    def recipe(self, lam: float | None = None, quality: int | None = None, **changes) -> Recipe:
        """The `Recipe` with changes, at a given λ or that of a quality.

        A new ``lr`` keeps its ratio to ``entropy_lr``; ``minutes`` replaces ``steps``. Raises
        AINNError as `Recipe` does, and when the file holds no λ for the quality.

        >>> RecipeFile(training={"steps": 9}).recipe(lr=1e-4).entropy_lr
        0.0002
        """
        if lam is not None and quality is not None:
            raise AINNError("choose a quality or a λ, not both")
        if quality is not None or self.lambdas and lam is None:
            count = len(self.lambdas)
            if quality is None or not 1 <= quality <= count:
                choice = f"--quality 1 to {count} or --lambda" if count else "--lambda"
                raise AINNError(f"the recipe has {count} networks of one rate: choose {choice}")
            lam = self.lambdas[quality - 1]
        base = Recipe(**self.training)
        changes["lam"] = base.lam if lam is None else lam
        if "minutes" in changes:
            changes["steps"] = None
        elif "steps" in changes:
            changes["minutes"] = None
        if "lr" in changes and "entropy_lr" not in changes:
            changes["entropy_lr"] = base.entropy_lr * (changes["lr"] / base.lr)
        return dataclasses.replace(base, **changes)


def read_recipe(path: str | Path) -> RecipeFile:
    """Read a recipe file, JSON with the fields of `RecipeFile`.

    Raises AINNError when it is missing, no JSON, or has fields that are unknown.
    """
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AINNError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise AINNError(f"{path} is no JSON: {error}") from None
    kinds = {"preset": str, "config": dict, "lambdas": list, "training": dict, "about": dict}
    fits = isinstance(facts, dict) and all(
        isinstance(value, kinds.get(key, ())) for key, value in facts.items())
    if not fits:
        raise AINNError(f"{path} is no recipe: it may hold {', '.join(kinds)}, each of its kind")
    for name in facts.get("training", {}):
        if name in RENAMED:
            raise AINNError(f"{path}: the field {name} is now called {RENAMED[name]}")
        if name not in _RULES:
            raise AINNError(f"{path}: a recipe has no field {name}")
    return RecipeFile(**{**facts, "lambdas": tuple(facts.get("lambdas", ()))})
